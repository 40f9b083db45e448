"""Odd calls, a few of those that `benchmarks/reliability/calls.py` makes.

Each is decided by what the documentation says and by the oracles in float64.
"""

from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxppo

RELIABILITY = Path(__file__).parents[2] / "benchmarks/reliability"
# Shapes are the library's to check; promotion is as a user has it.
pytestmark = pytest.mark.usefixtures("unchecked", "relaxed")
CALLS, PARTS = 1500, 5


@pytest.fixture
def calls(monkeypatch):
    for folder in (RELIABILITY.parent, RELIABILITY):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("XLA_FLAGS", "")  # the benchmarks want one thread
    import calls
    import odd

    monkeypatch.setattr(odd, "SHAPES", [(3, 4)])  # the others take time to compile
    return calls


@pytest.mark.parametrize("part", range(PARTS))
def test_every_call_ends_in_the_answer_or_in_a_clear_error(calls, part):
    numbers = range(part, CALLS, PARTS)
    found = [calls.made(1, index) for index in numbers]
    bad = [x for x in found if x["outcome"] in calls.BAD]
    assert not bad, bad[:5]
    counts = Counter(x["outcome"] for x in found)
    assert min(counts["right"], counts["error"]) > len(numbers) / 5
    assert counts["not finite"] < len(numbers) / 100


PLANTED = {  # what is broken, and what it is broken into
    "a value": ("kl_k2", lambda fn: lambda log_ratio: 1.001 * fn(log_ratio)),
    "a shape": (
        "squared_value",
        lambda fn: lambda values, returns, mask=None: (values - returns) ** 2 / 2,
    ),
    "a message": (
        "binary_tv",
        lambda fn: (
            lambda log_probs, old_log_probs, mask=None: fn(
                *jax.numpy.broadcast_arrays(log_probs, old_log_probs), mask
            )
        ),
    ),
    "a mask": (
        "token_sum",
        lambda fn: lambda per_token, mask=None: fn(np.nan_to_num(per_token), None),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_broken_is_seen(calls, name, monkeypatch):
    import odd

    public, broken = PLANTED[name]
    good = getattr(jaxppo, public)
    bad = broken(good)
    bad.__name__ = public
    cases = [c for c in odd.ARRAYS if c.fn is good]
    monkeypatch.setattr(odd, "ARRAYS", cases)
    seen = Counter()
    for index in range(60):
        call = odd.draw(2, index)
        if call.fn is good:
            assert calls.judged(call)[0] not in calls.BAD, call
            outcome, _ = calls.judged(call._replace(run=bad))
            seen[outcome] += outcome in calls.BAD
    assert seen.total()
