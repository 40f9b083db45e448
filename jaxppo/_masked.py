"""Sums, means and variances over what the mask keeps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks
from ._types import Mask, PerToken, Scalar
from ._units import power_of_two


def masked_sum(
    x: PerToken,
    mask: Mask | None = None,
    *,
    axis: int | None = None,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """Sum of the entries that count: sum of m x.

    Args:
      x: any shape.
      mask: of x's shape, bool or integer, nonzero counts; None counts everything.
      axis: the axis to sum over, -1 for time; None for all.
      keepdims: leave the axis there with length 1, to meet x again.

    Returns:
      x's shape without `axis`, in float32 at least; 0 where nothing counts. What lies
      under the mask, NaN included, changes neither value nor gradient.

    Raises:
      TypeError: x is not floating point, the mask is, or axis is not an integer.
      ValueError: the mask is of another shape than x, or there is no such axis.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.array([1.0, 2.0, jnp.nan])
      >>> float(jaxppo.masked_sum(x, jnp.array([True, True, False])))
      3.0
    """
    (x,) = _checks.arrays("masked_sum", mask, x=x)
    _checks.axis("masked_sum", axis, x=x)
    return jnp.sum(x, axis, keepdims=keepdims)


def masked_mean(
    x: PerToken,
    mask: Mask | None = None,
    *,
    axis: int | None = None,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """Mean of the entries that count: sum of m x / sum of m.

    Args:
      x: any shape.
      mask: of x's shape, bool or integer, nonzero counts; None counts everything.
      axis: the axis to average over, -1 for time; None for all.
      keepdims: leave the axis there with length 1, to meet x again.

    Returns:
      x's shape without `axis`, in float32 at least; 0 where nothing counts. For a mean
      that is to merge over microbatches or devices, use `token_mean`.

    Raises:
      TypeError: x is not floating point, the mask is, or axis is not an integer.
      ValueError: the mask is of another shape than x, or there is no such axis.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.array([[1.0, 2.0, jnp.nan], [5.0, 0.0, 0.0]])
      >>> mask = jnp.array([[1, 1, 0], [1, 0, 0]])
      >>> jaxppo.masked_mean(x, mask, axis=-1, keepdims=True)
      Array([[1.5],
             [5. ]], dtype=float32)
    """
    (x,) = _checks.arrays("masked_mean", mask, x=x)
    _checks.axis("masked_mean", axis, x=x)
    count = _count(_checks.kept("masked_mean", mask, x=x), x, axis, keepdims)
    return jnp.sum(x, axis, keepdims=keepdims) / jnp.maximum(count, 1)


def masked_max(
    x: PerToken,
    mask: Mask | None = None,
    *,
    axis: int | None = None,
    keepdims: bool = False,
) -> Float[Array, "..."]:
    """Largest of the entries that count; `-masked_max(-x, mask)` is the smallest.

    Args:
      x: any shape.
      mask: of x's shape, bool or integer, nonzero counts; None counts everything.
      axis: the axis to look along, -1 for time; None for all.
      keepdims: leave the axis there with length 1, to meet x again.

    Returns:
      x's shape without `axis`, in float32 at least; -inf where nothing counts.

    Raises:
      TypeError: x is not floating point, the mask is, or axis is not an integer.
      ValueError: the mask is of another shape than x, or there is no such axis.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.array([[1.0, 2.0, 9.0], [5.0, 0.0, 0.0]])
      >>> jaxppo.masked_max(x, jnp.array([[1, 1, 0], [1, 0, 0]]), axis=-1)
      Array([2., 5.], dtype=float32)
    """
    (x,) = _checks.arrays("masked_max", mask, x=x)
    _checks.axis("masked_max", axis, x=x)
    keep = _checks.valid("masked_max", mask, x=x)
    return jnp.max(x, axis, keepdims=keepdims, initial=-jnp.inf, where=keep)


def masked_variance(
    x: PerToken, mask: Mask | None = None, *, ddof: Scalar = 0
) -> Float[Array, ""]:
    """Variance of the entries that count, in two passes: sum of m (x - mean)^2 / n.

    Args:
      x: any shape.
      mask: of x's shape, bool or integer, nonzero counts; None counts everything.
      ddof: n is the count less this: 0 for the population's variance, 1 for the
        unbiased one (torch's default).

    Returns:
      A scalar, in float32 at least; 0 where at most `ddof` entries count.

    Raises:
      TypeError: x is not floating point, or the mask is.
      ValueError: the mask is of another shape than x, or ddof is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.array([1.0, 3.0, jnp.nan])
      >>> float(jaxppo.masked_variance(x, jnp.array([True, True, False]), ddof=1))
      2.0
    """
    (x,) = _checks.arrays("masked_variance", mask, x=x)
    ddof = _checks.number("masked_variance", "ddof", ddof, "[0, inf)", x.dtype)
    return _variance(*_centred("masked_variance", x, mask), ddof)


def centred(x: PerToken, mask: Mask | None = None) -> PerToken:
    """Zero mean over what counts: m (x - mean), exactly 0 for constant input.

    For a whitening of your own: subtracting `masked_mean` leaves the mean's rounding,
    which 1 / sqrt(variance + 1e-8) makes 1e4 times larger.

    Args:
      x: any shape, usually advantages; the mean is over all axes.
      mask: of x's shape, bool or integer, nonzero counts; None counts everything.

    Returns:
      An array of x's shape, in float32 at least; 0 where the mask is 0.

    Raises:
      TypeError: x is not floating point, or the mask is.
      ValueError: the mask is of another shape than x.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.centred(jnp.array([1.0, 2.0, 9.9]), jnp.array([1, 1, 0]))
      Array([-0.5,  0.5,  0. ], dtype=float32)
    """
    (x,) = _checks.arrays("centred", mask, x=x)
    return _centred("centred", x, mask)[0]


def whiten(
    x: PerToken, mask: Mask | None = None, *, ddof: Scalar = 0, eps: Scalar = 1e-8
) -> PerToken:
    """Zero mean and unit variance over what counts: (x - mean) / (std + eps).

    The statistics are over all axes of the array given. Whiten a whole batch before
    it is cut into microbatches: the statistics of a microbatch are not the batch's.

    Args:
      x: any shape, usually advantages.
      mask: of x's shape, bool or integer, nonzero counts; None counts everything.
      ddof: 0 (JAX and NumPy) or 1 (torch) for the standard deviation.
      eps: added to the standard deviation.

    Returns:
      An array of x's shape, in float32 at least; 0 where the mask is 0, and exactly 0
      for constant input.

    Raises:
      TypeError: x is not floating point, or the mask is.
      ValueError: the mask is of another shape than x; ddof or eps is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x, mask = jnp.array([1.0, 2.0, 3.0, 9.9]), jnp.array([1, 1, 1, 0])
      >>> jaxppo.whiten(x, mask).round(3)
      Array([-1.225,  0.   ,  1.225,  0.   ], dtype=float32)
    """
    (x,) = _checks.arrays("whiten", mask, x=x)
    ddof = _checks.number("whiten", "ddof", ddof, "[0, inf)", x.dtype)
    eps = _checks.number("whiten", "eps", eps, "[0, inf)", x.dtype)
    centred, count = _centred("whiten", x, mask)
    largest = jnp.max(jnp.abs(x), initial=0)
    unit = power_of_two(largest)
    variance = _variance(centred / unit, count, ddof)
    # Entries that differ in their last bit only are equal, and 0; dividing them by 1
    # and not by 0 makes their gradient finite, too.
    rounding = jnp.finfo(x.dtype).eps * (largest / unit)
    equal = variance <= rounding**2
    std = jnp.sqrt(jnp.where(equal, 1, variance)) + eps / unit
    return jnp.where(equal, 0, centred / unit / std)


def _count(
    keep: Array, x: Array, axis: int | None = None, keepdims: bool = False
) -> Array:
    # In int32: float32 counters stop at 2^24 tokens.
    return jnp.sum(keep, axis, jnp.int32, keepdims=keepdims).astype(x.dtype)


def _variance(centred: Array, count: Array, ddof: Array) -> Array:
    freedom = count - ddof
    variance = jnp.sum(centred**2) / jnp.where(freedom > 0, freedom, 1)
    return jnp.where(freedom > 0, variance, 0)


def _centred(fn: str, x: Array, mask: Mask | None) -> tuple[Array, Array]:
    """x less its mean, 0 under the mask, and the count."""
    keep = _checks.kept(fn, mask, x=x)
    count = _count(keep, x)
    # Relative to one of the entries: exactly 0 for constant input of any size, and
    # no cancellation where the mean is far larger than the deviations.
    shift = jnp.max(x, initial=-jnp.inf, where=keep)
    shift = jax.lax.stop_gradient(jnp.where(jnp.isfinite(shift), shift, 0))
    x = jnp.where(keep, x - shift, 0)
    return jnp.where(keep, x - jnp.sum(x) / jnp.maximum(count, 1), 0), count
