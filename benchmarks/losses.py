"""Measure GAE and the whole PPO loss: jaxppo, verl's own code, and a copy of memory.

    python benchmarks/losses.py          # ten minutes
    python benchmarks/losses.py --quick

All values and gradients are checked against each other in the same run.
"""

import dataclasses
import functools
import logging
import pathlib
import sys
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import measure
import numpy as np
import tyro
from tqdm import tqdm

import jaxppo

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))

from parity.live import stubs

COEF = dict(clip_eps=0.2, value_clip_eps=0.5, entropy_coef=0.01, kl_coef=0.001)
GAE, OURS, COPY = (
    "jaxppo.gae and whiten",
    "jaxppo.ppo_loss",
    "x + 1 of inputs",
)
NAMES = [
    *("log_probs", "old_log_probs", "advantages", "mask", "values", "old_values"),
    *("returns", "entropy", "ref_log_probs"),
]
WRT = ("log_probs", "values", "entropy")  # what has a gradient
METRICS = {
    OURS: None,
    "with three metrics, as verl": (
        "approx_kl_k1",
        "clip_fraction",
        "clip_fraction_lower",
    ),
    "with one metric": ("clip_fraction",),
}


def draw(rows: int, time: int) -> dict[str, jax.Array]:
    """Ragged sequences, log-ratios of 0.1."""
    keys = iter(jax.random.split(jax.random.key(0), len(NAMES) + 1))
    normal = lambda: jax.random.normal(next(keys), (rows, time))
    old = -1 + 0.3 * normal()
    length = jax.random.randint(next(keys), (rows, 1), time // 2, time + 1)
    values = normal()
    return {
        "log_probs": old + 0.1 * normal(),
        "old_log_probs": old,
        "advantages": normal(),
        "mask": jnp.arange(time) < length,
        "values": values + 0.5 * normal(),
        "old_values": values,
        "returns": normal(),
        "entropy": jnp.abs(normal()),
        "ref_log_probs": old + 0.1 * normal(),
    }


def alone(rewards, values, mask):
    """Advantages and returns."""
    return jaxppo.gae(rewards, values, 0.99, lambda_=0.95, mask=mask)


def estimate(rewards, values, mask):
    """As verl's function does: advantages whitened, too."""
    out = alone(rewards, values, mask)
    return jaxppo.whiten(out.advantages, mask, ddof=1), out.returns


def in_rounds(rewards, values, mask):
    """The form for accelerators, wherever this runs; in one scan, the other."""
    chosen = lambda *args, default, cpu: default(*args)
    with mock.patch.object(jax.lax, "platform_dependent", chosen):
        return estimate(rewards, values, mask)


ALONE = "jaxppo.gae alone"
FORMS = {GAE: estimate, ALONE: alone, "both, in log2(time) rounds": in_rounds}


def loss(differentiated, rest):
    """Policy, value, entropy and KL terms, and every metric."""
    b = rest | differentiated
    out, metrics = jaxppo.ppo_loss(**b, **COEF, value_coef=1.0)  # verl's has the half
    return out.value, jaxppo.finalize(metrics)


def step(metrics: tuple[str, ...] | None, differentiated, rest):
    """Value, gradients and metrics: some, or (None) all; the others go unused."""
    (value, found), grads = jax.value_and_grad(loss, has_aux=True)(differentiated, rest)
    return (value, {name: found[name] for name in metrics or found}), grads


def verl() -> tuple[Callable, Callable]:
    """verl's advantages; its actor's and critic's losses, put together as it does."""
    with stubs.stubbed():
        import torch
        from verl.trainer.ppo import core_algos as core
        from verl.workers.config import actor

    torch.set_num_threads(1)
    config = actor.ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1
    )

    def advantages(rewards, values, mask):
        return core.compute_gae_advantage_return(rewards, values, mask, 0.99, 0.95)

    def whole(b):
        policy, metrics = core.compute_policy_loss_vanilla(
            *(b["old_log_probs"], b["log_probs"], b["advantages"], b["mask"]),
            config=config,
        )
        mean = lambda x: core.agg_loss(x, b["mask"], "token-mean")
        kl = mean(core.kl_penalty(b["log_probs"], b["ref_log_probs"], "low_var_kl"))
        value, _ = core.compute_value_loss(
            *(b["values"], b["returns"], b["old_values"], b["mask"]),
            COEF["value_clip_eps"],
        )
        entropy = mean(b["entropy"])
        total = policy + value - COEF["entropy_coef"] * entropy + COEF["kl_coef"] * kl
        return total, metrics

    return advantages, whole


def gae(rows: int, time: int, rounds: int, bar, core) -> list[dict]:
    """The table of advantages."""
    b = draw(rows, time)
    arrays = b["returns"], b["values"], b["mask"]
    calls = {
        name: functools.partial(jax.jit(f).lower(*arrays).compile(), *arrays)
        for name, f in FORMS.items()
    }
    if core:
        calls["verl's, in a loop"] = functools.partial(core[0], *map(tensor, arrays))
    bar.total += rounds * len(calls)
    counts = lambda out: [np.asarray(x)[np.asarray(b["mask"])] for x in out]
    known, times = counts(calls[GAE]()), measure.race(calls, rounds, bar)
    off = lambda call: map(measure.difference, counts(call()), known)
    return [
        {
            "method": name,
            "x jaxppo": times[name] / times[GAE],
            "off by": None if name == ALONE else max(off(call)),
            "seconds": times[name],
        }
        for name, call in calls.items()
    ]


def whole_loss(rows: int, time: int, rounds: int, bar, core) -> list[dict]:
    """The table of the loss."""
    b = draw(rows, time)
    ends = {name: b[name] for name in WRT}
    rest = {name: x for name, x in b.items() if name not in WRT}
    compiled = lambda f: jax.jit(f).lower(ends, rest).compile()
    calls = {
        name: functools.partial(compiled(functools.partial(step, metrics)), ends, rest)
        for name, metrics in METRICS.items()
    }
    copy = jax.jit(lambda b: jax.tree.map(lambda x: x + 1, b)).lower(b).compile()
    calls[COPY] = functools.partial(copy, b)
    theirs = torch_steps(core[1], b) if core else {}
    bar.total += rounds * len(calls | theirs)
    (known, _), grads = calls[OURS]()
    found = {}
    for name, call in theirs.items():
        try:
            value, their_grads = call()
        except Exception as why:  # no compiler, say
            bar.write(f"Without {name}: {type(why).__name__}: {str(why)[:200]}")
            continue
        off = [abs(float(value) / float(known) - 1)]
        off += map(measure.difference, numpy(their_grads), grads.values())
        calls[name], found[name] = call, max(off)
    times = measure.race(calls, rounds, bar)
    return [
        {
            "method": name,
            "x copies": times[name] / times[COPY],
            "x jaxppo": times[name] / times[OURS],
            "off by": found.get(name),
            "seconds": times[name],
        }
        for name in calls
    ]


def torch_steps(whole: Callable, b: dict) -> dict[str, Callable]:
    """Value and gradients, eager and compiled."""
    import torch

    b = {name: tensor(x) for name, x in b.items()}
    for name in WRT:
        b[name].requires_grad_()
    compiled = torch.compile(whole)

    def run(f):
        value, _ = f(b)
        grads = torch.autograd.grad(value, [b[name] for name in sorted(WRT)])
        return value.detach(), grads

    return {
        "verl, eager": functools.partial(run, whole),
        "verl, torch.compile": functools.partial(run, compiled),
    }


def tensor(x):
    """Of an array; a mask as verl has it."""
    import torch

    x = torch.from_numpy(np.array(x))
    return x.float() if x.dtype == torch.bool else x


def numpy(xs):
    """Of tensors or arrays."""
    return [np.asarray(x) for x in xs]


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and where to write it."""

    out: pathlib.Path = pathlib.Path("runs/benchmarks/losses")
    """Folder of the tables."""
    quick: bool = False
    """Small sizes: to see that it works, not for the numbers."""
    rounds: int = 5
    """Turns of each; the best counts."""


def main(options: Options) -> None:
    """Three tables."""
    options.out.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)  # torch.compile's, of verl's `.item()`
    try:
        core = verl()
    except Exception as why:  # of any kind: its imports do as they please
        core = None
        print(f"Without verl: {type(why).__name__}: {why}")
    sizes = [(64, 256)] if options.quick else [(256, 1024), (256, 8192)]
    time = 1024 if options.quick else 32_768
    text, results = [f"{measure.machine()}; best of {options.rounds} rounds."], {}
    with tqdm(total=0, unit="turn") as bar:
        shared = options.rounds, bar, core
        tables = {f"GAE, B = 8, T = {time}": functools.partial(gae, 8, time, *shared)}
        for rows, time in sizes:
            title = f"PPO loss, value and gradient, B = {rows}, T = {time}"
            tables[title] = functools.partial(whole_loss, rows, time, *shared)
        for title, make in tables.items():
            results[title] = make()
    for title, rows in results.items():
        columns = [c for c in rows[0] if c != "seconds"]
        text.append(f"\n{title}\n\n{measure.table(rows, columns)}")
    print("\n".join(text))
    made = measure.write(options.out, "losses", "\n".join(text), results)
    print("Written:", *made, sep="\n  ")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
