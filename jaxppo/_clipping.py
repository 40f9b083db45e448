"""Policy terms that clip the ratio: the surrogate of PPO and its relatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._masked import masked_mean
from ._types import PerSequence, PerToken, Scalar


def clipped_surrogate(
    log_ratio: PerToken,
    advantages: PerSequence,
    *,
    clip_eps: Scalar = 0.2,
    clip_eps_high: Scalar | None = None,
    dual_clip: Scalar | None = None,
) -> PerToken:
    """The clipped surrogate of PPO per token: -min(r A, clip(r, 1 - eps, 1 + high) A).

    r = exp(log_ratio). The ratio earns gradient up to 1 + high where A > 0 and down
    to 1 - eps where A < 0, bounds included. With a dual clip c the loss is never more
    than c |A| where A < 0, however large the ratio. Sources: Schulman et al., 2017
    (arXiv:1707.06347); dual clip Ye et al., 2020 (arXiv:1912.09729); asymmetric
    bounds DAPO, Yu et al., 2025 (arXiv:2503.14476).

    Args:
      log_ratio: from `log_ratio` or `sequence_log_ratio`, any shape `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)` for one advantage per sequence;
        constant.
      clip_eps: eps in (0, 1), how far the ratio may fall below 1.
      clip_eps_high: how far it may rise above 1, positive; None means `clip_eps`.
      dual_clip: c > 1, or None for no dual clip. (TRL calls it delta; the two
        agree where c > 1 + high.)

    Returns:
      Losses of log_ratio's shape, in float32 at least, not aggregated.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ, or a hyper-parameter is out of its range.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jaxppo.log_ratio(jnp.log(jnp.array([1.1, 1.5, 0.5])), jnp.zeros(3))
      >>> jaxppo.clipped_surrogate(x, jnp.ones(3)).round(3)
      Array([-1.1, -1.2, -0.5], dtype=float32)
    """
    fn = "clipped_surrogate"
    log_ratio, advantages = _checks.arrays(
        fn, per_sequence=("advantages",), log_ratio=log_ratio, advantages=advantages
    )
    eps = _checks.number(fn, "clip_eps", clip_eps, "(0, 1)", log_ratio.dtype)
    high = eps
    if clip_eps_high is not None:
        high = _checks.number(
            fn, "clip_eps_high", clip_eps_high, "(0, inf)", log_ratio.dtype
        )
    cap = jnp.inf
    if dual_clip is not None:
        cap = _checks.number(fn, "dual_clip", dual_clip, "(1, inf]", log_ratio.dtype)
    advantages = jax.lax.stop_gradient(advantages)
    ratio = jnp.exp(log_ratio)
    rising = advantages >= 0
    low, high = jnp.where(rising, 0, 1 - eps), jnp.where(rising, 1 + high, cap)
    # One explicit choice instead of `minimum` and `clip`, which split the gradient at
    # their ties: the whole slope holds on the closed interval, in every dtype.
    held = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
    return -jnp.where((low <= ratio) & (ratio <= high), ratio, held) * advantages


def unclipped_surrogate(log_ratio: PerToken, advantages: PerSequence) -> PerToken:
    """The surrogate without a bound, per token: -r A.

    Conservative policy iteration's objective (Kakade and Langford, 2002), of which PPO
    is a pessimistic bound. On its own it is trusted close to pi_old only: add a KL
    penalty, multiply by a `trust_region_mask`, or choose what `kl_cov_mask` finds.

    Args:
      log_ratio: from `log_ratio` or its kin, any shape `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`; constant.

    Returns:
      Losses of log_ratio's shape, in float32 at least, not aggregated.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.log(jnp.array([0.5, 4.0]))
      >>> jaxppo.unclipped_surrogate(x, jnp.array([1.0, -1.0])).round(3)
      Array([-0.5,  4. ], dtype=float32)
    """
    log_ratio, advantages = _checks.arrays(
        "unclipped_surrogate",
        per_sequence=("advantages",),
        log_ratio=log_ratio,
        advantages=advantages,
    )
    return -jnp.exp(log_ratio) * jax.lax.stop_gradient(advantages)


def geometric_mean_surrogate(
    log_ratio: Float[Array, "*b t"],
    advantages: Float[Array, "*#b #t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    clip_eps: Scalar = 0.4,
    clip_eps_high: Scalar | None = None,
) -> Float[Array, "*b t"]:
    """GMPO's surrogate: the geometric mean of a sequence's clipped ratios, times -A.

    -exp(mean over t of x'_t) A, where x' is the log-ratio held below `high` where A > 0
    and above -eps where A < 0: clipped token by token, in *log* space (Zhao et al.,
    2025, arXiv:2507.20673). A is the mean of the sequence's advantages. Each token
    that counts has its sequence's loss: aggregate by sequence (`sequence_mean`).

    Args:
      log_ratio: from `log_ratio`, `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`; constant.
      mask: the same shape as log_ratio, bool or integer, nonzero counts.
      clip_eps: eps > 0, how far a log-ratio may fall, nats.
      clip_eps_high: how far it may rise, nats; None means `clip_eps`.

    Returns:
      Losses of log_ratio's shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ or have no time axis, or a hyper-parameter is not
        positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.array([[0.9, -0.3]])
      >>> jaxppo.geometric_mean_surrogate(x, jnp.ones((1, 1)), clip_eps=0.5).round(3)
      Array([[-1.105, -1.105]], dtype=float32)
    """
    fn = "geometric_mean_surrogate"
    x, advantages = _checks.arrays(
        fn,
        mask,
        per_sequence=("advantages",),
        log_ratio=log_ratio,
        advantages=advantages,
    )
    _checks.has_time(fn, log_ratio=x)
    keep = _checks.valid(fn, mask, log_ratio=x)
    eps = _checks.number(fn, "clip_eps", clip_eps, "(0, inf]", x.dtype)
    high = eps
    if clip_eps_high is not None:
        high = _checks.number(fn, "clip_eps_high", clip_eps_high, "(0, inf]", x.dtype)
    advantages = jnp.broadcast_to(jax.lax.stop_gradient(advantages), x.shape)
    inside = jnp.where(advantages > 0, x <= high, x >= -eps)
    bound = jnp.where(advantages > 0, high, -eps)
    # No push where A = 0: neither side is the active one. A NaN stays in sight.
    clipped = jnp.where(inside | (advantages == 0) | jnp.isnan(x), x, bound)
    clipped = clipped if keep is None else jnp.where(keep, clipped, 0)
    advantage = masked_mean(advantages, mask, axis=-1, keepdims=True)
    ratio = jnp.exp(masked_mean(clipped, mask, axis=-1, keepdims=True))
    loss = jnp.broadcast_to(-ratio * advantage, x.shape)
    return loss if keep is None else jnp.where(keep, loss, 0)
