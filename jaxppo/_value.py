"""Value terms: how far a critic is from its returns."""

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
) -> PerToken:
    """The larger of two half squared errors: of v, and of v held near v_old.

    max((v - R)^2, (v_old + clip(v - v_old, -eps, eps) - R)^2) / 2. Within eps of
    v_old, bounds included, this is `squared_value`; beyond, there is gradient only
    where v is the farther of the two from R. As in OpenAI Baselines' ppo2 (2017);
    eps is in units of the value, so rescale it with the rewards.

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
    old_values = jax.lax.stop_gradient(old_values)
    returns = jax.lax.stop_gradient(returns)
    shift = values - old_values
    error = (values - returns) ** 2
    held = jax.lax.stop_gradient(
        (old_values + jnp.clip(shift, -eps, eps) - returns) ** 2
    )
    return 0.5 * jnp.where((jnp.abs(shift) <= eps) | (error >= held), error, held)
