"""Up to a million values and gradients against the oracles, in float64 and float32.

    python benchmarks/reliability/values.py --minutes 48 --seed 1  # half a million
    python benchmarks/reliability/values.py --quick  # a few seconds

Of every function that is differentiated: random batches, many at a time by `vmap`,
their values against the float64 loops of `tests/oracles.py`, and their gradients along
a random direction against differences of these (Richardson's, good to 1e-9). Where the
differences of two step sizes disagree there is a kink between them, and the gradient is
left out, and counted. Leaves values.json and values.md.
"""

import dataclasses
import pathlib
import sys
import time
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import contract
import jax
import jax.numpy as jnp
import measure
from cases import ARRAYS, Case, cast, is_floating

STEP = 1e-4
CHUNK = 64  # cases at a time
# An integral or a whole vocabulary each: a share of the others' time.
SLOW = {"tanh_normal": 0.05, "token_log_probs": 0.1, "head_kl": 0.05, "kl_k3": 0.3}


@dataclasses.dataclass(frozen=True)
class Options:
    """How many."""

    cases: int = 1_000_000
    """Values, and gradients, of all functions together."""
    minutes: float = 10.0
    """After which it stops, and says how many there were."""
    seed: int = 0
    """Of the batches."""
    quick: bool = False
    """Only see that it works."""
    out: pathlib.Path = pathlib.Path("runs/values")
    """Folder for the tables."""


def main(o: Options) -> None:
    """Compare, function by function, for as long as there is time."""
    if o.quick:
        o = dataclasses.replace(o, cases=500, minutes=1.0)
    o.out.mkdir(parents=True, exist_ok=True)
    rows, start = [], time.monotonic()
    share = {c: SLOW.get(c.fn.__name__, 1.0) for c in ARRAYS if c.grads}
    with tqdm(total=len(share), unit=" functions") as bar:
        for k, case in enumerate(share):
            bar.set_postfix_str(str(case))
            left = 60 * o.minutes - (time.monotonic() - start)
            count = int(o.cases * share[case] / sum(share.values()))
            rows.append(compared(case, count, left / (len(share) - k), o.seed))
            bar.update()
    worst = {k: max(row[k] for row in rows) for k in rows[0] if "error" in k}
    total = {k: sum(row[k] for row in rows) for k in ("cases", "at a kink")}
    table = measure.table([*rows, {"of": "all", **total, **worst}], rows[0])
    text = (
        f"jaxppo against float64 loops, seed {o.seed}.\n{measure.machine()}.\n\n{table}"
    )
    print(text)
    results = dict(total=total, worst=worst, functions=rows)
    print("written:", *measure.write(o.out, "values", text, results))


def compared(case: Case, count: int, seconds: float, seed: int) -> dict[str, Any]:
    """The largest errors over as many batches as the time allows, at least a chunk."""
    errors = {"value error, f64": 0.0, "value error, f32": 0.0, "gradient error": 0.0}
    done = kinks = 0
    end = time.monotonic() + seconds
    run = programs(case)
    while done == 0 or (done < count and time.monotonic() < end):
        batches = [case.inputs([seed, done + i]) for i in range(CHUNK)]
        along = [direction(case, b, done + i) for i, b in enumerate(batches)]
        out = run(batches, along)
        for i, (inputs, way) in enumerate(zip(batches, along, strict=True)):
            wide, narrow, slope = (jax.tree.map(lambda x, i=i: x[i], x) for x in out)
            with np.errstate(all="ignore"):
                want = case.oracle(**inputs)
                want32 = case.oracle(**cast(inputs, np.float32))
                steps = differences(case, inputs, way)
            found = off(wide, want), off(narrow, want32)
            size = max(1.0, abs(steps[0]))
            if abs(steps[0] - steps[1]) > 1e-7 * size:
                kinks += 1
            else:
                found = *found, abs(slope - steps[0]) / size
            errors = {k: max(x, y) for (k, x), y in zip_some(errors, found)}
        done += CHUNK
    return {"of": str(case), "cases": done, "at a kink": kinks, **errors}


def zip_some(errors: dict[str, float], found: Any) -> Any:
    """Each with what was found of it, or 0."""
    return zip(errors.items(), (*found, 0.0), strict=False)


def direction(case: Case, inputs: dict[str, Any], seed: int) -> dict[str, Any]:
    """To move in; not through what is constant, infinite or 0."""
    rng = np.random.default_rng([seed, 1])
    free = lambda x: np.isfinite(x) & (x != 0)
    return {
        k: np.where(free(inputs[k]), rng.normal(size=inputs[k].shape), 0)
        for k in case.grads.split()
    }


def programs(case: Case) -> Any:
    """Values in float64 and float32, and the slope along the direction, compiled."""

    def one(inputs: Any, along: Any) -> Any:
        floats = {k: x for k, x in inputs.items() if k in along}
        mixed = lambda moved: contract.cases.mix(
            case.differentiated(case(**{**inputs, **moved}))
        )
        grads = jax.grad(mixed)(floats)
        return case(**inputs), sum(jnp.vdot(grads[k], along[k]) for k in along)

    each = jax.jit(jax.vmap(one))
    value = jax.jit(jax.vmap(lambda inputs: case(**inputs)))

    def run(batches: Any, along: Any) -> Any:
        stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)
        inputs = stack(batches)
        narrow = value({k: half(x) for k, x in inputs.items()})
        with jax.enable_x64(True):
            wide, slope = each(inputs, stack(along))
        return jax.tree.map(np.asarray, (wide, narrow, slope))

    return run


def half(x: np.ndarray) -> np.ndarray:
    """Half as wide, of 64 bits."""
    if is_floating(x):
        return x.astype(np.float32)
    return x.astype(np.int32) if x.dtype == np.int64 else x


def differences(case: Case, inputs: Any, along: Any) -> tuple[float, float]:
    """The oracle's slope along a direction, by steps h of STEP and of half of it.

    Each is good to h^4 of its fifth derivative.
    """

    def at(step: float) -> float:
        moved = {k: inputs[k] + step * along[k] for k in along}
        out = case.oracle_slope(**{**inputs, **moved})
        return float(contract.cases.mix(jax.tree.map(np.float64, out)))

    halved, one, two = (at(s) - at(-s) for s in (STEP / 2, STEP, 2 * STEP))
    return (8 * one - two) / (12 * STEP), (8 * halved - one) / (6 * STEP)


def off(got: Any, want: Any) -> float:
    """The largest difference, relative to each output's largest entry."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.float64(x), np.float64(y).reshape(np.shape(x))
        sound = np.isfinite(y)
        scale = np.max(np.abs(y), initial=1, where=sound)
        worst = max(worst, np.max(np.abs(x - y), initial=0, where=sound) / scale)
    return float(worst)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
