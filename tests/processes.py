"""Examples as a user runs them: in processes of their own, killed and resumed."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
PLANTED = Path(__file__).parent / "faults" / "planted.py"


def start(
    environment, name, *args, cwd=None, fault="", group=False
) -> subprocess.Popen:
    """An example, with a fault of `faults/planted.py`.

    With a group of its own, a signal can be sent to all that it starts, too.
    """
    path = EXAMPLES / f"{name}.py"
    command = [PLANTED, fault, name] if fault else [path]
    return subprocess.Popen(
        list(map(str, [sys.executable, *command, *args])),
        **{"env": environment, "cwd": cwd, "text": True, "start_new_session": group},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    )


def run(environment, name, *args, code=0, **how) -> str:
    process = start(environment, name, *args, **how)
    out, _ = process.communicate(timeout=1800)  # it hangs, if ever
    assert process.returncode == code, out
    return out


def pair(environment, name, *args) -> list[subprocess.Popen]:
    """An example in two processes, which find each other at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    both = [name, address, "--processes=2", *args]
    return [start(environment, *both, f"--process={i}") for i in range(2)]


def kill_at(environment, num_rows: int, delay: float, name, *args) -> None:
    """kill -9, so long after so many rows of metrics; `args` end with the folder."""
    out = Path(args[-1])
    process = start(environment, name, *args)
    with kept_to([process]):
        wait_for(out, num_rows, [process])
        time.sleep(delay)
    assert process.returncode == -9


def wait_for(out: Path, num_rows: int, processes: list[subprocess.Popen]) -> None:
    """Until there are so many rows of metrics."""
    deadline = time.monotonic() + 900
    while not (out / "metrics.jsonl").exists() or len(lines(out)) < num_rows:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.001)


@contextmanager
def kept_to(processes: list[subprocess.Popen]) -> Iterator[None]:
    """None of them outlives what is inside, however that ends."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def lines(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


def rows(out: Path) -> list[dict]:
    """The metrics of a run, without what a clock put there."""
    clocks = ("seconds", "sample_seconds", "update_seconds", "tokens_per_second")
    return [
        {k: v for k, v in json.loads(x).items() if k not in clocks} for x in lines(out)
    ]
