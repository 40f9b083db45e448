"""Value terms, and what distributional critics learn from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxppo

from .panels import GREEN, GREY, STYLES, Axis, Curve, curve, guides, headline, pairs

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
KINDS = ("two_hot", "hl_gauss")
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
    both = jaxppo.two_hot(x, support), jaxppo.hl_gauss(x, edges, sigma=SIGMA)
    return dict(zip(KINDS, both, strict=True))


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
    quantiles = jnp.repeat(jnp.asarray(values, jnp.float32)[:, None], k, axis=1)
    zeros = jnp.zeros(len(values))
    loss = lambda q: jnp.sum(jaxppo.quantile_value(q, zeros, delta=DELTA))
    return -k * np.asarray(jax.grad(loss)(quantiles))


def distributions() -> Figure:
    """Targets over bins, how hard they pull, and how hard a quantile is pulled."""
    figure = Figure(figsize=(8.4, 2.9))
    left, middle, right = figure.subplots(1, 3)
    bars(left)
    sizes(middle)
    quantiles(right)
    headline(figure, "Critics that predict a distribution", legend=False)
    return figure


def bars(panel: Axes) -> None:
    """What a return of TARGET is, over the bins."""
    probs = targets(jnp.asarray(TARGET))
    for kind, shift, (color, _) in zip(KINDS, (-0.1, 0.1), STYLES, strict=True):
        panel.bar(CENTRES + shift, probs[kind], 0.2, color=color, label=kind)
    panel.set_title(f"targets for a return of {TARGET}")
    panel.set(xlabel="value of the bin", ylabel="probability")
    panel.legend(fontsize=8)


def sizes(panel: Axes) -> None:
    """How hard it pulls critics that are right for other values."""
    pulls = logit_pulls(VALUES) | {"squared error": np.abs(VALUES - TARGET)}
    for (kind, size), (color, dash) in zip(
        pulls.items(), [*STYLES, (GREY, ":")], strict=True
    ):
        panel.plot(VALUES, size, color=color, linestyle=dash, label=kind)
    guides(panel, TARGET)
    panel.set(title="pull on a critic right for v", ylim=(0, 2.4))
    panel.set(xlabel="value v", ylabel="size of the pull")
    solid = dict(frameon=True, framealpha=1, edgecolor="none")  # the guide runs behind
    panel.legend(fontsize=8, loc="upper center", **solid)


def quantiles(panel: Axes) -> None:
    """How hard a return pulls three quantiles."""
    for tau, pull, (color, dash) in zip(
        ("1/6", "1/2", "5/6"),
        quantile_pulls(VALUES).T,
        [(GREEN, "-."), *STYLES],
        strict=True,
    ):
        panel.plot(VALUES, pull, color=color, linestyle=dash, label=f"tau {tau}")
    guides(panel, 0)
    panel.set(title=f"quantile_value, delta {DELTA}")
    panel.set(xlabel="quantile q - return", ylabel="pull on q")
    panel.legend(fontsize=8)
