"""The benchmarks run, small, without the peers, and leave their tables and pictures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LEFT = {
    "head": {"table.md", "table.json", "head_memory.png", "head_time.png"},
    "llm_step": {"llm_step.md", "llm_step.json", "llm_step.png", "llm_alone.json"},
    "llm_learning": {"llm_learning.md", "llm_learning.json", "llm_learning.png"},
    "losses": {"losses.md", "losses.json"},  # their values are checked in the run
}


@pytest.mark.parametrize("name", LEFT)
def test_runs(name, tmp_path):
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--quick", "--out", tmp_path]
    if name == "llm_learning":  # those that no other test runs from the command line
        command += ["--seeds", "1", "--algorithms", "dr_grpo", "gspo", "cispo"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    out = subprocess.run(
        list(map(str, command)),
        **{"env": env, "cwd": tmp_path, "text": True, "capture_output": True},
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert LEFT[name] <= {path.name for path in tmp_path.iterdir()}
    for table in tmp_path.glob("*.md"):
        assert "jaxppo" in table.read_text()
