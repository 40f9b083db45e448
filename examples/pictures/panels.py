"""One style for all pictures, and pairs of panels: a function and, below it, its pull.

Colours are Okabe and Ito's, which the colour-blind tell apart; lines that share a panel
differ in their dashes, too.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
STYLES = [(BLUE, "-"), (ORANGE, (0, (4, 1.2)))]
matplotlib.rcParams |= {
    **{"font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9},
    **{"xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.8},
    **{"figure.constrained_layout.use": True, "savefig.dpi": 130},
}


class Curve(NamedTuple):
    """A function, and minus its derivative: the way and strength of its pull."""

    value: np.ndarray
    pull: np.ndarray


class Axis(NamedTuple):
    """What an axis is called, and from where to where it goes."""

    label: str
    low: float
    high: float


def curve(loss: Callable[[jax.Array], jax.Array], x: np.ndarray | jax.Array) -> Curve:
    """An element-wise loss and its pull, along x."""
    points = jnp.asarray(x, jnp.float32)
    slope = jax.grad(lambda x: jnp.sum(loss(x)))(points)
    return Curve(np.asarray(loss(points)), -np.asarray(slope))


def pairs(
    panels: dict[str, dict[str, Curve]],
    x: np.ndarray,
    axes: tuple[Axis, Axis, Axis],
    *,
    columns: int,
    title: str,
    at: float = 0.0,
) -> Figure:
    """For each title its curves above and their pulls below; a line where x is `at`."""
    across, above, below = axes
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.1 * columns, 3.0 * rows + 0.7))
    grid = figure.add_gridspec(2 * rows, columns)
    for i, (name, curves) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        for j, axis in enumerate((above, below)):
            panel = figure.add_subplot(grid[2 * row + j, column])
            for (label, both), (color, dash) in zip(
                curves.items(), STYLES, strict=False
            ):
                panel.plot(x, both[j], color=color, linestyle=dash, label=label)
            guides(panel, at)
            panel.set(xlim=(across.low, across.high), ylim=(axis.low, axis.high))
            if column == 0:
                panel.set_ylabel(axis.label)
            if j == 0:
                panel.set_title(name)
                panel.tick_params(labelbottom=False)
            elif i + columns >= len(panels):
                panel.set_xlabel(across.label)
    headline(figure, title)
    return figure


def guides(panel: Axes, at: float) -> None:
    """Thin lines through 0, and through a point on the x axis."""
    panel.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    panel.axvline(at, color=GREY, linewidth=0.8, zorder=0)


def headline(figure: Figure, title: str, *, legend: bool = True) -> None:
    """The picture's title on the left, and the first panel's legend beside it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    if legend and len(labels) > 1:
        figure.legend(handles, labels, loc="upper right", ncols=len(labels), fontsize=9)
