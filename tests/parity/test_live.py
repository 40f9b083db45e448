"""The same tables, against the systems themselves, on inputs drawn at every run.

Needs torch and the systems: `python3 run.py test-live` installs and runs it.
JAXPPO_LIVE_SEED repeats a run, whose seed is in the names of its tests.
"""

import functools
import os
import time

import pytest

pytest.importorskip("torch", reason="the live check needs torch and the systems")
pytest.importorskip("verl", reason="the live check needs the systems themselves")

from parity import comparison
from parity.live import inputs, systems

SEED = int(os.environ.get("JAXPPO_LIVE_SEED", time.time_ns() % 2**31))
SHAPES = [(8, 11, 4), (12, 16, 3), (6, 40, 2)]  # rows, time, group size
RUNS = [(SEED + i, *shape) for i, shape in enumerate(SHAPES)]
TOLERANCES = {"float32": comparison.TOLERANCE, "bfloat16": 2e-2}
NAMES = [
    name
    for name in [*comparison.LOSSES, *comparison.VALUES]
    if name.split("/")[0]
    in ("verl", "openrlhf", "trl", "liger", "areal", "torchrl", "tunix", "rlax")
]


@functools.cache
def reference(run):
    """What the systems compute, in float32."""
    return systems.reference(inputs.draw(*run))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_it_is_what_the_system_computes(run, name):
    live = reference(run)
    expected = live["outputs"][name]
    assert "error" not in expected, expected["error"]
    comparison.compare(name, expected, comparison.batch(live["inputs"]))
