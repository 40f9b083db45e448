"""Weights that correct for a sampler other than the trainer's own policy."""

import jax
import jax.numpy as jnp

from . import _checks
from ._types import PerToken, Scalar


def truncated_weights(log_ratio: PerToken, *, cap: Scalar = 2.0) -> PerToken:
    """Truncated importance weights: min(exp(log_ratio), cap), constant.

    With log_ratio = log pi_old - log pi_rollout they correct for an inference engine
    whose log-probs are not the trainer's ("TIS", Yao et al., 2025); multiply a policy
    term by them, or pass them as `weights` to `ppo_loss`.

    Args:
      log_ratio: `log_ratio(old_log_probs, rollout_log_probs, mask)`, any shape.
      cap: the largest weight, positive.

    Returns:
      An array of the same shape, in float32 at least, without gradient.

    Raises:
      TypeError: log_ratio is not a floating-point array.
      ValueError: cap is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.truncated_weights(jnp.log(jnp.array([0.5, 3.0]))).round(3)
      Array([0.5, 2. ], dtype=float32)
    """
    (x,) = _checks.arrays("truncated_weights", log_ratio=log_ratio)
    cap = _checks.number("truncated_weights", "cap", cap, "(0, inf]", x.dtype)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(x), cap))


def band_weights(
    log_ratio: PerToken, *, low: Scalar = 0.5, high: Scalar = 2.0
) -> PerToken:
    """Importance weights inside a band, 0 outside it, constant.

    exp(log_ratio) where it lies in [low, high]; tokens on which sampler and trainer
    disagree by more take no part ("IcePop", Ling team, 2025).

    Args:
      log_ratio: `log_ratio(old_log_probs, rollout_log_probs, mask)`, any shape.
      low: smallest weight kept, at least 0.
      high: largest weight kept, positive.

    Returns:
      An array of the same shape, in float32 at least, without gradient.

    Raises:
      TypeError: log_ratio is not a floating-point array.
      ValueError: low is negative, or high is below it.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.band_weights(jnp.log(jnp.array([0.1, 0.5, 3.0])), low=0.4)
      Array([0. , 0.5, 0. ], dtype=float32)
    """
    (x,) = _checks.arrays("band_weights", log_ratio=log_ratio)
    least = 0 if isinstance(low, jax.Array) else low
    low = _checks.number("band_weights", "low", low, "[0, inf)", x.dtype)
    high = _checks.number("band_weights", "high", high, f"[{least}, inf]", x.dtype)
    ratio = jax.lax.stop_gradient(jnp.exp(x))
    return jnp.where((ratio < low) | (ratio > high), 0, ratio)  # keeps a NaN in sight
