"""Critics that predict a distribution: encode a target, score it, read its mean."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _checks
from ._types import RowMask, Rows, Scalar

Bins = Float[Array, "*b k"]


def two_hot(x: Rows, support: Float[Array, " k"]) -> Bins:
    """Probabilities on the two points of a grid around x, with mean x.

    Exactly inverted by `expected_value`; x outside the grid goes to its end (MuZero,
    Schrittwieser et al., 2020; DreamerV3).

    Args:
      x: any shape; constant.
      support: the grid, `(k,)`, increasing, k >= 2.

    Returns:
      `(*x.shape, k)`, in float32 at least, summing to 1.

    Raises:
      TypeError: an array is not floating point.
      ValueError: support is not `(k,)` with k >= 2, or does not increase.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.two_hot(jnp.array([0.25, 9.0]), jnp.array([-1.0, 0.0, 1.0]))
      Array([[0.  , 0.75, 0.25],
             [0.  , 0.  , 1.  ]], dtype=float32)
    """
    x, support = _grid("two_hot", "support", x, support)
    x = jnp.clip(x, support[..., 0], support[..., -1])[..., None]
    # 1 at its own point, falling to 0 at its neighbours.
    left = (x - support[..., :-1]) / jnp.diff(support)
    rise = jnp.concatenate([jnp.ones_like(x), left], -1)
    fall = jnp.concatenate([1 - left, jnp.ones_like(x)], -1)
    return jax.lax.stop_gradient(jnp.clip(jnp.minimum(rise, fall), 0, 1))


def hl_gauss(x: Rows, edges: Float[Array, " e"], *, sigma: Scalar) -> Bins:
    """Probabilities that a normal around x falls into each bin of a histogram.

    A softer target than `two_hot`, whose bins know their order; sigma of 0.75 bin
    widths is the paper's (Farebrother et al., 2024, arXiv:2403.03950). What lies
    outside the edges is cut off and the rest scaled to 1.

    Args:
      x: any shape; constant.
      edges: of the k bins, `(k + 1,)`, increasing.
      sigma: standard deviation, in units of x, positive.

    Returns:
      `(*x.shape, k)`, in float32 at least, summing to 1. Its mean, by `expected_value`
      at the bins' centres, is x up to the bins' width, and nearer inside than at ends.

    Raises:
      TypeError: an array is not floating point.
      ValueError: edges is not `(k + 1,)` with k >= 1 or does not increase, or sigma is
        not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> edges = jnp.array([-1.5, -0.5, 0.5, 1.5])
      >>> jaxppo.hl_gauss(jnp.array(0.0), edges, sigma=0.2).round(2)
      Array([0.01, 0.99, 0.01], dtype=float32)
    """
    x, edges = _grid("hl_gauss", "edges", x, edges)
    sigma = _checks.number("hl_gauss", "sigma", sigma, "(0, inf)", x.dtype)
    x = jnp.clip(x, edges[..., 0], edges[..., -1])[..., None]
    z = (edges - x) / (sigma * jnp.sqrt(jnp.array(2, x.dtype)))
    # erfc of the nearer tail: differences of erf are 0 where both round to 1.
    up = z[..., :-1] + z[..., 1:] > 0
    near = jnp.where(up, z[..., :-1], -z[..., 1:])
    far = jnp.where(up, z[..., 1:], -z[..., :-1])
    mass = jax.scipy.special.erfc(near) - jax.scipy.special.erfc(far)
    return jax.lax.stop_gradient(mass / jnp.sum(mass, -1, keepdims=True))


def categorical_value(
    logits: Bins, target_probs: Bins, mask: RowMask | None = None
) -> Rows:
    """The critic's loss as a classifier: the cross-entropy -sum of p_target log p.

    The target is `two_hot(returns, support)` or `hl_gauss(returns, edges, sigma=...)`.

    Args:
      logits: of the critic, `(*batch, k)`, differentiated.
      target_probs: the same shape, constant.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient.

    Returns:
      Nats, `(*batch)`, in float32 at least, not aggregated.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> target = jaxppo.two_hot(jnp.array([0.5]), jnp.array([0.0, 1.0]))
      >>> jaxppo.categorical_value(jnp.zeros((1, 2)), target).round(4)
      Array([0.6931], dtype=float32)
    """
    logits, target, keep = _rows(
        "categorical_value", mask, logits=logits, target_probs=target_probs
    )
    target = jax.lax.stop_gradient(target)
    loss = -jnp.sum(target * jax.nn.log_softmax(logits), -1)
    return loss if keep is None else jnp.where(keep, loss, 0)


def expected_value(logits: Bins, support: Float[Array, " k"]) -> Rows:
    """The value a categorical critic predicts: the mean of its distribution.

    Args:
      logits: of the critic, `(*batch, k)`.
      support: the grid of `two_hot`, or the centres of `hl_gauss`'s bins, `(k,)`.

    Returns:
      `(*batch)`, in float32 at least, differentiable.

    Raises:
      TypeError: an array is not floating point.
      ValueError: support is not `(k,)`.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.expected_value(jnp.zeros(2), jnp.array([0.0, 3.0]))
      Array(1.5, dtype=float32)
    """
    fn = "expected_value"
    (logits,) = _checks.arrays(fn, logits=logits)
    (support,) = _checks.arrays(fn, support=support)
    if not logits.ndim or support.shape != logits.shape[-1:]:
        raise ValueError(
            f"{fn}: `support` has shape {support.shape}, but `logits` has shape "
            f"{logits.shape}; pass one point for each of its last axis."
        )
    support = jnp.broadcast_to(support.astype(logits.dtype), logits.shape)
    return jnp.sum(jax.nn.softmax(logits) * support, -1)


def quantile_value(
    quantiles: Bins,
    returns: Rows,
    mask: RowMask | None = None,
    *,
    delta: Scalar = 1.0,
) -> Rows:
    """Quantile regression with Huber's error: a critic of k quantiles of the return.

    Mean over i of |tau_i - 1[R < q_i]| huber(R - q_i) / delta, tau_i = (i - 1/2) / k:
    q_i comes to lie where a share tau_i of the returns is below (QR-DQN, Dabney et al.,
    2018, arXiv:1710.10044). The critic's value is the mean of its quantiles.

    Args:
      quantiles: q, `(*batch, k)`, differentiated.
      returns: R, `(*batch)`, constant.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient.
      delta: where Huber's error turns linear, in units of the value, positive.

    Returns:
      Losses, `(*batch)`, in float32 at least, not aggregated.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes do not fit, or delta is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.quantile_value(jnp.array([[0.0, 2.0]]), jnp.array([4.0]))
      Array([1.], dtype=float32)
    """
    fn = "quantile_value"
    _checks.arrays(fn, quantiles=quantiles)
    _checks.arrays(fn, returns=returns)
    if not quantiles.ndim or returns.shape != quantiles.shape[:-1]:
        raise ValueError(
            f"{fn}: `returns` has shape {returns.shape}, but `quantiles` has shape "
            f"{quantiles.shape}; pass shape {quantiles.shape[:-1]}."
        )
    spread = jnp.broadcast_to(returns[..., None], quantiles.shape)
    q, target, keep = _rows(fn, mask, quantiles=quantiles, returns=spread)
    delta = _checks.number(fn, "delta", delta, "(0, inf)", q.dtype)
    k = q.shape[-1]
    tau = jnp.broadcast_to((jnp.arange(k, dtype=q.dtype) + 0.5) / k, q.shape)
    error = jax.lax.stop_gradient(target) - q
    size = jnp.abs(error)
    huber = jnp.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))
    loss = jnp.mean(jnp.abs(tau - (error < 0).astype(q.dtype)) * huber, -1) / delta
    return loss if keep is None else jnp.where(keep, loss, 0)


def _grid(fn: str, name: str, x: Array, grid: Array) -> tuple[Array, Array]:
    (x,) = _checks.arrays(fn, x=x)
    (grid,) = _checks.arrays(fn, **{name: grid})
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(
            f"{fn}: `{name}` has shape {grid.shape}; expected (k,), at least 2 "
            "increasing numbers."
        )
    # What is traced passes unseen, as numbers do.
    if not isinstance(grid, jax.core.Tracer) and not np.all(np.diff(grid) > 0):
        raise ValueError(f"{fn}: `{name}` = {grid}; expected increasing numbers.")
    grid = grid.astype(x.dtype).reshape((1,) * x.ndim + grid.shape)
    return jax.lax.stop_gradient(x), grid


def _rows(
    fn: str, mask: Array | None, **named: Array
) -> tuple[Array, Array, Array | None]:
    """Two arrays `(*batch, k)`, 0 in rows the mask leaves out, and what it keeps."""
    a, b = _checks.arrays(fn, **named)
    first = next(iter(named))
    if not a.ndim:
        raise ValueError(f"{fn}: `{first}` has shape (); expected (*batch, k).")
    keep = _checks.valid(fn, mask, **{f"{first}[..., 0]": a[..., 0]})
    if keep is None:
        return a, b, None
    return jnp.where(keep[..., None], a, 0), jnp.where(keep[..., None], b, 0), keep
