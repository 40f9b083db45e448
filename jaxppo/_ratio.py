"""The log-ratio, which everything that comes after the policy takes: the gate.

Whatever is exponentiated in this library has come through here: masked on the way in,
in float32 at least, and bounded.
"""

import math

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
    ratio, keep = _gate("sequence_log_ratio", log_probs, old_log_probs, mask, max_abs)
    return _spread(_mean(ratio, keep), ratio, keep)


def sequence_token_log_ratio(
    log_probs: Float[Array, "*b t"],
    old_log_probs: Float[Array, "*b t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    max_abs: Scalar = 20.0,
) -> Float[Array, "*b t"]:
    """`sequence_log_ratio` where it is read, each token's own where differentiated.

    s_t = sg(mean of the log-ratios) + log pi_t - sg(log pi_t): GSPO-token (Zheng et
    al., 2025, arXiv:2507.18071). With one advantage per sequence its loss has GSPO's
    gradient; with advantages that vary inside a sequence, each token keeps its own,
    where GSPO's mean spreads it over all.

    Args:
      log_probs: log pi of the sampled tokens, nats, `(*batch, time)`.
      old_log_probs: log pi_old, same shape, constant.
      mask: same shape, bool or integer, nonzero counts.
      max_abs: bound of each token's log-ratio, beyond which it has no gradient.

    Returns:
      An array of the same shape: the mean at each token that counts, 0 at the others.

    Raises:
      TypeError: log-probs are not floating point, or the mask is.
      ValueError: shapes differ or have no time axis, or max_abs is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> new, old = jnp.array([-1.0, -1.0, 9.0]), jnp.array([-1.5, -2.5, 0.0])
      >>> jaxppo.sequence_token_log_ratio(new, old, jnp.array([True, True, False]))
      Array([1., 1., 0.], dtype=float32)
    """
    ratio, keep = _gate(
        "sequence_token_log_ratio", log_probs, old_log_probs, mask, max_abs
    )
    mean = jax.lax.stop_gradient(_mean(ratio, keep))
    return _spread(mean, ratio, keep) + (ratio - jax.lax.stop_gradient(ratio))


def trajectory_log_ratio(
    log_probs: Float[Array, "*b t"],
    old_log_probs: Float[Array, "*b t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    max_abs: Scalar = 20.0,
) -> Float[Array, "*b t"]:
    """The log-ratio of each whole sequence, at each of its tokens: the sum over time.

    log of prod over t of pi_t / pi_old_t: unbiased importance weights of trajectories,
    whose variance grows with their length. TRL's and verl's "sequence" level; other
    systems (OpenRLHF, ms-swift) mean `sequence_log_ratio` by that word.

    Args:
      log_probs: log pi of the sampled tokens, nats, `(*batch, time)`.
      old_log_probs: log pi_old, same shape, constant.
      mask: same shape, bool or integer, nonzero counts.
      max_abs: bound of the sum (tokens are not bounded one by one).

    Returns:
      An array of the same shape: the sum at each token that counts, 0 at the others.

    Raises:
      TypeError: log-probs are not floating point, or the mask is.
      ValueError: shapes differ or have no time axis, or max_abs is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> new, old = jnp.array([-1.0, -1.0, 9.0]), jnp.array([-1.5, -2.5, 0.0])
      >>> jaxppo.trajectory_log_ratio(new, old, jnp.array([True, True, False]))
      Array([2., 2., 0.], dtype=float32)
    """
    fn = "trajectory_log_ratio"
    ratio, keep = _gate(fn, log_probs, old_log_probs, mask, math.inf)
    max_abs = _checks.number(fn, "max_abs", max_abs, "(0, inf]", ratio.dtype)
    return _spread(_bound(jnp.sum(ratio, -1, keepdims=True), max_abs), ratio, keep)


def segment_log_ratio(
    log_probs: Float[Array, "*b t"],
    old_log_probs: Float[Array, "*b t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    max_abs: Scalar = 20.0,
) -> Float[Array, "*b t"]:
    """The mean log-ratio of each run of tokens between masked ones, at each of them.

    Runs are what the policy wrote in one go, between prompts, tool results and padding:
    one ratio per turn of a conversation (ROLL's "segment"). Without holes this is
    `sequence_log_ratio`, with its gradient.

    Args:
      log_probs: log pi of the sampled tokens, nats, `(*batch, time)`.
      old_log_probs: log pi_old, same shape, constant.
      mask: same shape, bool or integer, nonzero counts.
      max_abs: bound of each token's log-ratio, and so of the mean.

    Returns:
      An array of the same shape: its run's mean at each token that counts, 0 at the
      others.

    Raises:
      TypeError: log-probs are not floating point, or the mask is.
      ValueError: shapes differ or have no time axis, or max_abs is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.array([1.0, 2.0, 9.0, 5.0])
      >>> jaxppo.segment_log_ratio(x, jnp.zeros(4), jnp.array([1, 1, 0, 1]))
      Array([1.5, 1.5, 0. , 5. ], dtype=float32)
    """
    fn = "segment_log_ratio"
    ratio, keep = _gate(fn, log_probs, old_log_probs, mask, max_abs)
    if keep is None:
        return _spread(_mean(ratio, keep), ratio, keep)
    # Tokens of one run have as many masked ones before them; a comparison of all with
    # all would be quadratic in time, so add up by that number.
    *batch, time = ratio.shape
    run = jnp.cumsum(~keep, -1, dtype=jnp.int32).reshape(math.prod(batch), time)
    flat, valid = ratio.reshape(run.shape), keep.reshape(run.shape)

    def means(ratio: Array, valid: Array, run: Array) -> Array:
        total, length = (
            jax.ops.segment_sum(x, run, num_segments=run.shape[-1] + 1)
            for x in (ratio, valid.astype(ratio.dtype))
        )
        return (total / jnp.maximum(length, 1))[run]

    return jnp.where(keep, jax.vmap(means)(flat, valid, run).reshape(keep.shape), 0)


def _gate(
    fn: str, log_probs: Array, old_log_probs: Array, mask: Array | None, max_abs: Scalar
) -> tuple[Array, Array | None]:
    """`log_ratio` for the functions that look along time, and the mask."""
    log_probs, old_log_probs = _checks.arrays(
        fn, mask, log_probs=log_probs, old_log_probs=old_log_probs
    )
    _checks.has_time(fn, log_probs=log_probs)
    max_abs = _checks.number(fn, "max_abs", max_abs, "(0, inf]", log_probs.dtype)
    keep = _checks.valid(fn, mask, log_probs=log_probs)
    ratio = log_probs - jax.lax.stop_gradient(old_log_probs)
    return _bound(ratio, max_abs), keep


def _mean(ratio: Array, keep: Array | None) -> Array:
    """Of each sequence, over its tokens that count; the others are 0."""
    count = (
        jnp.array(ratio.shape[-1])
        if keep is None
        else jnp.sum(keep, -1, keepdims=True, dtype=jnp.int32)
    )
    length = jnp.maximum(count, 1).astype(ratio.dtype)
    return jnp.sum(ratio, -1, keepdims=True) / length


def _spread(per_sequence: Array, ratio: Array, keep: Array | None) -> Array:
    """Of a sequence to its tokens, and 0 to the masked ones.

    There, too: a NaN that meets them would come back through the sum to the tokens
    that count.
    """
    out = jnp.broadcast_to(per_sequence, ratio.shape)
    return out if keep is None else jnp.where(keep, out, 0)


def _bound(x: Array, max_abs: Array) -> Array:
    # Not `clip` alone: it splits the gradient at its bounds; this keeps it up to them.
    held = jax.lax.stop_gradient(jnp.clip(x, -max_abs, max_abs))
    return jnp.where(jnp.abs(x) <= max_abs, x, held)
