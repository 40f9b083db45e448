"""How much each token of a ragged batch weighs, by how its losses are aggregated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxppo
from jaxppo import Aggregator

from .panels import headline

LENGTHS = np.array([2, 8, 5, 1, 3, 0])  # of the answers: three to each of two prompts
TIME = 8
MASK = np.arange(TIME) < LENGTHS[:, None]
AGGREGATORS: dict[str, Aggregator] = {
    "token_mean": jaxppo.token_mean,
    "sequence_mean": jaxppo.sequence_mean,
    "prompt_mean, 3 a prompt": functools.partial(jaxppo.prompt_mean, group_size=3),
    "sequence_sum, scale 1/8": functools.partial(jaxppo.sequence_sum, scale=1 / TIME),
    "all_rows(sequence_mean)": jaxppo.all_rows(jaxppo.sequence_mean),
    "token_sum": jaxppo.token_sum,
}


def weights(aggregate: Aggregator) -> np.ndarray:
    """Each token's weight: the derivative of the loss by that token's loss."""
    loss = lambda per_token: aggregate(per_token, jnp.asarray(MASK)).value
    return np.asarray(jax.grad(loss)(jnp.ones(MASK.shape)))


def draw() -> Figure:
    """A sheet of tokens for each aggregator."""
    figure = Figure(figsize=(8.4, 4.6))
    panels = figure.subplots(2, 3)
    for panel, (name, aggregate) in zip(panels.flat, AGGREGATORS.items(), strict=True):
        sheet(panel, name, weights(aggregate))
    image = panels.flat[0].images[0]
    bar = figure.colorbar(image, ax=panels, shrink=0.6, ticks=[0, 1, 2, 3], pad=0.02)
    bar.set_label("weight / the panel's mean weight")
    headline(figure, "What each token weighs, and each answer in all")
    return figure


def sheet(panel: Axes, name: str, weight: np.ndarray) -> None:
    """The tokens of six answers, and beside them the weight of each whole answer."""
    share = np.where(MASK, weight / np.mean(weight[MASK]), np.nan)
    panel.imshow(share, cmap="cividis_r", vmin=0, vmax=3.4, aspect="auto")
    for row, of_answer in enumerate(np.sum(weight, -1)):
        panel.text(TIME - 0.3, row, f"{of_answer:.2f}", va="center", fontsize=8)
        if LENGTHS[row]:
            # White on what is dark, black on what is light.
            color = "white" if share[row, 0] > 1.7 else "black"
            each = f"{weight[row, 0]:.2f}".removeprefix("0")
            panel.text(0, row, each, va="center", ha="center", fontsize=7, color=color)
    panel.axhline(2.5, color="0.3", linewidth=1)
    panel.set_xticks(np.arange(TIME + 1) - 0.5, [], minor=True)
    panel.set_yticks(np.arange(len(MASK) + 1) - 0.5, [], minor=True)
    panel.grid(which="minor", color="white", linewidth=1.5)
    panel.tick_params(which="both", length=0, labelbottom=False)
    panel.spines[:].set_visible(False)
    panel.set_yticks(range(len(MASK)), [f"{p}{a}" for p in "AB" for a in "123"])
    panel.set_title(f"{name}\nin all {np.sum(weight):.3g}")
