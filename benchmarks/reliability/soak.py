"""A long run, shortened by small steps: does anything grow, drift or compile again?

    python benchmarks/reliability/soak.py    # 1e6 updates, 1e4 checkpoints
    python benchmarks/reliability/soak.py --quick

A tiny policy learns from batches that a host feeds it, some of them with a NaN, whose
steps must be skipped and counted; small checkpoints are written, the last three kept.
Memory (resident, of this process), CPU time a step, compiled programs, open files and
folders are looked at all along. Leaves soak.json, a table and a picture.
"""

import dataclasses
import os
import pathlib
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.extend(
    str(pathlib.Path(__file__).parents[2] / part) for part in ("benchmarks", "examples")
)
import jax
import jax.numpy as jnp
import matplotlib
import measure
import numpy as np
import optax
import tyro
from common.checkpoints import Checkpoints
from tqdm import tqdm

import jaxppo

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LOOKS = 100  # of how many times things are looked at
WARM = 0.2  # of a run, before memory and time are held to be settled
POISON = 997  # every so many updates has a NaN in its batch


@dataclasses.dataclass(frozen=True)
class Options:
    """How long."""

    updates: int = 1_000_000
    """Of the tiny policy."""
    checkpoints: int = 10_000
    """Written, three of them kept."""
    quick: bool = False
    """Only see that it works."""
    out: pathlib.Path = pathlib.Path("runs/soak")
    """Folder for the table and the picture."""


def main(o: Options) -> None:
    """Update, then save, and look at both."""
    if o.quick:
        o = dataclasses.replace(o, updates=4000, checkpoints=100)
    o.out.mkdir(parents=True, exist_ok=True)
    found = [updating(o.updates), saving(o.checkpoints)]
    table = measure.table([summary(of) for of in found], summary(found[0]))
    print(table)
    made_by = f"jaxppo's learner and the examples' checkpoints; {measure.machine()}."
    paths = measure.write(o.out, "soak", f"{made_by}\n\n{table}", found)
    draw(found, o.out / "soak.png")
    print("written:", *paths, o.out / "soak.png")


def updating(updates: int) -> dict[str, Any]:
    """Steps of the optimiser, one batch each."""

    def loss_fn(params: Any, b: Any) -> tuple[jaxppo.Mean, Any]:
        log_probs, entropy = jaxppo.categorical(b["obs"] @ params, b["actions"])
        return jaxppo.ppo_loss(
            *(log_probs, b["log_probs"], b["advantages"]), entropy=entropy
        )

    rng = np.random.default_rng(0)
    batches = [
        {
            "obs": rng.normal(size=(16, 3)).astype(np.float32),
            "actions": rng.integers(4, size=16).astype(np.int32),
            "log_probs": np.full(16, -1.4, np.float32),
            "advantages": rng.normal(size=16).astype(np.float32),
        }
        for _ in range(64)
    ]
    poisoned = batches[0] | {"advantages": np.full(16, np.nan, np.float32)}
    learner = jaxppo.learner(loss_fn, optax.adam(1e-3), num_minibatches=2)
    update = jax.jit(learner.update, donate_argnums=0)
    state, skipped = learner.init(jnp.zeros((3, 4))), 0
    key = jax.random.key(0)

    def step(i: int) -> None:
        nonlocal state, skipped
        bad = i % POISON == POISON - 1
        batch = poisoned if bad else batches[i % len(batches)]
        state, metrics = update(state, batch, key)
        if bad:
            skipped += float(jaxppo.finalize(metrics)["skipped"]) == 1

    found = looked_at("updates", updates, step, lambda: update._cache_size())
    finite = bool(np.all(np.isfinite(state.params)))
    return found | {"faults": updates // POISON, "survived": skipped * finite}


def saving(checkpoints: int) -> dict[str, Any]:
    """Checkpoints of a small state, the last three of which are kept."""
    folder = pathlib.Path(tempfile.mkdtemp())
    kept = Checkpoints(folder, {})
    state = {"params": jnp.arange(100.0), "key": jax.random.key(0)}
    most = 0

    def step(i: int) -> None:
        nonlocal most
        kept.save(i + 1, state)
        most = max(most, len(list(folder.iterdir())))

    found = looked_at("checkpoints", checkpoints, step, lambda: most)
    restored = kept.restore(state)
    kept.close()
    shutil.rmtree(folder)
    sound = restored is not None and restored[0] == checkpoints
    assert sound, "the last checkpoint does not restore"
    return found | {"faults": 0, "survived": 0}


def looked_at(
    name: str, steps: int, step: Callable[[int], None], count: Callable[[], int]
) -> dict[str, Any]:
    """Memory, time a step, `count()` and open files, as it goes."""
    looks: dict[str, list[float]] = {
        k: [] for k in ("at", "MiB", "us", "count", "files")
    }
    with tqdm(total=steps, unit=f" {name}", unit_scale=True) as bar:
        for part in np.array_split(np.arange(steps), LOOKS):
            start = time.process_time()
            for i in part.tolist():
                step(i)
            looks["us"].append((time.process_time() - start) / len(part) * 1e6)
            looks["at"].append(int(part[-1]) + 1)
            looks["MiB"].append(resident())
            looks["count"].append(count())
            looks["files"].append(len(os.listdir("/proc/self/fd")))
            bar.update(len(part))
    return {"name": name, "looks": looks}


def resident() -> float:
    """MiB of this process, now (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    looks = {k: np.array(x, float) for k, x in found["looks"].items()}
    settled = looks["at"] > WARM * looks["at"][-1]
    slope = np.polyfit(looks["at"][settled], looks["MiB"][settled], 1)[0]
    first, last = np.array_split(looks["us"][settled], 2)
    return {
        "of": found["name"],
        "how many": f"{looks['at'][-1]:,.0f}",
        "MiB, settled": float(looks["MiB"][settled][0]),
        "MiB, at the end": float(looks["MiB"][-1]),
        "bytes more a step": round(slope * 2**20, 2),
        "µs a step, first half": float(np.median(first)),
        "second half": float(np.median(last)),
        "programs or folders": int(looks["count"].max()),
        "open files": f"{looks['files'][settled].min():.0f}"
        f" to {looks['files'][settled].max():.0f}",
        "NaN batches, skipped": f"{found['faults']}, {found['survived']}",
    }


def draw(found: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Memory and time of both."""
    figure, axes = plt.subplots(
        **{"nrows": 2, "ncols": 2, "figsize": (9, 4.6), "layout": "constrained"}
    )
    titles = {"MiB": "resident memory, MiB", "us": "µs of CPU a step"}
    for column, of in zip(axes.T, found, strict=True):
        for axis, (key, title) in zip(column, titles.items(), strict=True):
            axis.plot(of["looks"]["at"], of["looks"][key], color="tab:red")
            axis.set_ylim(0, 1.3 * max(of["looks"][key]))
            axis.set_title(f"{title}, over {of['name']}", loc="left", fontsize=10)
            axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
            axis.grid(color="0.92", linewidth=0.8)
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
