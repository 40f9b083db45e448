"""Draw the loss gallery: every policy term and its gradient, against the ratio.

    python examples/gallery.py
    python examples/gallery.py --out surrogates.png --old-prob 0.1

One token of probability `old_prob` under the old policy is made more or less likely.
Above, the objective (minus the loss, shifted to 0 at ratio 1); below, the pull on the
token's log-probability, which is what the optimiser sees: where it is 0, the term has
let go. Where a weight is constant (CISPO, TOPR, VESPO), the objective is only what gets
logged, and the pull is not its slope.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro

import jaxppo

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Term = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
RATIOS = np.linspace(0.02, 3.0, 597)
COLUMNS = 6


def of_ratio(term: Callable, **hyper) -> Term:
    """A term that takes the log-ratio."""
    return lambda log_probs, x, advantages: term(x, advantages, **hyper)


def of_log_probs(term: Callable, **hyper) -> Term:
    """A term that takes the log-prob, and the log-ratio for its constant weight."""
    return lambda log_probs, x, advantages: term(log_probs, x, advantages, **hyper)


def of_log_probs_alone(term: Callable, **hyper) -> Term:
    """A term that knows no ratio."""
    return lambda log_probs, x, advantages: term(log_probs, advantages, **hyper)


def dppo(divergence: Callable, bound: float, log_probs, x, advantages):
    """The surrogate, but for tokens that are too far and going farther."""
    old = jax.lax.stop_gradient(log_probs - x)
    far = divergence(log_probs, old)
    keep = jaxppo.trust_region_mask(x, advantages, far, low=bound)
    return jnp.where(keep, jaxppo.unclipped_surrogate(x, advantages), 0)


def gspo_of_ten(log_probs, x, advantages):
    """One token moves, nine others stay: the ratio of ten is the tenth root."""
    return 10 * jaxppo.clipped_surrogate(x / 10, advantages, clip_eps=0.05)


def vespo(log_probs, x, advantages):
    """The log-prob, weighted by a smooth gate of the sequence's ratio."""
    gate = jax.vmap(lambda x, a: jaxppo.vespo_weights(x[None], a[None])[0])
    weights = gate(x, advantages)
    return weights * jaxppo.policy_gradient(log_probs, advantages)


def geometric(log_probs, x, advantages):
    """GMPO, of a sequence that is this one token."""
    one = lambda x, a: jaxppo.geometric_mean_surrogate(x[None], a[None])[0]
    return jax.vmap(one)(x, advantages)


def penalised(kl: Callable, coef: float, log_probs, x, advantages):
    """The surrogate and a penalty on the way back to the old policy."""
    return jaxppo.unclipped_surrogate(x, advantages) + coef * kl(x)


clip, pg = jaxppo.clipped_surrogate, jaxppo.policy_gradient
GALLERY: dict[str, Term] = {
    "PPO\nclip 0.2": of_ratio(clip),
    "DAPO, clip-higher\n0.2 / 0.28": of_ratio(clip, clip_eps_high=0.28),
    "dual clip\nc = 2": of_ratio(clip, dual_clip=2.0),
    "GSPO\none of ten tokens, 0.05": gspo_of_ten,
    "GMPO\none token, 0.4 in logs": geometric,
    "no clip\nIS, CPI": of_ratio(jaxppo.unclipped_surrogate),
    "REINFORCE, GPG": of_log_probs_alone(pg),
    "CISPO\n[0, 2]": of_log_probs(jaxppo.cispo, high=2.0),
    "TOPR\ncap 1": of_log_probs(jaxppo.topr),
    "SAPO\ntau 1 / 1.05": of_ratio(jaxppo.soft_gated_surrogate),
    "VESPO\none token": vespo,
    "LUFFY\ngamma 0.1": of_log_probs_alone(jaxppo.shaped_off_policy),
    "DPPO, total variation\n0.2": functools.partial(dppo, jaxppo.binary_tv, 0.2),
    "DPPO, binary KL\n0.2": functools.partial(dppo, jaxppo.binary_kl, 0.2),
    "SPO (simple), quadratic\n0.2": of_ratio(jaxppo.quadratic_surrogate),
    "discovered PO\nalpha 2, beta 0.6": of_ratio(jaxppo.discovered_surrogate),
    "KL penalty, k2\n0.5": functools.partial(penalised, jaxppo.kl_k2, 0.5),
    "KL penalty, k3\n0.5": functools.partial(penalised, jaxppo.kl_k3, 0.5),
}


def curves(term: Term, sign: float, old_prob: float) -> tuple[jax.Array, jax.Array]:
    """The objective along the ratio, 0 at ratio 1, and the pull on the log-prob."""
    x = jnp.log(jnp.asarray(RATIOS, jnp.float32))
    advantages = jnp.full(x.shape, sign)

    def objective(x):
        # The old log-prob is constant: what moves the ratio moves the log-prob.
        return -term(x + jnp.log(old_prob), x, advantages)

    start = -term(jnp.log(jnp.full(1, old_prob)), jnp.zeros(1), jnp.full(1, sign))
    return objective(x) - start, jax.grad(lambda x: jnp.sum(objective(x)))(x)


def draw(gallery: dict[str, Term], old_prob: float, out: pathlib.Path) -> None:
    """One page: a pair of panels for each term."""
    rows = -(-len(gallery) // COLUMNS)
    figure = plt.figure(figsize=(2.6 * COLUMNS, 3.5 * rows + 0.8), layout="constrained")
    grid = figure.add_gridspec(2 * rows, COLUMNS, height_ratios=[1, 1] * rows)
    for i, (title, term) in enumerate(gallery.items()):
        row, column = divmod(i, COLUMNS)
        above = figure.add_subplot(grid[2 * row, column])
        below = figure.add_subplot(grid[2 * row + 1, column], sharex=above)
        for sign, color in [(1.0, "tab:blue"), (-1.0, "tab:red")]:
            objective, pull = curves(term, sign, old_prob)
            label = f"A = {sign:+.0f}"
            above.plot(RATIOS, objective, color=color, label=label, linewidth=1.8)
            below.plot(RATIOS, pull, color=color, linewidth=1.8)
        above.set_title(title, fontsize=10)
        above.set_ylim(-1.6, 1.6)
        below.set_ylim(-3.1, 3.1)
        above.tick_params(labelbottom=False)
        for panel in (above, below):
            panel.axvline(1, color="0.6", linewidth=0.8, zorder=0)
            panel.axhline(0, color="0.6", linewidth=0.8, zorder=0)
            panel.tick_params(labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)
        if column == 0:
            above.set_ylabel("objective", fontsize=9)
            below.set_ylabel("pull on log pi", fontsize=9)
        if row == rows - 1:
            below.set_xlabel("ratio pi / pi_old", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle("Policy terms of jaxppo, for one token", fontsize=13)
    figure.savefig(out, dpi=110)


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to draw it, and of which token."""

    out: pathlib.Path = pathlib.Path("runs/gallery/gallery.png")
    """The picture's file."""
    old_prob: float = 0.3
    """Probability of the token under the old policy."""


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(GALLERY, options.old_prob, options.out)
    print(f"Drawn: {options.out}")
