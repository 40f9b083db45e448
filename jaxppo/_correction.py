"""Weights and masks that correct for a sampler other than the trainer's own policy.

Their log-ratio is log pi_old - log pi_rollout: `log_ratio` of it is per token,
`sequence_log_ratio` its mean (the geometric mean of the ratios), `segment_log_ratio` a
turn's, `trajectory_log_ratio` its sum (the product).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._masked import masked_mean
from ._types import Mask, PerSequence, PerToken, Scalar


def truncated_weights(
    log_ratio: PerToken, *, cap: Scalar = 2.0, floor: Scalar = 0.0
) -> PerToken:
    """Truncated importance weights: exp(log_ratio) held in [floor, cap], constant.

    With log_ratio = log pi_old - log pi_rollout they correct for an inference engine
    whose log-probs are not the trainer's ("TIS", Yao et al., 2025); multiply a policy
    term by them, or pass them as `weights` to `ppo_loss`.

    Args:
      log_ratio: `log_ratio(old_log_probs, rollout_log_probs, mask)`, any shape.
      cap: the largest weight, positive.
      floor: the smallest weight, at least 0.

    Returns:
      An array of the same shape, in float32 at least, without gradient.

    Raises:
      TypeError: log_ratio is not a floating-point array.
      ValueError: floor is negative, or cap is below it.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.truncated_weights(jnp.log(jnp.array([0.5, 3.0]))).round(3)
      Array([0.5, 2. ], dtype=float32)
    """
    (x,) = _checks.arrays("truncated_weights", log_ratio=log_ratio)
    fn, least = "truncated_weights", floor
    floor = _checks.number(fn, "floor", floor, "[0, inf)", x.dtype)
    above = _checks.upwards(least, positive=True)
    cap = _checks.number(fn, "cap", cap, above, x.dtype)
    return jax.lax.stop_gradient(jnp.clip(jnp.exp(x), floor, cap))


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
    least = low
    low = _checks.number("band_weights", "low", low, "[0, inf)", x.dtype)
    high = _checks.number("band_weights", "high", high, _checks.upwards(least), x.dtype)
    ratio = jax.lax.stop_gradient(jnp.exp(x))
    return jnp.where((ratio < low) | (ratio > high), 0, ratio)  # keeps a NaN in sight


def normalised_weights(weights: PerToken, mask: Mask | None = None) -> PerToken:
    """Weights divided by their mean, so that a batch keeps its size on average.

    Self-normalised importance sampling: biased, of less variance (`batch_normalize` in
    slime, and per token in verl). The mean is over the whole array: normalise a batch
    before it is cut into microbatches.

    Args:
      weights: from `truncated_weights`, any shape.
      mask: the same shape, bool or integer, nonzero counts.

    Returns:
      An array of the same shape, in float32 at least, without gradient, 0 under the
      mask; the weights as they are where their mean is below 1e-8.

    Raises:
      TypeError: weights are not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.normalised_weights(jnp.array([0.5, 1.5, 9.0]), jnp.array([1, 1, 0]))
      Array([0.5, 1.5, 0. ], dtype=float32)
    """
    (w,) = _checks.arrays("normalised_weights", mask, weights=weights)
    mean = masked_mean(w, mask)
    return jax.lax.stop_gradient(w / jnp.where(mean > 1e-8, mean, 1))


def rejection_mask(
    statistic: PerSequence,
    mask: Mask,
    *,
    low: Scalar = -jnp.inf,
    high: Scalar = jnp.inf,
) -> Bool[Array, "*s"]:
    """The tokens of a mask whose statistic lies in [low, high].

    The statistic is anything per token, such as `kl_k3(x)`, or per sequence, such as
    `masked_mean(kl_k3(x), mask, axis=-1, keepdims=True)`, or a `masked_max` or
    `masked_sum`: one number for all of a sequence's tokens keeps or rejects it whole. A
    *veto* rejects sequences with a single token of a far too small ratio:
    `rejection_mask(masked_max(-x, mask, axis=-1, keepdims=True), mask,
    high=-log(1e-4))`.

    Args:
      statistic: the mask's shape, or `(*batch, 1)`.
      mask: bool or integer, nonzero counts.
      low: smallest value kept.
      high: largest value kept.

    Returns:
      Booleans of the mask's shape. As the `mask` of an aggregator they shrink its
      denominator; where that is to stay the original, multiply the loss by them.

    Raises:
      TypeError: statistic is not floating point, or the mask is.
      ValueError: shapes differ, or a bound is NaN.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x, mask = jnp.array([[0.1, 0.5], [0.2, 0.1]]), jnp.array([[1, 1], [1, 0]])
      >>> mean = jaxppo.masked_mean(jaxppo.kl_k2(x), mask, axis=-1, keepdims=True)
      >>> jaxppo.rejection_mask(mean, mask, high=0.03)
      Array([[False, False],
             [ True, False]], dtype=bool)
    """
    fn = "rejection_mask"
    (x,) = _checks.arrays(fn, statistic=statistic)
    keep = _checks.valid(fn, mask, mask=mask)
    if keep is None:
        raise TypeError(f"{fn}: `mask` is None; pass the mask to take tokens from.")
    _checks.same_shape(fn, "statistic", x, "mask", keep.shape, one_per_sequence=True)
    low = _checks.number(fn, "low", low, "[-inf, inf]", x.dtype)
    high = _checks.number(fn, "high", high, "[-inf, inf]", x.dtype)
    return keep & ~((x < low) | (x > high))  # a NaN stays in sight


def off_policy_sequence_mask(
    log_ratio: Float[Array, "*b t"],
    advantages: Float[Array, "*#b #t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    threshold: Scalar,
) -> Bool[Array, "*b t"]:
    """OPSM: without the bad sequences the policy would hardly write any more.

    False where A < 0 and the mean over the sequence of -log_ratio is above the
    threshold (DeepSeek-V3.2, 2025, arXiv:2512.02556). Here log_ratio is of the current
    policy against the sampler's: log pi - log pi_rollout.

    Args:
      log_ratio: from `log_ratio`, `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`.
      mask: log_ratio's shape, bool or integer, nonzero counts.
      threshold: largest mean kept, nats.

    Returns:
      Booleans of log_ratio's shape, False under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ or have no time axis, or threshold is NaN.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x, advantages = jnp.full((2, 2), -0.5), jnp.array([[1.0], [-1.0]])
      >>> jaxppo.off_policy_sequence_mask(x, advantages, threshold=0.1)
      Array([[ True,  True],
             [False, False]], dtype=bool)
    """
    fn = "off_policy_sequence_mask"
    x, advantages = _checks.arrays(
        fn,
        mask,
        per_sequence=("advantages",),
        log_ratio=log_ratio,
        advantages=advantages,
    )
    _checks.has_time(fn, log_ratio=x)
    threshold = _checks.number(fn, "threshold", threshold, "[-inf, inf]", x.dtype)
    keep = _checks.valid(fn, mask, log_ratio=x)
    drift = masked_mean(-x, mask, axis=-1, keepdims=True)
    advantages = jnp.broadcast_to(advantages, x.shape)
    out = ~((advantages < 0) & (drift > threshold))
    return out if keep is None else keep & out


def second_moment_mask(
    log_ratio: PerToken, mask: Mask | None = None, *, threshold: Scalar = 0.04
) -> Bool[Array, "*s"]:
    """M2PO: without the largest log-ratios, until the mean square is below a threshold.

    Of the tokens in order of their x^2, as many as possible are kept, at least one,
    such that the mean of x^2 over them is below the threshold (Zheng et al., 2025,
    arXiv:2510.01161). The choice is over the whole array.

    Args:
      log_ratio: from `log_ratio`, any shape.
      mask: the same shape, bool or integer, nonzero counts.
      threshold: bound of the second moment, positive.

    Returns:
      Booleans of the same shape, False under the mask.

    Raises:
      TypeError: log_ratio is not floating point, or the mask is.
      ValueError: shapes differ, or threshold is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.second_moment_mask(jnp.array([0.1, 2.0, -0.2]))
      Array([ True, False,  True], dtype=bool)
    """
    fn = "second_moment_mask"
    (x,) = _checks.arrays(fn, mask, log_ratio=log_ratio)
    threshold = _checks.number(fn, "threshold", threshold, "(0, inf]", x.dtype)
    keep = _checks.kept(fn, mask, log_ratio=x)
    square = jnp.where(keep, x**2, jnp.inf).ravel()
    order = jnp.argsort(square)
    # From the smallest up the running mean only grows: count while it is in bounds.
    counts = jnp.arange(1, square.size + 1, dtype=x.dtype)
    ordered = jnp.where(jnp.isinf(square[order]), jnp.inf, square[order])
    within = jnp.sum(jnp.cumsum(ordered) / counts < threshold, dtype=jnp.int32)
    rank = jnp.argsort(order).reshape(x.shape)
    smallest = rank < jnp.maximum(within, 1).astype(rank.dtype)
    return keep & (smallest | jnp.isnan(x))  # which sorts last, and stays in sight
