"""Value terms, and what distributional critics learn from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxppo

from .panels import BLUE, GREEN, GREY, ORANGE, Axis, Curve, curve, guides, pairs, plt

VALUES = np.linspace(-1.5, 2.5, 401)
OLD_VALUE, CLIP_EPS, DELTA = 0.0, 0.5, 0.5
RETURNS = {"return 1, out of the clip's reach": 1.0, "return 0.25, within it": 0.25}
TERMS: dict[str, Callable] = {
    "squared_value": lambda v, old, r: jaxppo.squared_value(v, r),
    "clipped_value\n0.5": lambda v, old, r: jaxppo.clipped_value(
        v, old, r, clip_eps=CLIP_EPS
    ),
    "bounded_value\n0.5": lambda v, old, r: jaxppo.bounded_value(
        v, old, r, clip_eps=CLIP_EPS
    ),
    "huber_value\ndelta 0.5": lambda v, old, r: jaxppo.huber_value(v, r, delta=DELTA),
}
EDGES = np.linspace(-2.25, 2.25, 10)  # nine bins, 0.5 wide, centred on multiples of 0.5
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2
SIGMA = 0.75 * 0.5  # bin widths, the paper's
TARGET = 0.2


def term_curves(term: Callable, target: float) -> Curve:
    """A value term and its pull, along the value."""

    def loss(v):
        return term(v, jnp.full(v.shape, OLD_VALUE), jnp.full(v.shape, target))

    return curve(loss, VALUES)


def values() -> Figure:
    """A pair of panels for each value term."""
    panels = {
        name: {label: term_curves(term, r) for label, r in RETURNS.items()}
        for name, term in TERMS.items()
    }
    axes = (Axis("value v", -1.5, 2.5), Axis("loss", -0.1, 1.6))
    title = "Value terms, old value 0"
    figure = pairs(
        panels, VALUES, (*axes, Axis("pull on v", -1.6, 1.6)), columns=4, title=title
    )
    for panel in figure.axes[2:6]:  # both of clipped_value, both of bounded_value
        low, high = OLD_VALUE - CLIP_EPS, OLD_VALUE + CLIP_EPS
        panel.axvspan(low, high, color=GREY, alpha=0.2, linewidth=0)
    return figure


def targets(x: jax.Array) -> dict[str, jax.Array]:
    """What a categorical critic is to predict for a return of x, over the bins."""
    support, edges = (jnp.asarray(grid, jnp.float32) for grid in (CENTRES, EDGES))
    return {
        "two_hot": jaxppo.two_hot(x, support),
        "hl_gauss": jaxppo.hl_gauss(x, edges, sigma=SIGMA),
    }


def logit_pulls(values: np.ndarray) -> dict[str, np.ndarray]:
    """How hard TARGET pulls the logits of critics that are right for other values.

    Half the sum of the pull's absolute values: the share of probability to be moved.
    """
    wanted = targets(jnp.full(len(values), TARGET))
    predicted = targets(jnp.asarray(values, jnp.float32))

    def pull(kind):
        logits = jnp.log(predicted[kind] + 1e-6)
        loss = lambda logits: jnp.sum(jaxppo.categorical_value(logits, wanted[kind]))
        return np.sum(np.abs(jax.grad(loss)(logits)), -1) / 2

    return {kind: pull(kind) for kind in wanted}


def quantile_pulls(values: np.ndarray, k: int = 3) -> np.ndarray:
    """The pull of a return of 0 on each of k quantiles that all predict the value."""
    quantiles = jnp.broadcast_to(jnp.asarray(values, jnp.float32)[:, None], (401, k))
    loss = lambda q: jnp.sum(jaxppo.quantile_value(q, jnp.zeros(401), delta=DELTA))
    return -k * np.asarray(jax.grad(loss)(quantiles))


def distributions() -> Figure:
    """Targets over bins, how hard they pull, and how hard a quantile is pulled."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 2.9))
    pairs_of = dict(zip(("two_hot", "hl_gauss"), (BLUE, ORANGE), strict=True))
    probs = targets(jnp.asarray(TARGET))
    pulls = logit_pulls(VALUES)
    for i, (kind, color) in enumerate(pairs_of.items()):
        left.bar(CENTRES + (i - 0.5) * 0.2, probs[kind], 0.2, color=color, label=kind)
        middle.plot(VALUES, pulls[kind], color=color, linestyle="-" if i == 0 else "--")
    middle.plot(VALUES, np.abs(VALUES - TARGET), color=GREY, linestyle=":")
    for q, color, dash, tau in zip(
        quantile_pulls(VALUES).T,
        (GREEN, BLUE, ORANGE),
        ("-.", "-", "--"),
        ("1/6", "1/2", "5/6"),
        strict=True,
    ):
        right.plot(VALUES, q, color=color, linestyle=dash, label=f"tau {tau}")
    describe(left, "targets for a return of 0.2", "value of the bin", "probability")
    describe(middle, "pull on a critic right for v", "value v", "size of the pull")
    describe(right, "quantile_value, delta 0.5", "quantile q - return", "pull on q")
    left.legend(fontsize=8)
    figure.suptitle(
        "Critics that predict a distribution", fontsize=11, x=0.01, ha="left"
    )
    middle.legend([*pulls, "squared error"], fontsize=8, loc="upper center")
    middle.set_ylim(0, 2.3)
    guides(middle, TARGET)
    guides(right, 0)
    right.legend(fontsize=8)
    return figure


def describe(panel: Axes, title: str, across: str, up: str) -> None:
    """A panel's words."""
    panel.set(title=title, xlabel=across, ylabel=up)
