"""Policy terms that clip the ratio: the surrogate of PPO and its relatives."""

import jax
import jax.numpy as jnp

from . import _checks
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
