"""The same functions elsewhere: another JAX, 64 bits, more devices. How far apart?

    python benchmarks/reliability/platforms.py --python .venv-3.13/bin/python
    python benchmarks/reliability/platforms.py --python ""   # here only

Values and gradients of every public function (`tests/cases.py`) on the same batches in
float32, each place in a process of its own; against the oracle in float64, and against
the first place, bit for bit. Where a Python's JAX sees a GPU, that is its place.
Leaves platforms.json and a table.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

sys.path.extend(
    str(pathlib.Path(__file__).parents[2] / part)
    for part in ("", "benchmarks", "tests")
)
import measure
import numpy as np
import tyro

SEEDS = 3  # batches of each function
AS_USUAL: dict[str, str] = {}
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Where."""

    python: tuple[str, ...] = ()
    """Other Pythons, with other versions of JAX, and what the tests need."""
    out: pathlib.Path = pathlib.Path("runs/platforms")
    """Folder for the table."""


def main(o: Options) -> None:
    """Each place, then how far they are apart."""
    o.out.mkdir(parents=True, exist_ok=True)
    here = [("as usual", sys.executable, AS_USUAL), ("once more", sys.executable, {})]
    here += [("x64", sys.executable, {"JAX_ENABLE_X64": "1"})]
    here += [("rows on 4 of 8 devices", sys.executable, EIGHT)]
    here += [("not compiled", sys.executable, {"JAX_DISABLE_JIT": "1"})]
    there = [("another Python", python, AS_USUAL) for python in filter(None, o.python)]
    found, rows = [], []
    for name, python, more in [*here, *there]:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "numbers.npz"
            environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
            command = [python, __file__, "numbers", str(path)]
            subprocess.run(command, env=environment | more, check=True)
            numbers = dict(np.load(path))
        about = json.loads(str(numbers.pop("about")))
        found.append(numbers)
        rows.append({"where": name} | about | compared(numbers, found[0]))
        print(rows[-1], flush=True)
    table = measure.table(rows, rows[0])
    text = f"jaxppo's public functions, values and gradients, in float32.\n\n{table}"
    print(table, "written:", *measure.write(o.out, "platforms", text, rows), sep="\n")


def compared(numbers: dict[str, np.ndarray], usual: dict[str, np.ndarray]) -> dict:
    """Errors in units of the float32 epsilon, times the largest number of an array."""
    eps = np.finfo(np.float32).eps

    def far(x: np.ndarray, y: np.ndarray) -> float:
        finite = np.isfinite(y)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
            return np.inf
        size = np.max(np.abs(y), initial=1e-30, where=finite)
        apart = np.abs(x.astype(np.float64) - y)
        return float(np.max(apart, initial=0, where=finite) / size / eps)

    bits = lambda x: x.tobytes()
    ours = sorted(k for k in usual if not k.endswith("oracle"))
    off = {k: far(numbers[k], usual[k]) for k in ours}
    oracle = [far(numbers[k], numbers[k + " oracle"]) for k in ours if " value " in k]
    worst = max(off, key=off.__getitem__)
    return {
        "arrays": len(ours),
        "same bits as usual": sum(bits(numbers[k]) == bits(usual[k]) for k in ours),
        "off the usual, median": float(np.median(list(off.values()))),
        "at most": off[worst],
        "where most": worst if off[worst] else "",
        "values off the oracle, median": float(np.median(oracle)),
        "at most ": max(oracle),
    }


def numbers(path: str) -> None:
    """In its process: every function's value and gradients."""
    import jax
    from cases import ARRAYS, jitted, jitted_gradient

    found: dict[str, Any] = {}
    mesh = None
    if jax.device_count() > 1:
        auto = (jax.sharding.AxisType.Auto,)  # a mesh of explicit axes slices no rows
        mesh = jax.make_mesh((4,), ("rows",), auto, devices=jax.devices()[:4])

    def placed(x: np.ndarray) -> Any:
        """Four rows on four devices, where there are four rows."""
        if mesh is None or x.ndim < 2 or len(x) != 4:
            return x
        return jax.device_put(x, jax.NamedSharding(mesh, jax.P("rows")))

    for case in ARRAYS:
        for seed in range(SEEDS):
            given = case.inputs(seed, np.float32)
            inputs = {k: placed(x) for k, x in given.items()}
            parts = {"value": jitted(case)(**inputs), "oracle": case.oracle(**given)}
            for what, out in parts.items():
                for i, x in enumerate(jax.tree.leaves(out)):
                    name = f"{case} {seed} value {i}"
                    name += " oracle" if what == "oracle" else ""
                    found[name] = np.asarray(x)
            if case.grads:
                grads = jitted_gradient(case)(**inputs)
                for name in case.grads.split():
                    found[f"{case} {seed} gradient {name}"] = np.asarray(grads[name])
    about = {
        "Python": "{}.{}".format(*sys.version_info),
        "JAX": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    np.savez(path, about=json.dumps(about), **found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["numbers"]:
        numbers(sys.argv[2])
    else:
        main(tyro.cli(Options, description=__doc__))
