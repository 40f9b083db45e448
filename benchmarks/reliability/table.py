"""The programme R1 to R14, as one table: what was asked for, and what was measured.

    python benchmarks/reliability/table.py

Reads `benchmarks/results/`: what the other scripts here left, or the command that a
file names. Measures the one thing that takes seconds: what checking arguments adds to
a trace.
"""

import cProfile
import json
import pathlib
import pstats
import sys
import time
from typing import Any

sys.path.extend(
    str(pathlib.Path(__file__).parents[2] / part) for part in ("benchmarks", "tests")
)
import jax
import jax.numpy as jnp
import measure
import numpy as np

import jaxppo

RESULTS = pathlib.Path(__file__).parents[1] / "results"


def main() -> None:
    """Print it, and leave it as a file."""
    found = measured()
    rows = [
        {"": name, "what": what, "asked for": asked, "here": here(found)}
        for name, (what, asked, here) in PROGRAMME.items()
    ]
    table = measure.table(rows, rows[0])
    print(table)
    (RESULTS / "reliability.md").write_text(f"{table}\n", "utf-8")


def measured() -> dict[str, Any]:
    """What the other scripts left, by its name."""
    return {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}


def laws(found: dict[str, Any]) -> str:
    if "laws" not in found:
        return NOTHING
    of = found["laws"]
    return f"{of['examples']:,}, float32 under `jit`, {of['failed']} failed: {LAWS}"


def values(found: dict[str, Any]) -> str:
    if "values" not in found:
        return NOTHING
    total, worst = (found["values"][k] for k in ("total", "worst"))
    wide, narrow, slope = (
        f"{worst[k]:.1g}"
        for k in ("value error, f64", "value error, f32", "gradient error")
    )
    return (
        f"{total['cases']:,}: values to {wide} (float64) and {narrow} (float32), "
        f"gradients to {slope}"
    )


def calls(found: dict[str, Any]) -> str:
    if "calls" not in found:
        return NOTHING
    counts = found["calls"]["outcomes"]
    shown = ("right", "error", "not finite", "wrong", "unclear", "hang", "crash")
    kinds = ", ".join(f"{counts.get(k, 0):,} {k}" for k in shown)
    return f"{found['calls']['calls']:,}: {kinds}"


def mutants(found: dict[str, Any]) -> str:
    if "mutation" not in found:
        return NOTHING
    total = found["mutation"]["total"]
    return (
        f"{total['mutants']} drawn: {total['score']} % raw, {total['without']} % "
        f"without the {total['argued']} argued in survivors.txt; "
        "[of which draw](mutation.md)"
    )


def coverage(found: dict[str, Any]) -> str:
    if "coverage" not in found:
        return NOTHING
    of = found["coverage"]
    return (
        f"{of['covered_branches']:,} of {of['num_branches']:,} branches, "
        f"{of['covered_lines']:,} of {of['num_statements']:,} lines"
    )


def survived(found: dict[str, Any]) -> str:
    if "survival" not in found:
        return NOTHING
    tried, whole = (
        sum(row[k] for row in found["survival"]) for k in ("tried", "survived")
    )
    most = max(row["most"] or 0 for row in found["survival"])
    return f"{tried} faults, {whole} survived, at most {most} lines of metrics lost"


def files(found: dict[str, Any]) -> str:
    if "readers" not in found:
        return NOTHING
    of = found["readers"]
    return (
        f"{of['inputs']:,}, {of['bad']} bad; at most {of['peak_times_size']:.0f} times "
        "the file's size"
    )


def soak(found: dict[str, Any]) -> str:
    if "soak" not in found:
        return NOTHING
    updates, saves = found["soak"]
    last = lambda of: f"{of['looks']['at'][-1]:,}"

    def grown(of: dict[str, Any]) -> float:
        """Bytes a step, settled."""
        at, mib = (np.array(of["looks"][k], float) for k in ("at", "MiB"))
        late = at > 0.2 * at[-1]  # as in soak.py
        return np.polyfit(at[late], mib[late], 1)[0] * 2**20

    return (
        f"{last(updates)} updates, {grown(updates):.1g} bytes more each; "
        f"{last(saves)} checkpoints, {grown(saves) / 1000:.0f} kB more each, which "
        "Orbax keeps: [the table](soak.md)"
    )


def elsewhere(found: dict[str, Any]) -> str:
    if "platforms" not in found:
        return NOTHING
    again = found["platforms"][1]
    same = f"{again['same bits as usual']} of {again['arrays']}"
    return f"again, bit for bit: {same} arrays; others: [the table](platforms.md)"


def checks(found: dict[str, Any]) -> str:
    """Of the time that tracing takes, with its gradient."""
    x = jnp.zeros((4, 7))
    loss = lambda x: jaxppo.ppo_loss(x, x, x, jnp.ones(x.shape, bool))[0].value
    jax.make_jaxpr(jax.grad(loss))(x)
    profile = cProfile.Profile(time.process_time)
    for _ in range(20):
        fresh = lambda x: loss(x)
        profile.runcall(jax.make_jaxpr(jax.grad(fresh)), x)
    stats: Any = pstats.Stats(profile)
    checks = lambda function: "jaxppo/_checks" in function[0]
    inside, work = 0.0, 0.0
    for function, (*_, callers) in stats.stats.items():
        for caller, (*_, seconds) in callers.items():
            inside += seconds * (checks(function) and not checks(caller))
            work += seconds * (checks(caller) and "/jax/" in function[0])
    of = lambda seconds: f"{100 * seconds / stats.total_tt:.0f} %"
    return (
        f"{of(inside - work)} of a trace of ppo_loss; {of(inside)} with its casts and "
        "masking"
    )


NOTHING = "not measured yet"
TESTS = "python3 run.py test tests/"
LAWS = f"`JAXPPO_EXAMPLES=1000 {TESTS}test_laws.py tests/test_properties.py`"
PROGRAMME = {
    "R1": ("properties, by generated examples", "2e5, no failure", laws),
    "R2": ("values and gradients against a loop in float64", "1e6", values),
    "R3": (
        "gradients against differences in float64",
        "every public function, to 1e-6",
        lambda _: f"all that have one, strictly: `{TESTS}test_gradients.py`",
    ),
    "R4": (
        "gradients against torch's of verl, TRL, OpenRLHF, ...",
        "12 systems, to 1e-6",
        lambda _: (
            "212 recorded outputs of 14 systems, 160 of them with a gradient, to 1e-5; "
            "`python3 run.py test-live` against the packages, on fresh inputs"
        ),
    ),
    "R5": (
        "hostile inputs, by function, dtype and transformation",
        "1000 cells, none bad",
        lambda _: f"`{TESTS}faults/test_numeric.py`",
    ),
    "R6": ("odd calls", "1e5, none silently wrong", calls),
    "R7": (
        "devices and microbatches against one piece",
        "equal",
        lambda _: f"`{TESTS}test_invariance.py`, `{TESTS}test_head_sharding.py`",
    ),
    "R8": (
        "laws: padding, order, empty rows, halves, scale, limits",
        "every function",
        lambda _: f"`{TESTS}test_laws.py`",
    ),
    "R9": ("mutants that the tests kill", ">= 97 %", mutants),
    "R10": ("faults of runs", "all survived", survived),
    "R11": ("the same seed twice", "the same bits", elsewhere),
    "R12": ("damaged files", "1e6, clear errors alone", files),
    "R13": ("the checks' share of a trace", "at most 20 %", checks),
    "R14": ("branches that tests run", "100 %", coverage),
    "": ("a long run", "no growth", soak),
}


if __name__ == "__main__":
    main()
