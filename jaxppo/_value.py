"""Value terms: how far a critic is from its returns."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from . import _checks
from ._types import Mask, PerToken, Scalar


def squared_value(
    values: PerToken, returns: PerToken, mask: Mask | None = None
) -> PerToken:
    """Half the squared error of a critic per step: (v - R)^2 / 2.

    Args:
      values: v, differentiated; any shape `(*batch, time)`.
      returns: R, the same shape, constant.
      mask: the same shape, bool or integer, nonzero counts.

    Returns:
      Losses of the same shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.squared_value(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0]))
      Array([2., 0.], dtype=float32)
    """
    values, returns = _checks.arrays(
        "squared_value", mask, values=values, returns=returns
    )
    return 0.5 * (values - jax.lax.stop_gradient(returns)) ** 2


def clipped_value(
    values: PerToken,
    old_values: PerToken,
    returns: PerToken,
    mask: Mask | None = None,
    *,
    clip_eps: Scalar = 0.2,
    error: Callable[[PerToken, PerToken], PerToken] = squared_value,
) -> PerToken:
    """The larger of two errors: of v, and of v held near v_old.

    max(error(v, R), error(v_old + clip(v - v_old, -eps, eps), R)), by default
    (v - R)^2 / 2. Within eps of v_old, bounds included, this is the plain error;
    beyond, there is gradient only where v is the farther of the two from R. As in
    OpenAI Baselines' ppo2 (2017); eps is in units of the value, so rescale it with the
    rewards.

    Args:
      values: v, differentiated; any shape `(*batch, time)`.
      old_values: v_old at rollout, the same shape, constant.
      returns: R, the same shape, constant.
      mask: the same shape, bool or integer, nonzero counts.
      clip_eps: eps > 0.
      error: of values and returns, per step: `squared_value`, `huber_value`, ...

    Returns:
      Losses of the same shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, the mask is, or error is no function.
      ValueError: shapes differ, or clip_eps is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> v, old, target = jnp.array([1.0]), jnp.array([0.0]), jnp.array([2.0])
      >>> jaxppo.clipped_value(v, old, target, clip_eps=0.5)  # (0.5 - 2)^2 / 2
      Array([1.125], dtype=float32)
    """
    values, old_values, returns = _checks.arrays(
        "clipped_value", mask, values=values, old_values=old_values, returns=returns
    )
    eps = _checks.number(
        "clipped_value", "clip_eps", clip_eps, "(0, inf]", values.dtype
    )
    _checks.function("clipped_value", "error", error, "jaxppo.squared_value")
    old_values = jax.lax.stop_gradient(old_values)
    shift = values - old_values
    plain = error(values, returns)
    held = error(old_values + jnp.clip(shift, -eps, eps), returns)
    held = jax.lax.stop_gradient(held)
    return jnp.where((jnp.abs(shift) <= eps) | (plain >= held), plain, held)


def bounded_value(
    values: PerToken,
    old_values: PerToken,
    returns: PerToken,
    mask: Mask | None = None,
    *,
    clip_eps: Scalar = 0.2,
) -> PerToken:
    """Half the squared error of v held near v_old, without a maximum.

    (v_old + clip(v - v_old, -eps, eps) - R)^2 / 2, as in SB3's `clip_range_vf`. Beyond
    eps there is no gradient, not even towards R when v has gone the wrong way:
    `clipped_value` keeps that one.

    Args:
      values: v, differentiated; any shape `(*batch, time)`.
      old_values: v_old at rollout, the same shape, constant.
      returns: R, the same shape, constant.
      mask: the same shape, bool or integer, nonzero counts.
      clip_eps: eps > 0.

    Returns:
      Losses of the same shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, or clip_eps is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> v, old, target = jnp.array([-1.0]), jnp.array([0.0]), jnp.array([2.0])
      >>> jaxppo.bounded_value(v, old, target, clip_eps=0.5)  # (-0.5 - 2)^2 / 2
      Array([3.125], dtype=float32)
    """
    values, old_values, returns = _checks.arrays(
        "bounded_value", mask, values=values, old_values=old_values, returns=returns
    )
    eps = _checks.number(
        "bounded_value", "clip_eps", clip_eps, "(0, inf]", values.dtype
    )
    old_values = jax.lax.stop_gradient(old_values)
    shift = values - old_values
    held = jax.lax.stop_gradient(jnp.clip(shift, -eps, eps))
    # The whole gradient up to the bound, included.
    shift = jnp.where(jnp.abs(shift) <= eps, shift, held)
    return squared_value(old_values + shift, returns)


def huber_value(
    values: PerToken,
    returns: PerToken,
    mask: Mask | None = None,
    *,
    delta: Scalar = 1.0,
) -> PerToken:
    """Huber's error: quadratic up to delta, linear beyond, so that no return dominates.

    e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), with e = v - R (Huber,
    1964). torch's smooth L1 of width beta is `huber_value(..., delta=beta) / beta`.

    Args:
      values: v, differentiated; any shape `(*batch, time)`.
      returns: R, the same shape, constant.
      mask: the same shape, bool or integer, nonzero counts.
      delta: where it turns linear, in units of the value, positive.

    Returns:
      Losses of the same shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, or delta is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.huber_value(jnp.array([0.5, 3.0]), jnp.zeros(2))
      Array([0.125, 2.5  ], dtype=float32)
    """
    values, returns = _checks.arrays(
        "huber_value", mask, values=values, returns=returns
    )
    delta = _checks.number("huber_value", "delta", delta, "(0, inf)", values.dtype)
    error = values - jax.lax.stop_gradient(returns)
    size = jnp.abs(error)
    return jnp.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))
