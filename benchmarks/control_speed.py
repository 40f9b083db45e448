"""Environment steps trained per CPU second, on one core: ours beside six others.

    python benchmarks/control_speed.py --quick   # a minute: 64 environments, and rejax
    python benchmarks/control_speed.py --python path/to/python ...  # whoever has them
    python benchmarks/control_speed.py --purejaxrl a/checkout --stoix a/checkout

Whole training loops on CartPole-v1, of equal work (`control_peers.py` says where not),
each a process of its own, pinned to one core. rejax, brax, sbx and SB3 come from PyPI,
and not all into one environment: each is run by the first of the `--python`s that can
import it. Leaves control_speed.json, a table and a picture.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import matplotlib
import measure
import numpy as np
import tyro
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PEERS = pathlib.Path(__file__).with_name("control_peers.py")
MODULES = {"rejax": "rejax", "brax": "brax", "sbx": "sbx", "sb3": "stable_baselines3"}
CHECKOUTS = {
    "purejaxrl": ("gymnax", "distrax"),
    "stoix": ("gymnax", "distrax", "stoa", "rlax", "hydra", "colorama"),
}
UPDATES = {4: 200, 64: 32, 512: 16, 4096: 4}
"""Of a run, by the number of environments: each takes a second or two of ours."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    num_envs: tuple[int, ...] = (4, 64, 512, 4096)
    """Environments side by side."""
    seeds: int = 3
    """Runs of each; the median counts."""
    python: tuple[pathlib.Path, ...] = ()
    """More interpreters, of environments that have the others."""
    purejaxrl: pathlib.Path | None = None
    """A checkout of luchris429/purejaxrl; it needs gymnax and distrax."""
    stoix: pathlib.Path | None = None
    """A checkout of EdanToledo/Stoix; it needs those (gymnax<1), stoa-env and more."""
    quick: bool = False
    """Only 64 environments, and rejax."""
    out: pathlib.Path = pathlib.Path("runs/control_speed")
    """Folder for the tables and the picture."""


def main(o: Options) -> None:
    """Run them all, and write down what came of it."""
    o.out.mkdir(parents=True, exist_ok=True)
    sizes = (64,) if o.quick else o.num_envs
    found, missing = pythons(o)
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(sizes) * (len(found) + 1), unit="run") as bar:
        for num_envs in sizes:
            for system, python in found.items():
                bar.set_postfix_str(f"{system}, {num_envs} environments")
                rows.append(one(system, python, num_envs, o))
                bar.update()
            limit = one("products", pathlib.Path(sys.executable), num_envs, o)
            compare(rows, num_envs, limit)
            bar.update()
    table = measure.table([shown(row) for row in rows], COLUMNS)
    print(table)
    for system, why in missing.items():
        print(f"not there: {system} ({why})")
    jax = next(row["jax"] for row in rows if row["system"] == "jaxppo")
    made_by = f"CartPole-v1, JAX {jax}, one core, CPU time; medians of {o.seeds} runs."
    notes = f"{made_by}\n\n{table}\n\n{NOTES}"
    paths = measure.write(o.out, "control_speed", notes, rows)
    draw(rows, o.out / "control_speed.png")
    print("written:", *paths, o.out / "control_speed.png")
    if o.quick and "rejax" in found:
        ours, theirs = (rate(rows, name, 64) for name in ("jaxppo", "rejax"))
        print(f"ratio to rejax at 64 envs: {ours / theirs:.2f}")


NOTES = """\
"of the limit": the time that the products of matrices alone take on this core, at the
sizes of a minibatch's parts, over the whole time of a step. "return": of 128 fresh
episodes after training, each seed's; few updates, so far from learned with many
environments. Compiling is CPU time, too, with tracing; sbx's and SB3's is the first
update. Ours asks LLVM for its first level of optimisation, which costs no speed here;
the others compile as they come."""


def pythons(o: Options) -> tuple[dict[str, pathlib.Path], dict[str, str]]:
    """The interpreter for each system, and why there is none."""
    here = pathlib.Path(sys.executable)
    found, missing = {"jaxppo": here}, {}
    for system in ("rejax",) if o.quick else MODULES:
        module = MODULES[system]
        can = (p for p in (here, *o.python) if imports(p, module))
        if python := next(can, None):
            found[system] = python
        else:
            missing[system] = f"no --python imports {module}"
    for system, modules in CHECKOUTS.items():
        if o.quick or not getattr(o, system):
            continue
        can = (p for p in (here, *o.python) if imports(p, *modules))
        if python := next(can, None):
            found[system] = python
        else:
            missing[system] = f"no --python imports all of {', '.join(modules)}"
    return found, missing


def imports(python: pathlib.Path, *modules: str) -> bool:
    """Whether an interpreter finds modules; importing them may take long."""
    test = f"import importlib.util as u; assert all(map(u.find_spec, {modules!r}))"
    return not subprocess.call([python, "-c", test], stderr=subprocess.DEVNULL)


def one(system: str, python: pathlib.Path, num_envs: int, o: Options) -> dict[str, Any]:
    """A run in a process of its own."""
    command = [str(python), str(PEERS), system, "--num-envs", str(num_envs)]
    updates = UPDATES.get(num_envs, max(2, 2**18 // (128 * num_envs)))
    command += ["--updates", str(updates), "--seeds", str(o.seeds)]
    if system in CHECKOUTS:
        command += ["--checkout", str(getattr(o, system))]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def rate(rows: list[dict], system: str, num_envs: int) -> float:
    """Steps per CPU second, the median of its seeds."""
    (row,) = (r for r in rows if (r["system"], r["num_envs"]) == (system, num_envs))
    return float(np.median(row["steps_per_second"]))


def compare(rows: list[dict], num_envs: int, limit: dict[str, Any]) -> None:
    """Adds to the rows of a size what they are beside ours, and beside the limit."""
    same = [row for row in rows if row["num_envs"] == num_envs]
    ours = rate(rows, "jaxppo", num_envs)
    for row in same:
        row["ours_over_it"] = ours / rate(rows, row["system"], num_envs)
        row["of_the_limit"] = rate(rows, row["system"], num_envs) * limit["per_step"]
        row["flops_per_step"] = limit["flops"]


COLUMNS = (
    *("environments", "system", "steps per CPU s", "ours is", "of the limit"),
    *("compiling, s", "return"),
)


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    ratio = row["ours_over_it"]
    return {
        "environments": row["num_envs"],
        "system": f"{row['system']} {row['version']}",
        "steps per CPU s": f"{np.median(row['steps_per_second']):,.0f}",
        "ours is": "" if row["system"] == "jaxppo" else f"{ratio:.2f} x",
        "of the limit": f"{row['of_the_limit']:.0%}",
        "compiling, s": row["compile"],
        "return": ", ".join(f"{x:.0f}" for x in row["returns"]),
    }


def draw(rows: list[dict], path: pathlib.Path) -> None:
    """A group of bars for each number of environments, and what compiling takes."""
    sizes = list(dict.fromkeys(row["num_envs"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    figure, axes = plt.subplots(
        **{"nrows": 1, "ncols": 2, "figsize": (11, 4), "layout": "constrained"},
        width_ratios=[len(sizes), 1],
    )
    others = ("orange", "blue", "olive", "cyan", "purple", "green", "brown")
    names = ("red", *others)  # jaxppo comes first
    colors = {x: f"tab:{name}" for x, name in zip(systems, names, strict=False)}
    width = 0.8 / len(systems)
    for i, system in enumerate(systems):
        rates = [rate(rows, system, size) / 1e3 for size in sizes]
        places = np.arange(len(sizes)) + (i - len(systems) / 2 + 0.5) * width
        bars = axes[0].bar(places, rates, width, color=colors[system], label=system)
        axes[0].bar_label(bars, [f"{x:.0f}" for x in rates], fontsize=7)
        compiling = [row["compile"] for row in rows if row["system"] == system]
        axes[1].bar(i, np.median(compiling), color=colors[system])
    axes[0].set_xticks(range(len(sizes)), [f"{size:,} environments" for size in sizes])
    axes[0].set_title("thousand steps trained per CPU second, one core", loc="left")
    axes[0].legend(frameon=False, ncols=3)
    axes[0].margins(y=0.25)
    axes[1].set_xticks(range(len(systems)), systems, rotation=60, ha="right")
    axes[1].set_title("seconds to compile", loc="left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
