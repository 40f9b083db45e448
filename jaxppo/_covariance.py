"""Tokens whose update would cost the most entropy: clip-cov and kl-cov.

The selections are over the whole array they are given: select on the batch, before it
is cut into microbatches.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, UInt32

from . import _checks
from ._masked import centred
from ._types import Mask, PerSequence, PerToken, Scalar

Key = PRNGKeyArray | UInt32[Array, "2"]
Selected = Bool[Array, "*s"]


def token_covariance(
    log_probs: PerToken, advantages: PerSequence, mask: Mask | None = None
) -> PerToken:
    """Each token's share of the covariance: (A - mean A)(log pi - mean log pi).

    Their mean is the covariance of advantage and log-prob, to which the change of
    entropy in a policy-gradient step is proportional, with a minus; a few tokens carry
    most of it (Cui et al., 2025, arXiv:2505.22617).

    Args:
      log_probs: log pi of the sampled tokens, nats; any shape `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`.
      mask: log_probs' shape, bool or integer, nonzero counts.

    Returns:
      An array of log_probs' shape, in float32 at least, without gradient, 0 under the
      mask. (verl's code leaves the advantages' gradient in, which are constant there.)

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.token_covariance(jnp.array([-1.0, -3.0]), jnp.array([2.0, 0.0]))
      Array([1., 1.], dtype=float32)
    """
    fn = "token_covariance"
    log_probs, advantages = _checks.arrays(
        fn,
        mask,
        per_sequence=("advantages",),
        log_probs=log_probs,
        advantages=advantages,
    )
    advantages = jnp.broadcast_to(advantages, log_probs.shape)
    return jax.lax.stop_gradient(centred(advantages, mask) * centred(log_probs, mask))


def clip_cov_mask(
    key: Key,
    covariance: PerToken,
    mask: Mask | None = None,
    *,
    fraction: Scalar = 2e-4,
    low: Scalar = 1.0,
    high: Scalar = 5.0,
) -> Selected:
    """Clip-cov's choice: random tokens among those of large covariance, to drop.

    Of the tokens with low < covariance < high, max(floor(fraction n), 1) are drawn,
    all equally likely, n being the tokens that count; their loss is to be 0 (Cui et
    al., 2025, arXiv:2505.22617). To spare tokens that PPO's clip holds already, as verl
    does, pass `jnp.where(clipped, -jnp.inf, covariance)`.

    Args:
      key: a PRNG key, consumed.
      covariance: from `token_covariance`, any shape.
      mask: the same shape, bool or integer, nonzero counts.
      fraction: share of the tokens to drop, in (0, 1].
      low: lower bound of the covariance.
      high: upper bound.

    Returns:
      Booleans of the same shape: True where a token is to be dropped.

    Raises:
      TypeError: covariance is not floating point, or the mask is.
      ValueError: shapes differ, or fraction is out of (0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, jaxppo
      >>> covariance = jnp.array([0.1, 2.0, 9.0])
      >>> jaxppo.clip_cov_mask(jax.random.key(0), covariance, fraction=0.5)
      Array([False,  True, False], dtype=bool)
    """
    fn = "clip_cov_mask"
    (x,) = _checks.arrays(fn, mask, covariance=covariance)
    low = _checks.number(fn, "low", low, "[-inf, inf]", x.dtype)
    high = _checks.number(fn, "high", high, "[-inf, inf]", x.dtype)
    keep = _checks.kept(fn, mask, covariance=x)
    eligible = keep & (low < x) & (x < high)
    priority = jax.random.uniform(key, x.shape, jnp.float32)  # x64 or not, the same
    return _first(fn, jnp.where(eligible, priority, jnp.inf), eligible, keep, fraction)


def kl_cov_mask(
    covariance: PerToken, mask: Mask | None = None, *, fraction: Scalar = 2e-3
) -> Selected:
    """KL-cov's choice: the tokens of largest covariance, to hold by a KL penalty.

    The max(floor(fraction n), 1) largest, n being the tokens that count (Cui et al.,
    2025, arXiv:2505.22617).

    Args:
      covariance: from `token_covariance`, any shape.
      mask: the same shape, bool or integer, nonzero counts.
      fraction: share of the tokens to hold, in (0, 1].

    Returns:
      Booleans of the same shape: True where a token is among the largest.

    Raises:
      TypeError: covariance is not floating point, or the mask is.
      ValueError: shapes differ, or fraction is out of (0, 1].

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.kl_cov_mask(jnp.array([0.1, 2.0, 9.0, -3.0]), fraction=0.5)
      Array([False,  True,  True, False], dtype=bool)
    """
    fn = "kl_cov_mask"
    (x,) = _checks.arrays(fn, mask, covariance=covariance)
    keep = _checks.kept(fn, mask, covariance=x)
    return _first(fn, jnp.where(keep, -x, jnp.inf), keep, keep, fraction)


def _first(
    fn: str, order: Array, eligible: Array, keep: Array, fraction: Scalar
) -> Array:
    """The first of the eligible, as many as `fraction` allows, at least 1."""
    fraction = _checks.number(fn, "fraction", fraction, "(0, 1]", order.dtype)
    count = jnp.floor(fraction * jnp.sum(keep, dtype=jnp.int32).astype(order.dtype))
    rank = jnp.argsort(jnp.argsort(order.ravel())).reshape(order.shape)
    return eligible & (rank < jnp.maximum(count, 1).astype(rank.dtype))
