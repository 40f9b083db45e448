"""Policy terms that weigh each token instead of clipping it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from . import _checks
from ._masked import masked_mean, masked_sum
from ._types import Mask, PerSequence, PerToken, Scalar


def policy_gradient(
    log_probs: PerToken, advantages: PerSequence, mask: Mask | None = None
) -> PerToken:
    """REINFORCE per token: -A log pi (Williams, 1992).

    Args:
      log_probs: log pi of the sampled actions, nats, differentiated; any shape
        `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`; constant.
      mask: log_probs' shape, bool or integer, nonzero counts.

    Returns:
      Losses of log_probs' shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.policy_gradient(jnp.array([-0.5, -2.0]), jnp.array([2.0, -1.0]))
      Array([ 1., -2.], dtype=float32)
    """
    log_probs, advantages = _checks.arrays(
        "policy_gradient",
        mask,
        per_sequence=("advantages",),
        log_probs=log_probs,
        advantages=advantages,
    )
    return -jax.lax.stop_gradient(advantages) * log_probs


def cispo(
    log_probs: PerToken,
    log_ratio: PerToken,
    advantages: PerSequence,
    mask: Mask | None = None,
    *,
    low: Scalar = 0.0,
    high: Scalar = 5.0,
) -> PerToken:
    """CISPO per token: -sg(clip(r, low, high)) A log pi.

    The ratio is clipped as a constant weight, so that no token loses its gradient, as
    rare but decisive ones do under PPO's clip (MiniMax, 2025, arXiv:2506.13585). The
    bounds are the ratio's own, not widths around 1: [0, 5] is ScaleRL's and TRL's
    recommendation, [0.8, 1.2] verl's default; TRL's and Liger's default of 0.2 for
    `high` holds every weight at 0.2. Without the stop-gradient (EasyDeL) or without log
    pi (torchrl's `CISPOLoss`) it is another loss.

    Args:
      log_probs: log pi of the sampled tokens, nats, differentiated; any shape.
      log_ratio: from `log_ratio`, the same shape; constant here.
      advantages: the same shape, or `(*batch, 1)`; constant.
      mask: log_probs' shape, bool or integer, nonzero counts.
      low: smallest weight, at least 0.
      high: largest weight, positive.

    Returns:
      Losses of log_probs' shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, low is negative, or high is below it.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.log(jnp.array([0.5, 9.0]))
      >>> jaxppo.cispo(jnp.array([-1.0, -2.0]), x, jnp.ones(2)).round(3)
      Array([ 0.5, 10. ], dtype=float32)
    """
    fn = "cispo"
    log_probs, log_ratio, advantages = _arrays(
        fn, log_probs, log_ratio, advantages, mask
    )
    least = low
    low = _checks.number(fn, "low", low, "[0, inf)", log_probs.dtype)
    high = _checks.number(fn, "high", high, _checks.upwards(least), log_probs.dtype)
    weights = jnp.clip(jnp.exp(log_ratio), low, high)
    return -jax.lax.stop_gradient(weights * advantages) * log_probs


def topr(
    log_probs: PerToken,
    log_ratio: PerToken,
    advantages: PerSequence,
    mask: Mask | None = None,
    *,
    cap: Scalar = 1.0,
) -> PerToken:
    """Tapered off-policy REINFORCE: -A log pi, times sg(min(r, cap)) where A <= 0.

    Good samples are learned from whoever made them; bad ones only as far as the policy
    still makes them, so that their gradient cannot run away (Le Roux et al., 2025,
    arXiv:2503.14286, which takes the ratio of whole sequences: `trajectory_log_ratio`;
    ROLL takes it per token).

    Args:
      log_probs: log pi of the sampled tokens, nats, differentiated; any shape.
      log_ratio: of the same shape; constant here.
      advantages: the same shape, or `(*batch, 1)`; constant.
      mask: log_probs' shape, bool or integer, nonzero counts.
      cap: largest weight where A <= 0, positive.

    Returns:
      Losses of log_probs' shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, or cap is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x, advantages = jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, -1.0])
      >>> jaxppo.topr(jnp.array([-1.0, -1.0]), x, advantages)
      Array([ 1. , -0.5], dtype=float32)
    """
    log_probs, log_ratio, advantages = _arrays(
        "topr", log_probs, log_ratio, advantages, mask
    )
    cap = _checks.number("topr", "cap", cap, "(0, inf]", log_probs.dtype)
    tapered = jnp.minimum(jnp.exp(log_ratio), cap)
    unweighted = (advantages > 0) & ~jnp.isnan(tapered)  # a NaN stays in sight
    weights = jnp.where(unweighted, 1, tapered)
    return -jax.lax.stop_gradient(weights * advantages) * log_probs


def soft_gated_surrogate(
    log_ratio: PerToken,
    advantages: PerSequence,
    *,
    temperature: Scalar = 1.0,
    temperature_negative: Scalar = 1.05,
) -> PerToken:
    """SAPO's surrogate: -(4 / tau) sigmoid(tau (r - 1)) A, a clip with soft edges.

    Its slope in r is 1 at r = 1 and fades on both sides, faster for A <= 0, where tau
    is `temperature_negative` (Gao et al., 2025, arXiv:2511.20347).

    Args:
      log_ratio: from `log_ratio`, any shape `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`; constant.
      temperature: tau where A > 0, positive.
      temperature_negative: tau where A <= 0, positive.

    Returns:
      Losses of log_ratio's shape, in float32 at least, not aggregated.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ, or a temperature is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.log(jnp.array([1.0, 3.0]))
      >>> jaxppo.soft_gated_surrogate(x, jnp.ones(2)).round(1)
      Array([-2. , -3.5], dtype=float32)
    """
    fn = "soft_gated_surrogate"
    x, advantages = _checks.arrays(
        fn, per_sequence=("advantages",), log_ratio=log_ratio, advantages=advantages
    )
    positive = _checks.number(fn, "temperature", temperature, "(0, inf)", x.dtype)
    negative = _checks.number(
        fn, "temperature_negative", temperature_negative, "(0, inf)", x.dtype
    )
    advantages = jax.lax.stop_gradient(advantages)
    tau = jnp.where(advantages > 0, positive, negative)
    return -4 / tau * jax.nn.sigmoid(tau * (jnp.exp(x) - 1)) * advantages


def vespo_weights(
    log_ratio: Float[Array, "*b t"],
    advantages: Float[Array, "*#b #t"],
    mask: Bool[Array, "*b t"] | Integer[Array, "*b t"] | None = None,
    *,
    k: Scalar = 2.0,
    lambda_: Scalar = 3.0,
    k_negative: Scalar = 3.0,
    lambda_negative: Scalar = 2.0,
) -> Float[Array, "*b 1"]:
    """VESPO's weight of each sequence: w^k exp(lambda (1 - w)), w its product ratio.

    1 on policy, and fading on both sides: a smooth gate instead of a clip, with other
    exponents where the sequence's mean advantage is negative. Multiply
    `policy_gradient` by it (Shen et al., 2026, arXiv:2602.10693, as in TRL). log w is
    held in [log 1e-8, 20].

    Args:
      log_ratio: from `log_ratio`, `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`.
      mask: the same shape as log_ratio, bool or integer, nonzero counts.
      k: exponent where A >= 0, at least 0.
      lambda_: decay where A >= 0, at least 0.
      k_negative: exponent where A < 0, at least 0.
      lambda_negative: decay where A < 0, at least 0.

    Returns:
      `(*batch, 1)`, in float32 at least, without gradient; 0 for a sequence of which
      nothing counts.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ or have no time axis, or a hyper-parameter is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.log(jnp.array([[1.0, 1.0], [2.0, 1.5]]))
      >>> jaxppo.vespo_weights(x, jnp.ones((2, 1))).round(4)
      Array([[1.    ],
             [0.0223]], dtype=float32)
    """
    fn = "vespo_weights"
    x, advantages = _checks.arrays(
        fn,
        mask,
        per_sequence=("advantages",),
        log_ratio=log_ratio,
        advantages=advantages,
    )
    _checks.has_time(fn, log_ratio=x)
    numbers = dict(k=k, lambda_=lambda_)
    numbers |= dict(k_negative=k_negative, lambda_negative=lambda_negative)
    k, lambda_, k_negative, lambda_negative = (
        _checks.number(fn, name, value, "[0, inf)", x.dtype)
        for name, value in numbers.items()
    )
    advantages = jnp.broadcast_to(advantages, x.shape)
    x, advantages = jax.lax.stop_gradient((x, advantages))
    x = masked_sum(x, mask, axis=-1, keepdims=True)
    x = jnp.clip(x, math.log(1e-8), 20)
    advantage = masked_mean(advantages, mask, axis=-1, keepdims=True)
    x = jnp.where(jnp.isnan(advantage), advantage, x)  # which stays in sight
    good = advantage >= 0
    k = jnp.where(good, k, k_negative)
    lambda_ = jnp.where(good, lambda_, lambda_negative)
    weights = jnp.exp(k * x + lambda_ * (1 - jnp.exp(x)))
    keep = _checks.kept(fn, mask, log_ratio=log_ratio)
    return jnp.where(jnp.any(keep, -1, keepdims=True), weights, 0)


def shaped_off_policy(
    log_probs: PerToken,
    advantages: PerSequence,
    mask: Mask | None = None,
    *,
    gamma: Scalar = 0.1,
) -> PerToken:
    """LUFFY's term for tokens another policy wrote: -A pi / (pi + gamma).

    Its gradient in log pi, A gamma pi / (pi + gamma)^2, is largest at pi = gamma and
    not at 1: rare tokens of a good demonstration are learned, too. Mix by mask with a
    clipped term for the policy's own tokens (Yan et al., 2025, arXiv:2504.14945).

    Args:
      log_probs: log pi of the tokens, nats, differentiated; any shape.
      advantages: the same shape, or `(*batch, 1)`; constant.
      mask: log_probs' shape, bool or integer, nonzero counts.
      gamma: the shaping, positive.

    Returns:
      Losses of log_probs' shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ, or gamma is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.shaped_off_policy(jnp.log(jnp.array([0.1, 0.9])), jnp.ones(2))
      Array([-0.5, -0.9], dtype=float32)
    """
    log_probs, advantages = _checks.arrays(
        "shaped_off_policy",
        mask,
        per_sequence=("advantages",),
        log_probs=log_probs,
        advantages=advantages,
    )
    gamma = _checks.number(
        "shaped_off_policy", "gamma", gamma, "(0, inf)", log_probs.dtype
    )
    # pi / (pi + gamma), in the form that no log-prob overflows.
    shaped = jax.nn.sigmoid(log_probs - jnp.log(gamma))
    return -jax.lax.stop_gradient(advantages) * shaped


def _arrays(
    fn: str,
    log_probs: Array,
    log_ratio: Array,
    advantages: Array,
    mask: Array | None,
) -> list[Array]:
    return _checks.arrays(
        fn,
        mask,
        per_sequence=("advantages",),
        log_probs=log_probs,
        log_ratio=log_ratio,
        advantages=advantages,
    )
