"""What surrounds training on the host: options, progress, checkpoints, pictures."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import folders
from common.checkpoints import Checkpoints
from tqdm import tqdm

import jaxppo

from .environments import Environment
from .training import PPO, Run, trainer


@dataclasses.dataclass(frozen=True)
class Options(PPO):
    """PPO's hyper-parameters, and those of the run."""

    seed: int = 0
    """Of everything random; the same seed on the same machine gives the same run."""
    seeds: int = 1
    """Independent runs, side by side; the picture shows median and quartiles."""
    num_evals: int = 24
    """How many times at least to evaluate, write metrics and save a checkpoint."""
    out: Path | None = None
    """Folder for everything written; made from the time if not given."""
    resume: Path | None = None
    """Folder of a run to continue, exactly, from its last checkpoint."""


def train(name: str, env: Environment, options: Options, goal: float) -> np.ndarray:
    """Train, showing progress; leaves metrics, picture and checkpoints in a folder.

    Args:
        name: for the folder and the picture's title.
        env: what to learn.
        options: all else.
        goal: the return to aim at, drawn in the picture.

    Returns:
        Returns of 100 fresh episodes of each seed after training, (seeds, 100).
    """
    out = folders.folder(name, options)
    print(f"writing to {out}/")
    per_eval = max(1, options.num_updates // options.num_evals)
    steps_per_update = options.num_envs * options.num_steps
    num_updates = per_eval * max(1, options.num_updates // per_eval)
    options = dataclasses.replace(options, total_steps=num_updates * steps_per_update)
    init, advance, evaluate = _compiled(env, options, per_eval)

    eval_key, train_key = jax.random.split(jax.random.key(options.seed))
    run = init(jax.random.split(train_key, options.seeds))
    checkpoints = Checkpoints(out / "checkpoints")
    done = 0
    if options.resume:
        restored = checkpoints.restore(run)
        if restored:
            done, run = restored
    rows = folders.rewind(out, "step", done)

    bar = tqdm(
        total=options.seeds * options.total_steps,
        initial=options.seeds * done,
        desc=name,
        unit=" steps",
        unit_scale=True,
    )
    bar.set_postfix_str("compiling")
    start = time.perf_counter() - (rows[-1]["seconds"] if rows else 0)
    while done < options.total_steps:
        run, metrics = advance(run)
        done += per_eval * steps_per_update
        returns = evaluate(run.train.params, jax.random.fold_in(eval_key, done))
        jaxppo.check_progress(run.train)
        row = {"step": done, "seconds": round(time.perf_counter() - start, 3)}
        row |= {"eval_return": np.mean(returns, 1).tolist()}
        row |= {k: v.tolist() for k, v in jaxppo.finalize(metrics).items()}
        rows.append(row)
        # Metrics first: a checkpoint never stands without the rows before it.
        folders.append(out, row)
        checkpoints.save(done, run)
        bar.set_postfix_str(f"return {np.median(row['eval_return']):.1f}")
        bar.update(options.seeds * per_eval * steps_per_update)
    bar.close()
    checkpoints.close()

    returns = np.asarray(evaluate(run.train.params, jax.random.fold_in(eval_key, 0)))
    for seed, mean in enumerate(returns.mean(1)):
        print(f"seed {seed}: mean return {mean:.1f} over 100 fresh episodes")
    draw(name, rows, goal, out / "curve.png")
    print(f"learning curve {out / 'curve.png'}\nmetrics        {out / 'metrics.jsonl'}")
    return returns


def _compiled(env: Environment, options: Options, updates: int) -> tuple[Callable, ...]:
    """`init`, `advance` and `evaluate` over all seeds."""
    one = trainer(env, options)

    def advance(run: Run) -> tuple[Run, dict[str, jaxppo.Metric]]:
        run, metrics = jax.lax.scan(
            lambda run, _: jax.vmap(one.update)(run), run, None, length=updates
        )
        is_metric = lambda x: isinstance(x, jaxppo.Metric)
        return run, jax.tree.map(lambda m: m.reduce(), metrics, is_leaf=is_metric)

    evaluate = jax.vmap(one.evaluate, (0, None))
    return (
        # Not vmapped: batches of LAPACK's QR, which makes orthogonal matrices, wait for
        # each other for ever on machines of few cores (jaxlib 0.10's ParallelBatchMap).
        jax.jit(partial(jax.lax.map, one.init)),
        jax.jit(advance, donate_argnums=0),
        jax.jit(evaluate),
    )


def draw(name: str, rows: list[dict[str, Any]], goal: float, path: Path) -> None:
    """The learning curve, and below it what tells a healthy run from a sick one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    health = ["approx_kl", "clip_fraction", "entropy", "explained_variance"]
    figure = plt.figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplot_mosaic("AAAA;BCDE", height_ratios=[3, 1])
    steps = [row["step"] for row in rows]
    for key, axis in zip(["eval_return", *health], axes.values(), strict=True):
        values = np.array([row[key] for row in rows])
        low, middle, high = np.percentile(values, [25, 50, 75], axis=1)
        axis.plot(steps, middle, color="tab:blue", lw=2 if key == "eval_return" else 1)
        axis.fill_between(steps, low, high, color="tab:blue", alpha=0.25, lw=0)
        axis.set_title(key.replace("_", " "), fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
        axis.grid(alpha=0.25)
    seeds = len(rows[0]["eval_return"])
    main = axes["A"]
    main.axhline(goal, color="tab:red", lw=1, ls="--")
    main.annotate(f"goal {goal:g}", (0, goal), color="tab:red", fontsize=9, va="bottom")
    main.set_title(
        f"{name}: mean return of 100 fresh episodes"
        + (f", median and quartiles of {seeds} seeds" if seeds > 1 else ""),
        loc="left",
    )
    main.set_xlabel("environment steps")
    figure.savefig(path, dpi=120)
    plt.close(figure)
