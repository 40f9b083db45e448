"""A hundred thousand odd calls: each ends in the right answer or in a clear error.

    python benchmarks/reliability/calls.py          # twenty minutes of one core
    python benchmarks/reliability/calls.py --quick  # a few seconds

Every public function is called with shapes, dtypes, masks, numbers and names that may
or may not fit (`odd.py`). Whether a call is good is decided by what the documentation
says, and the answer by the oracles, in float64 (`contract.py`): a call that is good
but gives another answer, or is not good but gives one, is silently wrong. Calls run in
a process of their own, so that a crash or a hang is counted, too. Every call can be
made again from the seed and its number. Leaves calls.json and calls.md.
"""

import collections
import dataclasses
import json
import multiprocessing
import pathlib
import sys
import warnings
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import measure

OUTCOMES = {
    "right": "the oracle's answer",
    "error": "a clear error: it names the function and the argument",
    "not finite": "inf or NaN in sight, where float64 has a number",
    "unclear": "another error",
    "refused": "an error, though the call is good",
    "wrong": "silently: another answer, or one where there is none",
    "unjudged": "a fault of this benchmark",
    "hang": "not a word in 90 seconds",
    "crash": "of the interpreter",
}
BAD = ("unclear", "refused", "wrong", "unjudged", "hang", "crash")
PATIENCE = 90  # seconds without a word: compiling takes a few


@dataclasses.dataclass(frozen=True)
class Options:
    """How many."""

    calls: int = 100_000
    """To make."""
    seed: int = 0
    """Of them all; a call is drawn from it and from its number."""
    first: int = 0
    """The number to begin at, to make a call again."""
    quick: bool = False
    """Only see that it works."""
    out: pathlib.Path = pathlib.Path("runs/calls")
    """Folder for the tables."""


def main(o: Options) -> None:
    """Make the calls, count their outcomes, and say which were bad."""
    if o.quick:
        o = dataclasses.replace(o, calls=300)
    o.out.mkdir(parents=True, exist_ok=True)
    log = o.out / "calls.jsonl"  # an interrupted run goes on from it
    found = [json.loads(x) for x in log.open()] if log.exists() else []
    left = dataclasses.replace(
        o, first=o.first + len(found), calls=o.calls - len(found)
    )
    with log.open("a", 1) as file, tqdm(total=left.calls, unit=" calls") as bar:
        for outcome in outcomes(left):
            found.append(outcome)
            file.write(json.dumps(outcome) + "\n")
            bar.update()
    bad = [x for x in found if x["outcome"] in BAD]
    counts = collections.Counter(x["outcome"] for x in found)
    by_kind, by_function = (counted(found, by) for by in ("kind", "function"))
    rows = [*by_kind, {"odd": "all", "calls": len(found), **nonzero(counts)}]
    table = measure.table(rows, ["odd", "calls", *OUTCOMES])
    functions = len(by_function)
    text = (
        f"{len(found):,} calls of {functions} public functions of jaxppo, seed "
        f"{o.seed}; {counts['wrong']} silently wrong, {counts['hang']} hangs, "
        f"{counts['crash']} crashes.\n{measure.machine()}.\n\n{table}\n"
    )
    text += "".join(f"\n- {name}: {what}" for name, what in OUTCOMES.items())
    print(text)
    for x in bad[:50]:
        print(*(x[k] for k in ("outcome", "index", "function", "kind", "detail")))
    results = dict(calls=len(found), seed=o.seed, functions=functions, outcomes=counts)
    results |= dict(by_kind=by_kind, by_function=by_function, bad=bad[:100])
    print("written:", *measure.write(o.out, "calls", text, results))


def counted(found: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Rows of a table: how often each outcome."""
    rows = []
    for name in sorted({x[by] for x in found}):
        of = collections.Counter(x["outcome"] for x in found if x[by] == name)
        rows.append({"odd" if by == "kind" else by: name, "calls": of.total(), **of})
    return rows


def nonzero(counts: dict[str, int]) -> dict[str, int]:
    """With a 0 for what never happened."""
    return {k: counts.get(k, 0) for k in OUTCOMES}


# --- in another process, which may die ---


def outcomes(o: Options) -> Any:
    """One after the other, from workers that are replaced when they die or hang."""
    context = multiprocessing.get_context("spawn")
    at, end = o.first, o.first + o.calls
    while at < end:
        ours, theirs = context.Pipe()
        worker = context.Process(target=work, args=(theirs, o.seed, at, end))
        worker.start()
        theirs.close()
        try:
            while at < end:
                if not ours.poll(PATIENCE):
                    yield lost(o.seed, at, "hang")
                    at += 1
                    break
                yield ours.recv()
                at += 1
        except EOFError:
            yield lost(o.seed, at, "crash")
            at += 1
        worker.kill()
        worker.join()


def work(connection: Any, seed: int, start: int, stop: int) -> None:
    """Make calls, and say of each how it ended."""
    for index in range(start, stop):
        try:
            connection.send(made(seed, index))
        except Exception as error:  # a fault of ours, not of the library
            connection.send(lost(seed, index, "unjudged") | {"detail": repr(error)})


def lost(seed: int, index: int, outcome: str) -> dict[str, Any]:
    """Of a call that has not come back."""
    return dict(
        index=index, seed=seed, function="?", kind="?", outcome=outcome, detail=""
    )


def made(seed: int, index: int) -> dict[str, Any]:
    """Draw a call, make it, and judge it."""
    import odd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = odd.draw(seed, index)
        outcome, detail = judged(call)
    return dict(
        index=index,
        function=call.name,
        kind=str(call.kind),
        outcome=outcome,
        detail=detail,
    )


# --- the verdict ---


def judged(call: Any) -> tuple[str, str]:
    """How a call ended, and what there is to say of it."""
    import contract
    import jax

    bad = call.touched if call.right else contract.offences(call.fn, call.given)
    try:
        out = jax.block_until_ready((call.run or call.fn)(**call.given))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if not bad:  # but for a reduction along a time that there is none of
            alone = not np.shape(call.given.get("log_probs", 0.0))
            clear = alone and "expected (*batch, time)" in said
            return ("error", "") if clear else ("refused", said[:300])
        names = [k for k in bad | call.touched if f"`{k}`" in said or f"'{k}'" in said]
        named = (f"{call.name}: ", f"{call.name}() ", *(f"{k}: " for k in call.touched))
        by = said.split(": ", 1)[1].startswith(named)
        names += [k for k in call.touched if f" {k}: " in said]
        clear = isinstance(error, (TypeError, ValueError)) and by and names
        return ("error", "") if clear else ("unclear", said[:300])
    if bad:
        return "wrong", f"took {sorted(bad)}"
    if call.right:
        return ("right", "") if call.right(out, call.given) else ("wrong", str(out))
    leaves = [np.asarray(x) for x in jax.tree.leaves(out)]
    if call.kind == "a NaN that counts":
        return nan_shows(leaves)
    expected = contract.answer(call.fn, call.clean)
    return agree(call, out, expected)


def nan_shows(leaves: list[np.ndarray]) -> tuple[str, str]:
    """In one of the outputs that can hold one."""
    floats = [x for x in leaves if x.dtype != bool]
    seen = not floats or any(np.any(np.isnan(np.float64(x))) for x in floats)
    return ("right", "") if seen else ("wrong", "the NaN is gone")


def agree(call: Any, out: Any, expected: Any) -> tuple[str, str]:
    """Entry by entry, up to what the rounding of the inputs changes of the answer."""
    import contract
    import jax

    got = [np.asarray(x, np.float64) for x in jax.tree.leaves(out)]
    if expected is None:  # the formula divides by nothing: then it is 0
        odd = np.isnan if call.name == "categorical" else np.isinf  # no such action
        zero = all(np.all((x == 0) | odd(x) | np.isinf(x)) for x in got)
        return ("right", "") if zero else ("wrong", "not 0 where nothing counts")
    want = [np.asarray(x) for x in jax.tree.leaves(expected)]
    if [x.size for x in got] != [x.size for x in want]:
        return "wrong", f"of sizes {[x.shape for x in got]}"
    want = [x.reshape(y.shape) for x, y in zip(want, got, strict=True)]
    slack = [0.0] * len(want)
    for attempt in range(2):
        least = call.name == "explained_variance"  # 1 less what is left
        off = [far(*x, least) for x in zip(got, want, slack, strict=True)]
        if not any(map(np.any, off)):
            return "right", ""
        if not attempt:
            slack = contract.moved(call.fn, call.clean, want)
    k = next(k for k, x in enumerate(off) if np.any(x))
    where = tuple(np.argwhere(off[k])[0])
    what = f"{got[k][where]} for {want[k][where]} at {where} of output {k}"
    hidden = any(np.any(x & np.isfinite(y)) for x, y in zip(off, got, strict=True))
    return "wrong" if hidden else "not finite", what


EPS, TINY, LARGE = 2.0**-23, 1e-36, 3e38


def far(got: np.ndarray, want: np.ndarray, slack: Any, least: float) -> np.ndarray:
    """Where two arrays differ by more than a hundred roundings of their largest."""
    size = np.abs(want)
    sound = np.isfinite(size) & (size < LARGE)
    scale = np.max(size, initial=least, where=sound)
    with np.errstate(all="ignore"):
        close = np.abs(got - want) <= 100 * EPS * scale + 8 * slack + TINY
        # Out of float32's reach: infinite, or as far as it goes.
        beyond = (np.sign(got) == np.sign(want)) & (np.abs(got) > 1e37)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return ~(same | np.where(sound, close, beyond) | np.isnan(slack))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
