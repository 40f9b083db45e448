"""What surrounds training on the host: options, progress, checkpoints, pictures."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from common import devices, folders, signals
from common.checkpoints import Checkpoints
from tqdm import tqdm

import jaxppo

from . import losses, pictures, sharding
from .environments import Environment
from .rollouts import Rollout
from .sharding import EVERYWHERE, OF_ENVS, OF_SEEDS
from .training import PPO, Run, Seen, trainer

# On a CPU most of a short run is compiling. What runs once need not run fast, and for
# networks this small LLVM's first level makes programs as fast as its last.
ONCE = {"xla_backend_optimization_level": 0}
OFTEN = {"xla_backend_optimization_level": 1}

SPREAD = Run(
    train=OF_SEEDS,
    playing=OF_ENVS,
    critic_memory=OF_ENVS,
    under_way=OF_ENVS,
    seen=Seen(obs=OF_SEEDS, discounted=OF_SEEDS, so_far=OF_ENVS),
    key=OF_SEEDS,
)
"""Where the arrays of several seeds' run lie on a mesh."""


def on_cpu(flags: dict[str, Any]) -> dict[str, Any]:
    """The compiler's flags, if it compiles for a CPU."""
    return flags if jax.default_backend() == "cpu" else {}


@dataclasses.dataclass(frozen=True)
class Options(folders.Options, PPO):
    """PPO's hyper-parameters, and those of the run."""

    seed: int = 0
    """Of everything random; the same seed on the same machine gives the same run."""
    seeds: int = 1
    """Independent runs, side by side; the picture shows median and quartiles."""
    num_evals: int = 24
    """How many times at least to evaluate, write metrics and save a checkpoint."""
    mesh: str = ""
    """Devices, such as seeds=2,envs=4; one if not given."""


Chosen = TypeVar("Chosen", bound=Options)


def parse(default: Chosen, doc: str) -> Chosen:
    """The command line's options; joins the other processes, if there are any."""
    options = folders.parse(default, doc)
    if options.system != default.system:
        options = losses.as_in(options.system, options, default)
    devices.join(options.coordinator, options.processes, options.process)
    return options


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
    mesh = devices.mesh(options.mesh, sharding.AXES)
    on_mesh = jax.set_mesh(mesh) if mesh is not None else nullcontext()
    with devices.together(), on_mesh:
        sharding.check(options.seeds, options.num_envs)
        return _train(name, env, options, goal)


def _train(name: str, env: Environment, options: Options, goal: float) -> np.ndarray:
    main = jax.process_index() == 0  # the others compute, and are silent
    out = folders.folder(name, options)
    per_eval = max(1, options.num_updates // options.num_evals)
    steps_per_update = options.num_envs * options.num_steps
    num_updates = per_eval * max(1, options.num_updates // per_eval)
    options = dataclasses.replace(options, total_steps=num_updates * steps_per_update)
    init, advance, evaluate, watch = _compiled(env, options, per_eval)

    eval_key, train_key = jax.random.split(jax.random.key(options.seed))
    run = init(jax.random.split(train_key, options.seeds))
    checkpoints = Checkpoints(out / "checkpoints", folders.config(options))
    done = 0
    if options.resume and (restored := checkpoints.restore(run)):
        done, run = restored
    rows = folders.rewind(out, "step", done) if main else []

    bar = tqdm(
        total=options.seeds * options.total_steps,
        initial=options.seeds * done,
        desc=name,
        unit=" steps",
        unit_scale=True,
        disable=not main,
    )
    bar.set_postfix_str("compiling")
    start = time.perf_counter() - (rows[-1]["seconds"] if rows else 0)
    with signals.held() as asked, bar:
        while done < options.total_steps:
            run, metrics = advance(run)
            done += per_eval * steps_per_update
            returns = evaluate(run, jax.random.fold_in(eval_key, done))
            row = {"step": done, "seconds": round(time.perf_counter() - start, 3)}
            row |= {"eval_return": np.mean(returns, 1).tolist()} | _row(metrics)
            if main:
                # Metrics first: a checkpoint never stands without the rows before it.
                rows.append(row)
                folders.append(out, row)
            jaxppo.check_progress(run.train)
            _check_environment(row)
            checkpoints.save(done, run)
            bar.set_postfix_str(f"return {np.median(row['eval_return']):.1f}")
            bar.update(options.seeds * per_eval * steps_per_update)
            if done < options.total_steps and (came := asked()):
                signals.leave(came, out)
    checkpoints.close()

    returns = np.asarray(evaluate(run, jax.random.fold_in(eval_key, 0)))
    shown = []
    if name in pictures.DRAWN:
        before = init(jax.random.split(train_key, options.seeds))
        shown = [_episode(watch(x, eval_key)) for x in (before, run)]
    if not main:
        return returns
    for seed, mean in enumerate(returns.mean(1)):
        print(f"seed {seed}: mean return {mean:.1f} over 100 fresh episodes")
    if rows:  # a resumed run may have lost its metrics
        with folders.writing(out / "curve.png"):
            pictures.curve(name, rows, goal, out / "curve.png")
    print(f"learning curve {out / 'curve.png'}\nmetrics        {out / 'metrics.jsonl'}")
    if shown:
        with folders.writing(out / "episode.gif"):
            pictures.episodes(name, shown[0], shown[1], out / "episode.gif")
        print(f"an episode     {out / 'episode.gif'}: before and after")
    return returns


def _row(metrics: dict[str, jaxppo.Metric]) -> dict[str, Any]:
    """A line of metrics, each of every seed."""
    row = {k: v.tolist() for k, v in jaxppo.finalize(metrics).items()}
    for kind in ("episode_return", "episode_length"):
        mean = metrics[kind]
        assert isinstance(mean, jaxppo.Mean)
        ended = np.asarray(mean.count) > 0  # none did: there is no mean
        pairs = zip(row[kind], ended, strict=True)
        row[kind] = [x if some else None for x, some in pairs]
    return row


def _check_environment(row: dict[str, Any]) -> None:
    """Ends a run that has nothing left to learn from."""
    for seed, left_out in enumerate(row["left_out"]):
        if left_out == 1:
            raise FloatingPointError(
                f"seed {seed}: not one step since the last evaluation had finite "
                "observations and rewards. Look at the environment; metrics.jsonl has "
                "the share of such steps as left_out."
            )


def _compiled(env: Environment, options: Options, updates: int) -> tuple[Callable, ...]:
    """`init`, `advance` and `evaluate` over all seeds, `watch` of the first."""
    one = trainer(env, options)
    update = jax.vmap(one.update, spmd_axis_name="seeds")
    on_mesh = not jax.sharding.get_abstract_mesh().empty
    spread, everywhere = (SPREAD, EVERYWHERE) if on_mesh else (None, None)
    once = partial(jax.jit, compiler_options=on_cpu(ONCE))
    often = partial(jax.jit, compiler_options=on_cpu(OFTEN))

    def advance(run: Run) -> tuple[Run, dict[str, jaxppo.Metric]]:
        run, metrics = jax.lax.scan(
            lambda run, _: update(run), run, None, length=updates
        )
        is_metric = lambda x: isinstance(x, jaxppo.Metric)
        return run, jax.tree.map(lambda m: m.reduce(), metrics, is_leaf=is_metric)

    def watch(run: Run, key: jax.Array) -> Rollout:
        return one.watch(jax.tree.map(lambda x: x[0], run), key)

    def evaluate(run: Run, key: jax.Array) -> jax.Array:
        return jax.vmap(one.evaluate)(run, jax.random.split(key, options.seeds))

    return (
        # Not vmapped: batches of LAPACK's QR, which makes orthogonal matrices, wait for
        # each other for ever on machines of few cores (jaxlib 0.10's ParallelBatchMap).
        once(partial(jax.lax.map, one.init), out_shardings=spread),
        often(
            advance,
            donate_argnums=0,
            out_shardings=(spread, everywhere) if on_mesh else None,
        ),
        often(evaluate, out_shardings=everywhere),
        once(watch, out_shardings=everywhere),
    )


def _episode(rollout: Rollout) -> np.ndarray:
    """What the first episode looked like, step by step."""
    ended = np.asarray(rollout.terminated | rollout.truncated)[0]
    length = int(ended.argmax()) + 1 if ended.any() else len(ended)
    return np.asarray(rollout.obs)[0, :length]
