"""Policy terms that bound the distance moved, not the ratio."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from . import _checks
from ._types import Mask, PerSequence, PerToken, Scalar


def binary_tv(
    log_probs: PerToken, old_log_probs: PerToken, mask: Mask | None = None
) -> PerToken:
    """Total variation of "this token or not": |pi - pi_old| at the sampled token.

    A lower bound of the whole distributions' total variation that needs one log-prob
    each. Unlike a ratio it is small for rare tokens, whatever happens to them
    (DPPO, 2026, arXiv:2602.04879).

    Args:
      log_probs: log pi of the sampled tokens, nats; any shape.
      old_log_probs: log pi_old (or the sampler's), the same shape.
      mask: the same shape, bool or integer, nonzero counts.

    Returns:
      An array of the same shape in [0, 1], in float32 at least, without gradient, 0
      under the mask.

    Raises:
      TypeError: log-probs are not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> p, q = jnp.array([0.5, 0.02]), jnp.array([0.8, 0.01])
      >>> jaxppo.binary_tv(jnp.log(p), jnp.log(q)).round(3)
      Array([0.3 , 0.01], dtype=float32)
    """
    log_p, log_q = _constants("binary_tv", log_probs, old_log_probs, mask)
    return jnp.abs(jnp.exp(log_p) - jnp.exp(log_q))


def binary_kl(
    log_probs: PerToken,
    old_log_probs: PerToken,
    mask: Mask | None = None,
    *,
    eps: Scalar = 1e-8,
) -> PerToken:
    """KL divergence of "this token or not": KL(Bernoulli(pi_old) || Bernoulli(pi)).

    q (log q - log p) + (1 - q) log((1 - q + eps) / (1 - p + eps)), with p = pi and q =
    pi_old at the sampled token: a lower bound of KL(pi_old || pi) (DPPO, 2026,
    arXiv:2602.04879; verl's `dppo_kl`, with its eps).

    Args:
      log_probs: log pi of the sampled tokens, nats; any shape.
      old_log_probs: log pi_old (or the sampler's), the same shape.
      mask: the same shape, bool or integer, nonzero counts.
      eps: keeps the logarithm finite where a probability is 1, positive.

    Returns:
      An array of the same shape, nats, in float32 at least, without gradient, 0 under
      the mask.

    Raises:
      TypeError: log-probs are not floating point, or the mask is.
      ValueError: shapes differ, or eps is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> p, q = jnp.array([0.5, 0.02]), jnp.array([0.8, 0.01])
      >>> jaxppo.binary_kl(jnp.log(p), jnp.log(q)).round(4)
      Array([0.1927, 0.0031], dtype=float32)
    """
    fn = "binary_kl"
    log_p, log_q = _constants(fn, log_probs, old_log_probs, mask)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    eps = _checks.number(fn, "eps", eps, "(0, inf)", p.dtype)
    moved = jnp.where(q == 0, 0, q * (log_q - log_p))
    return moved + (1 - q) * (jnp.log(1 - q + eps) - jnp.log(1 - p + eps))


def trust_region_mask(
    log_ratio: PerToken,
    advantages: PerSequence,
    divergence: PerToken,
    *,
    low: Scalar = 0.2,
    high: Scalar | None = None,
) -> Bool[Array, "*s"]:
    """Where the gradient may act: False where the policy is too far, and going farther.

    False where divergence > high and r > 1 and A > 0, or divergence > low and r < 1
    and A <= 0. A token that is far but pushed back keeps its gradient, as in PPO.
    Multiply `unclipped_surrogate` by it: with `binary_tv` or `binary_kl` this is DPPO
    (2026, arXiv:2602.04879); for a symmetric mask (prime-rl's IPO) compare the
    divergence yourself.

    Args:
      log_ratio: from `log_ratio`, any shape `(*batch, time)`; its sign is used.
      advantages: the same shape, or `(*batch, 1)`.
      divergence: of pi from pi_old at each token, log_ratio's shape.
      low: largest divergence where A <= 0, at least 0.
      high: largest where A > 0; None means `low`.

    Returns:
      Booleans of log_ratio's shape. A NaN is not hidden: its token is kept.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ, or a bound is negative.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x, far = jnp.array([0.7, 0.7, 0.1]), jnp.array([0.3, 0.3, 0.1])
      >>> jaxppo.trust_region_mask(x, jnp.array([1.0, -1.0, 1.0]), far)
      Array([False,  True,  True], dtype=bool)
    """
    fn = "trust_region_mask"
    x, advantages, divergence = _checks.arrays(
        fn,
        per_sequence=("advantages",),
        log_ratio=log_ratio,
        advantages=advantages,
        divergence=divergence,
    )
    low = _checks.number(fn, "low", low, "[0, inf]", x.dtype)
    if high is not None:
        high = _checks.number(fn, "high", high, "[0, inf]", x.dtype)
    else:
        high = low
    risen = (advantages > 0) & (x > 0) & (divergence > high)
    fallen = (advantages <= 0) & (x < 0) & (divergence > low)
    return ~(risen | fallen)


def quadratic_surrogate(
    log_ratio: PerToken, advantages: PerSequence, *, clip_eps: Scalar = 0.2
) -> PerToken:
    """Simple policy optimisation: -(r A - |A| (r - 1)^2 / (2 eps)), without a clip.

    The optimum of each token's parabola lies at r = 1 + eps sign(A), PPO's bound, but a
    token beyond it is pulled back instead of left alone (Xie et al., 2024,
    arXiv:2401.16025).

    Args:
      log_ratio: from `log_ratio`, any shape `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`; constant.
      clip_eps: eps > 0.

    Returns:
      Losses of log_ratio's shape, in float32 at least, not aggregated.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ, or clip_eps is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.log(jnp.array([1.0, 1.2, 1.4]))
      >>> jaxppo.quadratic_surrogate(x, jnp.ones(3)).round(3)
      Array([-1. , -1.1, -1. ], dtype=float32)
    """
    fn = "quadratic_surrogate"
    x, advantages = _checks.arrays(
        fn, per_sequence=("advantages",), log_ratio=log_ratio, advantages=advantages
    )
    eps = _checks.number(fn, "clip_eps", clip_eps, "(0, inf)", x.dtype)
    advantages = jax.lax.stop_gradient(advantages)
    ratio = jnp.exp(x)
    return jnp.abs(advantages) * (ratio - 1) ** 2 / (2 * eps) - ratio * advantages


def discovered_surrogate(
    log_ratio: PerToken,
    advantages: PerSequence,
    *,
    alpha: Scalar = 2.0,
    beta: Scalar = 0.6,
) -> PerToken:
    """Discovered policy optimisation: -r A plus a drift found by meta-learning.

    The drift is relu(u - alpha tanh(u / alpha)) with u = (r - 1) A where A >= 0, and
    relu(v - beta tanh(v / beta)) with v = A log r where A < 0 (Lu et al., 2022,
    arXiv:2210.05639; `dpo` in purejaxrl, rejax and Stoix, not direct preference
    optimisation).

    Args:
      log_ratio: from `log_ratio`, any shape `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`; constant.
      alpha: width of the drift where A >= 0, positive.
      beta: width where A < 0, positive.

    Returns:
      Losses of log_ratio's shape, in float32 at least, not aggregated.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ, or a width is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x, advantages = jnp.log(jnp.array([3.0, 0.3])), jnp.array([2.0, -2.0])
      >>> jaxppo.discovered_surrogate(x, advantages).round(1)
      Array([-3.9,  2.4], dtype=float32)
    """
    fn = "discovered_surrogate"
    x, advantages = _checks.arrays(
        fn, per_sequence=("advantages",), log_ratio=log_ratio, advantages=advantages
    )
    alpha = _checks.number(fn, "alpha", alpha, "(0, inf)", x.dtype)
    beta = _checks.number(fn, "beta", beta, "(0, inf)", x.dtype)
    advantages = jax.lax.stop_gradient(advantages)
    ratio, good = jnp.exp(x), advantages >= 0
    moved = jnp.where(good, (ratio - 1) * advantages, x * advantages)
    width = jnp.where(good, alpha, beta)
    drift = jax.nn.relu(moved - width * jnp.tanh(moved / width))
    return drift - ratio * advantages


def _constants(
    fn: str, log_probs: PerToken, old_log_probs: PerToken, mask: Mask | None
) -> tuple[PerToken, PerToken]:
    """log pi and log pi_old of the sampled tokens, detached; 0 under the mask."""
    log_p, log_q = _checks.arrays(
        fn, mask, log_probs=log_probs, old_log_probs=old_log_probs
    )
    return jax.lax.stop_gradient((log_p, log_q))
