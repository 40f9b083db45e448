"""A run's curves: what matters, and what tells a healthy run from a sick one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def draw(x: Sequence[int], curves: Mapping[str, Any]) -> Figure:
    """A panel for each title, the first of them large, the others in a row below.

    A curve has one value for each x, or several (those of seeds), of which median and
    quartiles are drawn; where it has none, its panel is empty.
    """
    first, *others = curves
    figure = Figure(figsize=(2.5 * max(len(others), 4), 6.5), layout="constrained")
    rows: Any = [[first] * len(others), others]
    panels = figure.subplot_mosaic(rows, height_ratios=[3, 1])
    for title, values in curves.items():
        panel = panels[title]
        panel.set_title(title, fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
        panel.grid(alpha=0.25)
        if values is None:
            continue
        values = np.reshape(values, (len(x), -1))
        low, middle, high = np.percentile(values, [25, 50, 75], axis=1)
        how = dict(color="tab:blue", marker="." if len(x) < 12 else None)
        panel.plot(x, middle, lw=2 if title == first else 1, **how)
        panel.fill_between(x, low, high, color="tab:blue", alpha=0.25, lw=0)
    return figure
