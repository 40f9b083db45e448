"""The log-ratio, the joint of everything that comes after the policy.

Whatever is exponentiated in this library has come through here: masked on the way in,
in float32 at least, and bounded.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._types import Mask, PerToken, Scalar


def log_ratio(
    log_probs: PerToken,
    old_log_probs: PerToken,
    mask: Mask | None = None,
    *,
    max_abs: Scalar = 20.0,
) -> PerToken:
    """log pi - log pi_old per token, 0 under the mask, bounded: the gate before exp.

    Beyond `max_abs` the log-ratio is held and its gradient is 0, so that infinite or
    absurd log-probs of valid tokens give finite losses and gradients; such tokens
    are counted by `bound_fraction`. A NaN at a valid token (or -inf from both policies,
    which says nothing) is not hidden.

    Args:
      log_probs: log pi of the sampled actions, nats, differentiated; any shape.
      old_log_probs: log pi_old (or the reference's, or the sampler's), same shape,
        constant.
      mask: same shape, bool or integer, nonzero counts.
      max_abs: the bound, nats; exp(20) = 4.9e8. `math.inf` for none.

    Returns:
      An array of the same shape, in float32 at least.

    Raises:
      TypeError: log-probs are not floating point, or the mask is.
      ValueError: shapes differ, or max_abs is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.log_ratio(jnp.array([-1.0, -jnp.inf]), jnp.array([-1.5, -2.0]))
      Array([  0.5, -20. ], dtype=float32)
    """
    log_probs, old_log_probs = _checks.arrays(
        "log_ratio", mask, log_probs=log_probs, old_log_probs=old_log_probs
    )
    max_abs = _checks.number(
        "log_ratio", "max_abs", max_abs, "(0, inf]", log_probs.dtype
    )
    return _bound(log_probs - jax.lax.stop_gradient(old_log_probs), max_abs)


def sequence_log_ratio(
    log_probs: Float[Array, "*b t"],
    old_log_probs: Float[Array, "*b t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    max_abs: Scalar = 20.0,
) -> Float[Array, "*b t"]:
    """The mean log-ratio of each sequence, at each of its tokens: GSPO's ratio.

    s = (1 / n) sum over t of (log pi_t - log pi_old_t): the logarithm of the
    length-normalised ratio of whole sequences. The gradient is the mean's: every token
    of the sequence receives 1/n of it (Zheng et al., 2025, arXiv:2507.18071).

    Args:
      log_probs: log pi of the sampled tokens, nats, `(*batch, time)`.
      old_log_probs: log pi_old, same shape, constant.
      mask: same shape, bool or integer, nonzero counts.
      max_abs: bound of each token's log-ratio, and so of the mean.

    Returns:
      An array of the same shape: the mean at each token that counts, 0 at the others.

    Raises:
      TypeError: log-probs are not floating point, or the mask is.
      ValueError: shapes differ or have no time axis, or max_abs is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> new, old = jnp.array([-1.0, -1.0, 9.0]), jnp.array([-1.5, -2.5, 0.0])
      >>> jaxppo.sequence_log_ratio(new, old, jnp.array([True, True, False]))
      Array([1., 1., 0.], dtype=float32)
    """
    log_probs, old_log_probs = _checks.arrays(
        "sequence_log_ratio", mask, log_probs=log_probs, old_log_probs=old_log_probs
    )
    _checks.has_time("sequence_log_ratio", log_probs=log_probs)
    max_abs = _checks.number(
        "sequence_log_ratio", "max_abs", max_abs, "(0, inf]", log_probs.dtype
    )
    keep = _checks.valid("sequence_log_ratio", mask, log_probs=log_probs)
    ratio = _bound(log_probs - jax.lax.stop_gradient(old_log_probs), max_abs)
    count = ratio.shape[-1] if keep is None else jnp.sum(keep, -1, keepdims=True)
    mean = jnp.sum(ratio, -1, keepdims=True) / jnp.maximum(count, 1).astype(ratio.dtype)
    mean = jnp.broadcast_to(mean, ratio.shape)
    # At masked tokens, too, 0: a NaN that meets them there would come back through the
    # mean to the tokens that count.
    return mean if keep is None else jnp.where(keep, mean, 0)


def _bound(x: Array, max_abs: Array) -> Array:
    # Not `clip` alone: it splits the gradient at its bounds; this keeps it up to them.
    held = jax.lax.stop_gradient(jnp.clip(x, -max_abs, max_abs))
    return jnp.where(jnp.abs(x) <= max_abs, x, held)
