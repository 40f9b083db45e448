"""Pictures of a run."""

from pathlib import Path
from typing import Any

PANELS = {
    "reward": "mean reward",
    "length": "length, tokens",
    "approx_kl": "KL of the update, nats",
    "ref_kl": "KL to the start, nats",
    "clip_fraction": "clipped",
    "entropy": "entropy, nats a token",
    "grad_norm": "gradient norm",
    "explained_variance": "explained variance",
}


def draw(title: str, rows: list[dict[str, Any]], path: Path) -> None:
    """The reward over updates; below it what tells a healthy run from a sick one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    small = [name for name in PANELS if name in rows[0] and name != "reward"]
    letters = "BCDEFGH"[: len(small)]
    figure = plt.figure(figsize=(2.1 * max(len(small), 4), 6), layout="constrained")
    axes = figure.subplot_mosaic(
        [["A"] * len(small), list(letters)], height_ratios=[3, 1]
    )
    updates = [row["update"] for row in rows]
    for name, axis in zip(["reward", *small], axes.values(), strict=True):
        values = [row[name] for row in rows]
        axis.plot(
            updates, values, color="tab:blue", marker="." if len(rows) < 60 else None
        )
        axis.set_title(PANELS[name], fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes["A"].set_ylim(-0.02, 1.02)
    axes["A"].set_title(
        f"{title}: mean reward of the samples of each update", loc="left"
    )
    axes["A"].set_xlabel("updates")
    figure.savefig(path, dpi=120)
    plt.close(figure)
