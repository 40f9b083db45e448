"""Train SmolLM2 by every algorithm of examples/train_llm.py, with several seeds.

    python benchmarks/llm_learning.py          # half an hour on two idle cores
    python benchmarks/llm_learning.py --quick  # the tiny model, two updates each

Each run is a process of its own, as a user starts it; one that is there is not made
again. Leaves llm_learning.json (metrics of all runs), a table and a picture.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import matplotlib
import measure
import numpy as np
import tyro
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "train_llm.py"
KEPT = (
    *("update", "seconds", "reward", "length", "approx_kl", "clip_fraction"),
    *("entropy", "grad_norm", "explained_variance", "failed_rewards", "skipped"),
    *("sample_seconds", "update_seconds", "tokens_per_second"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run."""

    algorithms: tuple[str, ...] = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo")
    """Names that the example knows."""
    seeds: int = 3
    """Runs of each."""
    updates: int = 15
    """Of each run."""
    quick: bool = False
    """Only see that it works."""
    out: pathlib.Path = pathlib.Path("runs/llm_learning")
    """Folder for the runs, the table and the picture."""


def main(options: Options) -> None:
    """Run, and write down what came of it."""
    o = options
    o.out.mkdir(parents=True, exist_ok=True)
    cases = [(a, seed) for seed in range(o.seeds) for a in o.algorithms]
    found = []
    with tqdm(cases, unit="run") as bar:
        for algorithm, seed in bar:
            bar.set_postfix_str(f"{algorithm}, seed {seed}")
            found.append(one(algorithm, seed, o))
    table = measure.table([summary(found, a) for a in o.algorithms], COLUMNS)
    print(table)
    where = f"JAX {version('jax')}, {os.cpu_count()} cores"
    made_by = f"jaxppo's examples/train_llm.py, {o.updates} updates a run; {where}."
    paths = measure.write(o.out, "llm_learning", f"{made_by}\n\n{table}", found)
    draw(found, o.algorithms, o.out / "llm_learning.png")
    print("written:", *paths, o.out / "llm_learning.png")


def one(algorithm: str, seed: int, o: Options) -> dict[str, Any]:
    """A run's metrics, its rewards before and after, and its memory."""
    out = o.out / f"{algorithm}-{seed}-{'quick' if o.quick else o.updates}"
    if not (out / "peak.json").exists():
        shutil.rmtree(out, ignore_errors=True)  # cut short: its memory is not known
        sizes = ["--smoke"] if o.quick else ["--num-updates", str(o.updates)]
        what = ["--algorithm", algorithm, "--seed", str(seed), "--out", str(out)]
        command = [sys.executable, str(EXAMPLE), *what, *sizes]
        env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        log = out.with_suffix(".log")
        with log.open("w") as file:
            process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
            _, code, usage = os.wait4(process.pid, 0)
        if code:
            raise RuntimeError(f"{algorithm}, seed {seed}: see {log}")
        for large in ("checkpoints", "policy"):  # 4 GB a run
            shutil.rmtree(out / large)
        (out / "peak.json").write_text(json.dumps(usage.ru_maxrss / 2**20))  # GiB
    read = lambda name: json.loads((out / name).read_text())
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {
        **{"algorithm": algorithm, "seed": seed, "peak_gib": read("peak.json")},
        **{when: read(f"{when}.json")["mean_reward"] for when in ("before", "after")},
        "rows": [{k: row[k] for k in KEPT if k in row} for row in rows],
    }


COLUMNS = (
    *("algorithm", "before", "last 5 updates", "after", "updates to 0.9"),
    *("seconds an update", "peak GiB"),
)


def summary(found: list[dict], algorithm: str) -> dict[str, Any]:
    """A row of the table: means over seeds, or each seed's."""
    runs = [run for run in found if run["algorithm"] == algorithm]
    rewards = [[row["reward"] for row in run["rows"]] for run in runs]
    each = lambda values: ", ".join(f"{value:.2f}" for value in values)
    seconds = lambda row: row["sample_seconds"] + row["update_seconds"]
    return {
        "algorithm": algorithm,
        "before": each(run["before"] for run in runs),
        "last 5 updates": each(np.mean(of[-5:]) for of in rewards),
        "after": each(run["after"] for run in runs),
        "updates to 0.9": ", ".join(str(first(of)) for of in rewards),
        "seconds an update": float(
            np.median([seconds(row) for run in runs for row in run["rows"]])
        ),
        "peak GiB": max(run["peak_gib"] for run in runs),
    }


def first(rewards: list[float], level: float = 0.9) -> int | str:
    """The first update from which the mean of three is at least so high."""
    means = np.convolve(rewards, np.ones(3) / 3, "valid")
    above = np.flatnonzero(means >= level)
    return int(above[0]) + 1 if len(above) else "-"


def draw(found: list[dict], algorithms: tuple[str, ...], path: pathlib.Path) -> None:
    """A panel an algorithm: each seed's line, and their mean."""
    columns = min(3, len(algorithms))
    rows = -(-len(algorithms) // columns)
    figure, axes = plt.subplots(
        **{"nrows": rows, "ncols": columns, "sharex": True, "sharey": True},
        figsize=(max(3.2 * columns, 6.4), max(2.4 * rows, 3.2)),
        layout="constrained",
        squeeze=False,
    )
    for axis, algorithm in zip(axes.flat, algorithms, strict=False):
        runs = [run["rows"] for run in found if run["algorithm"] == algorithm]
        updates = [row["update"] for row in runs[0]]
        curves = np.array([[row["reward"] for row in run] for run in runs])
        axis.plot(updates, curves.T, color="tab:blue", alpha=0.35, linewidth=1)
        axis.plot(updates, curves.mean(0), color="tab:blue", linewidth=2)
        axis.axhline(0.9, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_title(algorithm, loc="left", fontsize=10)
        axis.grid(color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylim(0, 1.02)
    seeds = len({run["seed"] for run in found})
    shown = f": {seeds} seeds and their mean" if seeds > 1 else ""
    figure.supxlabel("updates, of 64 samples each", fontsize=9)
    figure.supylabel("mean reward of the samples", fontsize=9)
    figure.suptitle(f"SmolLM2-135M, one-digit sums{shown}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
