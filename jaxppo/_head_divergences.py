"""Exact KL divergences of policy heads, from the parameters of both."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._distributions import log_rest, log_softmax, rows, stirling
from ._types import RowMask, Rows


def categorical_kl(
    logits: Float[Array, "*b v"],
    ref_logits: Float[Array, "*b v"],
    mask: RowMask | None = None,
) -> Rows:
    """KL(p || q) of categorical distributions, exactly: sum of p (log p - log q).

    Differentiable in both: detach what is constant. The KL from a reference is
    `categorical_kl(logits, ref_logits)`; that of KL-penalised PPO, from the old policy,
    is `categorical_kl(old_logits, logits)`.

    Args:
      logits: of p, unnormalised, `(*batch, actions)`; -inf is outside the support.
      ref_logits: of q, the same shape.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient.

    Returns:
      Nats, `(*batch)`, in float32 at least, inf where p allows what q does not.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.5, 0.25])
      >>> jaxppo.categorical_kl(jnp.log(p), jnp.log(q)).round(4)
      Array(0.3466, dtype=float32)
    """
    (p, q), keep = rows("categorical_kl", mask, logits=logits, ref_logits=ref_logits)
    (log_p, allowed), (log_q, there) = log_softmax(p), log_softmax(q)
    shared = allowed & there
    terms = jnp.where(shared, jnp.exp(log_p) * (log_p - log_q), 0)
    out = jnp.sum(terms, -1)
    endless = jnp.any(allowed & ~there, -1) & ~jnp.isnan(out)
    out = jnp.where(endless, jnp.inf, out)
    return out if keep is None else jnp.where(keep, out, 0)


def normal_kl(
    mean: Float[Array, "*b d"],
    log_std: Float[Array, "*b d"],
    ref_mean: Float[Array, "*b d"],
    ref_log_std: Float[Array, "*b d"],
    mask: RowMask | None = None,
) -> Rows:
    """KL(p || q) of normals of diagonal covariance, exactly.

    Sum of log s_q - log s_p + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2. Also of
    `tanh_normal`s, as the KL does not change under a bijection. Differentiable in both:
    detach what is constant.

    Args:
      mean: m_p, `(*batch, size)`.
      log_std: log s_p, the same shape.
      ref_mean: m_q, the same shape.
      ref_log_std: log s_q, the same shape.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient.

    Returns:
      Nats, `(*batch)`, in float32 at least.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> zeros = jnp.zeros((1, 2))
      >>> jaxppo.normal_kl(zeros + 1, zeros, zeros, zeros)
      Array([1.], dtype=float32)
    """
    named = dict(mean=mean, log_std=log_std, ref_mean=ref_mean, ref_log_std=ref_log_std)
    (m_p, log_p, m_q, log_q), keep = rows("normal_kl", mask, **named)
    # expm1: exactly 0 between equals.
    spread = jnp.expm1(2 * (log_p - log_q)) / 2 - (log_p - log_q)
    out = jnp.sum(spread + 0.5 * ((m_p - m_q) * jnp.exp(-log_q)) ** 2, -1)
    return out if keep is None else jnp.where(keep, out, 0)


def beta_kl(
    alpha: Float[Array, "*b d"],
    beta: Float[Array, "*b d"],
    ref_alpha: Float[Array, "*b d"],
    ref_beta: Float[Array, "*b d"],
    mask: RowMask | None = None,
) -> Rows:
    """KL(p || q) of independent beta distributions, exactly.

    Sum of log B(a', b') - log B(a, b) + (a - a') psi(a) + (b - b') psi(b)
    + (a' + b' - a - b) psi(a + b), where p is of a, b and q of a', b', and psi is the
    digamma function. On any interval, as the KL does not change under a bijection.
    Differentiable in both: detach what is constant.
    Computed without the cancellation of this formula (2 nats at 1e6). In float32, for
    parameters above 1e-4 that move by a factor of 4 at most, it is good to 5e-6 of the
    larger of 1 nat and itself up to 1e3 and to 5e-5 up to 1e6, which is what the
    rounding of the parameters costs there. Source: as of `beta`.

    Args:
      alpha: a, above 0, `(*batch, size)`.
      beta: b, above 0, the same shape.
      ref_alpha: a', above 0, the same shape.
      ref_beta: b', above 0, the same shape.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient,
        whatever is in them.

    Returns:
      Nats, `(*batch)`, in float32 at least; exactly 0 between equals.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> twos, ones = jnp.full((1, 2), 2.0), jnp.ones((1, 2))
      >>> jaxppo.beta_kl(twos, twos, ones, ones).round(4)
      Array([0.2502], dtype=float32)
    """
    named = dict(alpha=alpha, beta=beta, ref_alpha=ref_alpha, ref_beta=ref_beta)
    (a, b, ref_a, ref_b), keep = rows("beta_kl", mask, 0.5, **named)
    s, ref_s = a + b, ref_a + ref_b
    by_a, by_b = ref_a - a, ref_b - b
    # s' times the distance between the means, by differences where they are small.
    close = (jnp.abs(by_a) < ref_a) & (jnp.abs(by_b) < ref_b)
    d = jnp.where(close, by_a * b - by_b * a, ref_a * b - ref_b * a) / s
    # The formula is lgamma's Bregman divergence, of a and of b less that of a + b. Of
    # Stirling's x log x, these three leave:
    terms = ref_a * log_rest(-d / ref_a, ref_s / ref_a * (a / s))
    terms = terms + ref_b * log_rest(d / ref_b, ref_s / ref_b * (b / s))
    sums = (s, ref_s, by_a + by_b, -1)
    for x, ref_x, by, sign in ((a, ref_a, by_a, 1), (b, ref_b, by_b, 1), sums):
        (rest, slope), (ref_rest, _) = stirling(x), stirling(ref_x)
        rest = ref_rest - rest - by * slope
        terms = terms + sign * (0.5 * log_rest(by / x, ref_x / x) + rest)
    out = jnp.sum(terms, -1)
    return out if keep is None else jnp.where(keep, out, 0)
