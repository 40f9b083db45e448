"""Every policy term: its objective, and its pull on the token's log-probability.

One token of probability `old_prob` under the old policy is made more or less likely.
The objective is minus the loss, shifted to 0 at ratio 1. Where a weight is constant
(CISPO, TOPR, VESPO), it is only what gets logged, and the pull is not its slope.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxppo

from .panels import Axis, Curve, curve, pairs

Term = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
RATIOS = np.linspace(0.02, 3.0, 597)
SIGNS = {"A = +1": 1.0, "A = -1": -1.0}


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
CLIP: dict[str, Term] = {
    "PPO\nclip 0.2": of_ratio(clip),
    "DAPO, clip-higher\n0.2 / 0.28": of_ratio(clip, clip_eps_high=0.28),
    "dual clip\nc = 2": of_ratio(clip, dual_clip=2.0),
    "GSPO\none of ten tokens, 0.05": gspo_of_ten,
    "GMPO\none token, 0.4 in logs": geometric,
    "no clip\nIS, CPI": of_ratio(jaxppo.unclipped_surrogate),
}
WEIGH: dict[str, Term] = {
    "REINFORCE, GPG\nno ratio": of_log_probs_alone(pg),
    "CISPO\n[0, 2]": of_log_probs(jaxppo.cispo, high=2.0),
    "TOPR\ncap 1": of_log_probs(jaxppo.topr),
    "SAPO\ntau 1 / 1.05": of_ratio(jaxppo.soft_gated_surrogate),
    "VESPO\none token": vespo,
    "LUFFY\ngamma 0.1": of_log_probs_alone(jaxppo.shaped_off_policy),
}
BOUND: dict[str, Term] = {
    "DPPO, total variation\n0.2": functools.partial(dppo, jaxppo.binary_tv, 0.2),
    "DPPO, binary KL\n0.2": functools.partial(dppo, jaxppo.binary_kl, 0.2),
    "SPO (simple), quadratic\n0.2": of_ratio(jaxppo.quadratic_surrogate),
    "discovered PO\nalpha 2, beta 0.6": of_ratio(jaxppo.discovered_surrogate),
    "KL penalty, k2\n0.5": functools.partial(penalised, jaxppo.kl_k2, 0.5),
    "KL penalty, k3\n0.5": functools.partial(penalised, jaxppo.kl_k3, 0.5),
}
FAMILIES = {
    "clip": (CLIP, "Policy terms that clip"),
    "weigh": (WEIGH, "Policy terms that weigh"),
    "bound": (BOUND, "Policy terms that bound the distance"),
}


def curves(term: Term, sign: float, old_prob: float) -> Curve:
    """The objective along the ratio, 0 at ratio 1, and the pull on the log-prob."""

    def loss(x):
        # The old log-prob is constant: what moves the ratio moves the log-prob.
        return term(x + jnp.log(old_prob), x, jnp.full(x.shape, sign))

    drawn = curve(loss, jnp.log(jnp.asarray(RATIOS, jnp.float32)))
    return Curve(np.asarray(loss(jnp.zeros(1))) - drawn.value, drawn.pull)


def draw(terms: dict[str, Term], title: str, columns: int, old_prob: float) -> Figure:
    """A pair of panels for each term."""
    panels = {
        name: {label: curves(term, sign, old_prob) for label, sign in SIGNS.items()}
        for name, term in terms.items()
    }
    axes = (
        Axis("ratio pi / pi_old", -0.1, 3.1),
        Axis("objective", -1.6, 1.6),
        Axis("pull on log pi", -3.1, 3.1),
    )
    return pairs(panels, RATIOS, axes, columns=columns, title=title, at=1.0)


def everything(old_prob: float) -> Figure:
    """All of them on one sheet."""
    title = "Policy terms of jaxppo, for one token"
    return draw(CLIP | WEIGH | BOUND, title, 6, old_prob)


def family(name: str, old_prob: float) -> Figure:
    """Those of one family, larger."""
    terms, title = FAMILIES[name]
    return draw(terms, title, 3, old_prob)
