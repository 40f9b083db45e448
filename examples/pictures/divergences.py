"""KL estimators along the log-ratio, and sampled: how wrong, and how noisy."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxppo

from .panels import STYLES, Axis, curve, headline, pairs

LOG_RATIOS = np.linspace(-3, 3, 601)
ACTIONS = 8
# What the reference's logits differ by, in standard deviations. By this seed one action
# is rare in the policy and, far away, 145 times less rare in the reference.
DISTANCES = {"close": 0.2, "far": 2.0}
SEED = 3


def weighted(kl: Callable) -> Callable:
    """An estimator weighted by pi / pi_old, on samples of pi itself."""

    def term(x):
        policy = jaxppo.log_ratio(x, jax.lax.stop_gradient(x))
        return jaxppo.importance_weighted_kl(x, policy, estimator=kl)

    return term


ESTIMATORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "k1": jaxppo.kl_k1,
    "k2": jaxppo.kl_k2,
    "k3": jaxppo.kl_k3,
    "abs": jaxppo.kl_abs,
    "k3, held at 10": jaxppo.bounded_kl,
    "k3, gradient of k2": jaxppo.unbiased_gradient_kl,
    "k1, weighted": weighted(jaxppo.kl_k1),
    "k3, weighted": weighted(jaxppo.kl_k3),
}


def along_the_ratio() -> Figure:
    """A pair of panels for each estimator."""
    panels = {
        name: {"": curve(estimator, LOG_RATIOS)}
        for name, estimator in ESTIMATORS.items()
    }
    axes = (
        Axis("log pi - log pi_ref", -3.1, 3.1),
        Axis("estimate, nats", -3.1, 6.1),
        Axis("pull on log pi", -4.6, 6.1),
    )
    title = "KL estimators at one sample of pi, and their pull as a loss"
    return pairs(panels, LOG_RATIOS, axes, columns=4, title=title)


# A panel's title, the column of its error bars, its scale and its ticks, the first and
# last of which are its ends.
SHOWN: dict[str, tuple[str, str, tuple[str, list[float]]]] = {
    "mean": ("mean\n/ true KL", "mean_error", ("log", [0.5, 1, 3, 10, 20])),
    "std": ("std of a sample\n/ true KL", "", ("log", [0.2, 1, 3, 10, 30])),
    "gradient_bias": (
        "bias of the gradient\n/ true gradient",
        "gradient_error",
        ("symlog", [-0.1, 0, 0.1, 1, 10, 30]),
    ),
    "gradient_std": ("std of a gradient\n/ true gradient", "", ("log", [1, 10, 100])),
}


class Sampled(NamedTuple):
    """Moments of an estimator; all in units of the true KL, or of its gradient's norm.

    Errors are standard errors of the mean (of a vector: the norm of its components').
    """

    mean: float
    mean_error: float
    std: float
    gradient_bias: float
    gradient_error: float
    gradient_std: float


def policies(distance: float) -> tuple[jax.Array, jax.Array]:
    """The logits of a categorical policy, and of its reference."""
    rng = np.random.default_rng(SEED)
    logits, noise = rng.normal(size=(2, ACTIONS))
    both = jnp.asarray([logits, logits + distance * noise], jnp.float32)
    return both[0], both[1]


def sample(
    estimator: Callable[[jax.Array], jax.Array], distance: float, samples: int
) -> Sampled:
    """The estimator and its gradient by the logits, on that many samples of pi."""
    logits, ref = policies(distance)
    kl = lambda z: jaxppo.categorical_kl(z, ref)
    terms = lambda z: estimator(jax.nn.log_softmax(z) - jax.nn.log_softmax(ref))
    actions = jax.random.categorical(jax.random.key(SEED), logits, shape=(samples,))
    # A sample is its action: what it gives is one of these, so counting is enough.
    share = np.bincount(actions, minlength=ACTIONS)[:, None] / samples
    values = np.asarray(terms(logits), np.float64)[:, None]
    gradients = np.asarray(jax.jacobian(terms)(logits), np.float64)
    true = np.asarray(jax.grad(kl)(logits))

    value, value_std = moments(share, values, 0.0, float(kl(logits)))
    size = float(np.linalg.norm(true))
    bias, gradient_std = moments(share, gradients, true, size)
    root = samples**0.5
    return Sampled(
        *(value, value_std / root, value_std),
        *(bias, gradient_std / root, gradient_std),
    )


def moments(
    share: np.ndarray, x: np.ndarray, centre: np.ndarray | float, unit: float
) -> tuple[float, float]:
    """The norms of what is sampled: of its mean less `centre`, and of its spread."""
    mean = np.sum(share * x, 0)
    spread = np.sqrt(np.sum(share * (x - mean) ** 2))
    return float(np.linalg.norm(mean - centre)) / unit, float(spread) / unit


def sampled(samples: int) -> Figure:
    """Value and gradient of each estimator, for two pairs of policies."""
    figure = Figure(figsize=(8.4, 3.8))
    panels = figure.subplots(1, 4, sharey=True)
    for i, (name, distance) in enumerate(DISTANCES.items()):
        rows = [sample(kl, distance, samples) for kl in ESTIMATORS.values()]
        columns = dict(zip(Sampled._fields, np.transpose(rows), strict=True))
        label = f"{name}: KL {float(jaxppo.categorical_kl(*policies(distance))):.2g}"
        how = dict(color=STYLES[i][0], fmt="os"[i], markersize=5, capsize=2)
        places = np.arange(len(ESTIMATORS)) + 0.3 * i - 0.15
        for panel, (what, (_, error, _)) in zip(panels, SHOWN.items(), strict=True):
            bars = 2 * columns[error] if error else None
            panel.errorbar(columns[what], places, xerr=bars, label=label, **how)
    for panel, (title, _, (scale, ticks)) in zip(panels, SHOWN.values(), strict=True):
        panel.set_title(title, fontsize=9)
        panel.set_xscale(scale, **({"linthresh": 0.1} if scale == "symlog" else {}))
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xlim(ticks[0], ticks[-1])
        panel.minorticks_off()
        panel.grid(axis="x", color="0.9")
    panels[0].set_yticks(range(len(ESTIMATORS)), list(ESTIMATORS))
    panels[0].invert_yaxis()
    headline(figure, f"On {samples:,} samples of pi")
    return figure
