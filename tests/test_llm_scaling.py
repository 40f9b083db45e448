"""What docs/scaling.md says of a device's share, held small: by the CPU's compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The table of the benchmark, by mesh."""
    out = tmp_path_factory.mktemp("scaling")
    command = [sys.executable, ROOT / "benchmarks" / "scaling.py"]
    command += ["--quick", "--target=cpu", "--out", out]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    path = [ROOT, ROOT / "examples", env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run(
        list(map(str, command)),
        **{"env": env, "cwd": out, "text": True, "capture_output": True},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sampling" in (out / "scaling.md").read_text()
    return {row["mesh"]: row for row in json.loads((out / "scaling.json").read_text())}


MESHES = "fsdp=8", "fsdp=4,tensor=2"


@pytest.mark.parametrize("mesh", MESHES)
def test_the_state_is_spread_over_all_devices(rows, mesh):
    """All but norms, step counts and the batch: here a hundredth of it."""
    assert rows[mesh]["state"] < 1.01 / 8 * rows[""]["state"]


@pytest.mark.parametrize("mesh", MESHES)
def test_so_is_what_an_update_holds(rows, mesh):
    """Gradients and activations: an eighth, and what is whole while it is used.

    A layer's matrices and the head's: in bfloat16, in the float32 that CPUs multiply
    in, and their gradient.
    """
    layer = 256 * (4 + 2 + 2 + 4) * 64 + 3 * 256 * 1024
    whole = (2 + 4 + 4) * (layer + 1024 * 256) / 2**30
    assert rows[mesh]["update"] < rows[""]["update"] / 8 + whole


@pytest.mark.parametrize("mesh", ["", *MESHES])
def test_every_operation_is_done_once(rows, mesh):
    """And by hand: 10 for a parameter and a token, but for what is not recomputed."""
    row = rows[mesh]
    assert row["TFLOP"] == pytest.approx(row["by hand"], rel=1e-3)


def test_the_page_has_the_last_table():
    root = Path(__file__).parents[1]
    table = (root / "benchmarks/results/scaling.md").read_text().partition("\n\n")[2]
    assert table.strip() in (root / "docs/scaling.md").read_text("utf-8")
