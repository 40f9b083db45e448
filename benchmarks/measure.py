"""Side by side: all take turns, the best of several counts, and what is said is ratios.

Cores are shared, so on a CPU it is seconds of CPU time on one thread that are counted.
On a GPU it is wall time.
"""

import datetime
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

# JAX reads them when it starts its backend, which is later than its import.
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}".strip()
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

LEAST = 0.05  # seconds; what is shorter is repeated until it takes so long


def on_gpu() -> bool:
    """Whether JAX runs on one."""
    return jax.default_backend() == "gpu"


def clock() -> float:
    """Seconds: of this process on a CPU, of the wall on a GPU."""
    return time.perf_counter() if on_gpu() else time.process_time()


def wait(x: Any) -> Any:
    """For JAX; torch on a CPU is done when it returns."""
    return jax.block_until_ready(x)


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Of one call."""
    start = clock()
    for _ in range(repeats):
        wait(call())
    return (clock() - start) / repeats


def race(calls: Mapping[str, Callable], rounds: int, bar: Any) -> dict[str, float]:
    """Seconds of each, the least of several rounds in which all take their turn."""
    repeats = {}
    for name, call in calls.items():
        first = seconds(call, 1)
        once = first if first > LEAST else seconds(call, 1)
        repeats[name] = math.ceil(LEAST / max(once, 1e-6))
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            bar.set_postfix_str(name)
            best[name] = min(best[name], seconds(call, repeats[name]))
            bar.update()
    return best


def difference(x: Any, y: Any) -> float:
    """Of two arrays, in the root mean square, relative to the second."""
    x, y = (jax.numpy.asarray(a, jax.numpy.float32) for a in (x, y))
    return float(jax.numpy.linalg.norm(x - y) / jax.numpy.linalg.norm(y))


def table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """In markdown, aligned."""
    lines = [list(columns)]
    lines += [[show(row.get(column)) for column in lines[0]] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    pad = lambda cells: (c.ljust(w) for c, w in zip(cells, widths, strict=True))
    return "\n".join(f"| {' | '.join(pad(cells))} |" for cells in lines)


def show(x: Any) -> str:
    """A cell: three digits."""
    if x is None:
        return ""
    if not isinstance(x, float):
        return str(x)
    return f"{x:.0e}" if 0 < x < 1e-3 else f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def write(out: pathlib.Path, name: str, text: str, results: Any) -> list[pathlib.Path]:
    """The tables as text, everything as JSON."""
    paths = [out / f"{name}.md", out / f"{name}.json"]
    paths[0].write_text(text + "\n", "utf-8")
    as_json = json.dumps(results, indent=1)
    on_a_line = lambda numbers: " ".join(numbers[0].split())
    as_json = re.sub(r"\[[^][{}]*\]", on_a_line, as_json)
    paths[1].write_text(as_json + "\n", "utf-8")
    return paths


def machine() -> str:
    """What it ran on, in a line."""
    device, today = jax.devices()[0].device_kind, datetime.date.today()
    return f"{device}, JAX {jax.__version__}, {today}; {kind_of_time()}"


def kind_of_time() -> str:
    """What the clock counts."""
    return "wall time" if on_gpu() else "CPU time of one thread"
