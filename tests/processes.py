"""Examples as a user runs them: in processes of their own, killed and resumed."""

import json
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def start(environment, name, *args, cwd=None) -> subprocess.Popen:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *args]
    return subprocess.Popen(
        list(map(str, command)),
        **{"env": environment, "cwd": cwd, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    )


def run(environment, name, *args, code=0, cwd=None) -> str:
    process = start(environment, name, *args, cwd=cwd)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == code, out
    return out


def kill_at(environment, num_rows: int, delay: float, name, *args) -> None:
    """kill -9, so long after so many rows of metrics; `args` end with the folder."""
    out = Path(args[-1])
    process = start(environment, name, *args)
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").exists() or len(lines(out)) < num_rows:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -9


def lines(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def rows(out: Path) -> list[dict]:
    """The metrics of a run, without what a clock put there."""
    clocks = ("seconds", "sample_seconds", "update_seconds", "tokens_per_second")
    return [
        {k: v for k, v in json.loads(x).items() if k not in clocks} for x in lines(out)
    ]
