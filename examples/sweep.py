"""Sweep three hyper-parameters of PPO on CartPole-v1, 64 seeds each, in one call.

python examples/sweep.py --help
python examples/sweep.py --gae-lambdas 0.5 0.9 0.99 --seeds 16 --out runs/lambdas

The training is a pure function of a key and three numbers; `vmap` makes it one of 64
keys, and `lax.map` one of a grid. What is compiled is one function, called once: 1152
trainings, about two minutes on one core.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import control  # before JAX starts: it sets a flag
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import folders
from control import environments
from control.training import PPO, trainer
from matplotlib.figure import Figure
from tqdm import tqdm

del control


@dataclasses.dataclass(frozen=True)
class Options:
    """What to try, and how long and how often."""

    learning_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Adam's step sizes at the start."""
    clip_ranges: tuple[float, ...] = (0.05, 0.2, 0.8)
    """How far the ratio may move from 1."""
    gae_lambdas: tuple[float, ...] = (0.5, 0.95)
    """How far advantages look ahead."""
    seeds: int = 64
    """Independent trainings of each combination, side by side."""
    total_steps: int = 16_384
    """Environment steps of a training."""
    episodes: int = 20
    """Fresh episodes that a policy is judged by after it."""
    seed: int = 0
    """Of everything random."""
    out: Path | None = None
    """Folder for everything written; made from the time if not given."""

    @property
    def grid(self) -> dict[str, tuple[float, ...]]:
        """What is tried of each, by its name in `PPO`."""
        values = self.learning_rates, self.clip_ranges, self.gae_lambdas
        return dict(zip(TITLES, values, strict=True))


TITLES = {
    "learning_rate": "learning rate",
    "clip_eps": "clip range",
    "gae_lambda": "lambda of GAE",
}


def sweep(o: Options, bar: tqdm) -> jax.Array:
    """Mean returns after training, (learning rates, clip ranges, lambdas, seeds)."""
    env = environments.cartpole()

    def show(returns: np.ndarray) -> None:
        bar.set_postfix_str(f"return {np.median(returns):.0f}")
        bar.update(o.seeds)

    def train(hyper: dict[str, Any]) -> jax.Array:
        ppo = PPO(o.total_steps, num_envs=8, num_steps=128, gamma=0.98, **hyper)
        one = trainer(env, ppo)
        init_key, eval_key = jax.random.split(jax.random.key(o.seed))
        run = jax.lax.map(one.init, jax.random.split(init_key, o.seeds))
        update = jax.vmap(lambda run: one.update(run)[0])
        run = jax.lax.fori_loop(0, ppo.num_updates, lambda _, run: update(run), run)
        evaluate = lambda run: jnp.mean(one.evaluate(run, eval_key, o.episodes, 500))
        returns = jax.vmap(evaluate)(run)
        jax.debug.callback(show, returns)
        return returns

    points = jnp.meshgrid(*map(jnp.array, o.grid.values()), indexing="ij")
    hypers = dict(zip(o.grid, map(jnp.ravel, points), strict=True))
    returns = jax.jit(lambda hypers: jax.lax.map(train, hypers))(hypers)
    return returns.reshape(*points[0].shape, o.seeds)


def draw(returns: np.ndarray, o: Options, path: Path) -> None:
    """Every combination; then each hyper-parameter alone, seed by seed."""
    words = lambda values: [f"{x:g}" for x in values]
    low, middle, high = np.percentile(returns, [25, 50, 75], axis=-1)
    columns = len(o.gae_lambdas)
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    panels = above.subplots(1, columns, sharey=True, squeeze=False)[0]
    for k, (panel, value) in enumerate(zip(panels, o.gae_lambdas, strict=True)):
        table = middle[..., k].T  # clip ranges, learning rates
        image = panel.imshow(table, vmin=0, vmax=500, aspect="auto", origin="lower")
        for (i, j), median in np.ndenumerate(table):
            quartiles = f"{low[j, i, k]:.0f} to {high[j, i, k]:.0f}"
            ink = dict(color="white" if median < 300 else "black", ha="center")
            panel.text(j, i, f"{median:.0f}", va="bottom", fontsize=12, **ink)
            panel.text(j, i, quartiles, va="top", fontsize=8, **ink)
        panel.set_xticks(range(len(o.learning_rates)), words(o.learning_rates))
        panel.set_yticks(range(len(o.clip_ranges)), words(o.clip_ranges))
        panel.set_xlabel(TITLES["learning_rate"])
        panel.set_title(f"{TITLES['gae_lambda']} {value:g}", fontsize=10, loc="left")
    panels[0].set_ylabel(TITLES["clip_eps"])
    above.colorbar(image, ax=panels, label="return (500 at most)")
    steps = f"{o.total_steps:,} steps of CartPole-v1"
    above.suptitle(f"Return after {steps}: median and quartiles of {o.seeds} seeds")

    best = np.unravel_index(np.argmax(middle), middle.shape)
    panels = below.subplots(1, 3, sharey=True)
    for axis, (panel, (name, values)) in enumerate(
        zip(panels, o.grid.items(), strict=True)
    ):
        at = tuple(slice(None) if i == axis else b for i, b in enumerate(best))
        for i, seeds in enumerate(np.sort(returns[at])):
            spread = i + np.linspace(-0.2, 0.2, len(seeds))
            panel.plot(spread, seeds, ".", ms=4, color="tab:blue", alpha=0.6)
            panel.hlines(middle[at][i], i - 0.3, i + 0.3, color="tab:red")
        panel.set_xticks(range(len(values)), words(values))
        panel.set_xlabel(TITLES[name])
        panel.set_xlim(-0.5, len(values) - 0.5)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("return")
    below.suptitle(
        "The best of them, and one thing changed: a dot a seed, and the median"
    )
    figure.savefig(path, dpi=110)


def main(o: Options) -> None:
    """Sweep, then leave the returns and the picture in a folder."""
    out = folders.new("sweep", o)
    print(f"writing to {out}/")
    total = np.prod([len(x) for x in o.grid.values()]) * o.seeds
    with tqdm(total=int(total), desc="sweep", unit=" trainings") as bar:
        bar.set_postfix_str("compiling")
        returns = np.asarray(sweep(o, bar))
        jax.effects_barrier()
    points = itertools.product(*o.grid.values())
    points = [dict(zip(o.grid, point, strict=True)) for point in points]
    for point, seeds in zip(points, returns.reshape(-1, o.seeds), strict=True):
        folders.append(out, point | {"returns": seeds.tolist()})
    draw(returns, o, out / "sweep.png")
    medians = np.median(returns, -1).ravel()
    best = points[medians.argmax()].items()
    best = ", ".join(f"{TITLES[name]} {value:g}" for name, value in best)
    print(f"the best  {best}: median return {medians.max():.0f}")
    print(f"picture   {out / 'sweep.png'}\nreturns   {out / 'metrics.jsonl'}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__.partition("\n")[0]))
