"""Policy heads: log-probability of the action taken, and entropy, from parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from . import _checks

Rows = Float[Array, "*b"]
RowMask = Bool[Array, "*b"] | Integer[Array, "*b"]


def categorical(
    logits: Float[Array, "*b v"],
    actions: Integer[Array, "*b"],
    mask: RowMask | None = None,
) -> tuple[Rows, Rows]:
    """Log-prob of each action and entropy of each categorical distribution.

    log softmax(logits)[action], and H = -sum of p log p over the support. A logit of
    -inf (an action that is not allowed) is outside the support: it has log-prob -inf,
    adds nothing to the entropy, and no gradient is NaN.

    Args:
      logits: unnormalised log-probs, `(*batch, actions)`.
      actions: indices of the actions taken, integers, `(*batch)`.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient,
        whatever is in them.

    Returns:
      `(log_probs, entropy)`, nats, each `(*batch)`, in float32 at least. An index
      outside the table gives NaN, never the log-prob of another action.

    Raises:
      TypeError: logits are not floating point, or actions not integers.
      ValueError: shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> logits = jnp.array([0.0, 0.0, -jnp.inf])
      >>> log_prob, entropy = jaxppo.categorical(logits, jnp.array(1))
      >>> log_prob.round(4), entropy.round(4)
      (Array(-0.6931, dtype=float32), Array(0.6931, dtype=float32))
    """
    fn = "categorical"
    _checks.integers(fn, actions=actions)
    logits, keep = _rows(fn, mask, "logits", logits)
    if tuple(actions.shape) != logits.shape[:-1]:
        raise ValueError(
            f"{fn}: `actions` has shape {tuple(actions.shape)}, but `logits` has shape "
            f"{logits.shape}; pass shape {logits.shape[:-1]}, one index per row."
        )
    logits, support = _log_softmax(logits)
    entropy = -jnp.sum(jnp.where(support, jnp.exp(logits) * logits, 0), -1)
    # Comparing instead of gathering: works on a sharded table, and an index outside
    # of it selects nothing.
    table = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    last = min(logits.shape[-1] - 1, np.iinfo(actions.dtype).max)
    inside = (actions >= 0) & (actions <= last)  # before the cast, which wraps
    chosen = table == jnp.where(inside, actions, -1).astype(jnp.int32)[..., None]
    log_probs = jnp.sum(jnp.where(chosen, logits, 0), -1)
    log_probs = jnp.where(jnp.any(chosen & support, -1), log_probs, -jnp.inf)
    log_probs = jnp.where(jnp.any(chosen, -1), log_probs, jnp.nan)
    if keep is None:
        return log_probs, entropy
    return jnp.where(keep, log_probs, 0), jnp.where(keep, entropy, 0)


def diagonal_normal(
    mean: Float[Array, "*b d"],
    log_std: Float[Array, "*b d"] | Float[Array, " d"],
    actions: Float[Array, "*b d"],
    mask: RowMask | None = None,
) -> tuple[Rows, Rows]:
    """Log-prob of each action and entropy of each normal of diagonal covariance.

    log p = -sum of ((a - mean)^2 / std^2 + 2 log std + log 2 pi) / 2;
    H = sum of (log std + log(2 pi e) / 2).

    Args:
      mean: `(*batch, size)`.
      log_std: logarithm of the standard deviation, `(*batch, size)`, or `(size,)`
        for one that does not depend on the state.
      actions: the actions taken, `(*batch, size)`; constant.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient.

    Returns:
      `(log_probs, entropy)`, nats, each `(*batch)`, in float32 at least.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> mean, log_std = jnp.zeros((1, 2)), jnp.zeros(2)
      >>> log_probs, entropy = jaxppo.diagonal_normal(mean, log_std, jnp.ones((1, 2)))
      >>> log_probs.round(4), entropy.round(4)
      (Array([-2.8379], dtype=float32), Array([2.8379], dtype=float32))
    """
    mean, log_std, actions, keep = _normal(
        "diagonal_normal", mean, log_std, mask, "actions", actions
    )
    return _mask_rows(keep, *_normal_terms(mean, log_std, actions))


def tanh_normal(
    mean: Float[Array, "*b d"],
    log_std: Float[Array, "*b d"] | Float[Array, " d"],
    pre_tanh_actions: Float[Array, "*b d"],
    mask: RowMask | None = None,
) -> tuple[Rows, Rows]:
    """Log-prob and entropy of actions a = tanh(u), u normal of diagonal covariance.

    log p(a) = log N(u) - sum of log(1 - tanh(u)^2);
    H = H(N) + sum of E[log(1 - tanh(u)^2)].
    Store u, not a: at |a| = 1, where float32's tanh arrives at |u| = 9, a has lost u.
    The expectation has no closed form; it is integrated on 129 nodes, to 1e-7 nats for
    standard deviations up to 5 (but for float32's rounding), and is differentiable.

    Args:
      mean: of u, `(*batch, size)`.
      log_std: logarithm of u's standard deviation, `(*batch, size)` or `(size,)`.
      pre_tanh_actions: u of the actions taken, `(*batch, size)`; constant.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient.

    Returns:
      `(log_probs, entropy)`, nats, each `(*batch)`, in float32 at least.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> mean, log_std = jnp.zeros((1, 1)), jnp.zeros(1)
      >>> log_probs, entropy = jaxppo.tanh_normal(mean, log_std, jnp.full((1, 1), 0.5))
      >>> log_probs.round(4), entropy.round(4)
      (Array([-0.8037], dtype=float32), Array([0.6698], dtype=float32))
    """
    mean, log_std, u, keep = _normal(
        "tanh_normal", mean, log_std, mask, "pre_tanh_actions", pre_tanh_actions
    )
    log_probs, entropy = _normal_terms(mean, log_std, u)
    # The trapezium rule converges exponentially for an analytic integrand.
    z = np.linspace(-8, 8, 129)
    weights = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    z, weights = jnp.asarray(z, mean.dtype), jnp.asarray(weights, mean.dtype)
    z, weights = (x.reshape((1,) * mean.ndim + (-1,)) for x in (z, weights))
    nodes = mean[..., None] + jnp.exp(log_std)[..., None] * z
    correction = jnp.sum(weights * _log_tanh_slope(nodes), (-2, -1))
    log_probs = log_probs - jnp.sum(_log_tanh_slope(u), -1)
    return _mask_rows(keep, log_probs, entropy + correction)


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
    fn = "categorical_kl"
    p, q = _checks.arrays(fn, logits=logits, ref_logits=ref_logits)
    p, keep = _rows(fn, mask, "logits", p)
    q, _ = _rows(fn, mask, "ref_logits", q)
    (log_p, allowed), (log_q, there) = _log_softmax(p), _log_softmax(q)
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
    fn = "normal_kl"
    named = dict(mean=mean, log_std=log_std, ref_mean=ref_mean, ref_log_std=ref_log_std)
    named = dict(zip(named, _checks.arrays(fn, **named), strict=True))
    rows = [_rows(fn, mask, name, x) for name, x in named.items()]
    (m_p, keep), (log_p, _), (m_q, _), (log_q, _) = rows
    # expm1: exactly 0 between equals.
    spread = jnp.expm1(2 * (log_p - log_q)) / 2 - (log_p - log_q)
    out = jnp.sum(spread + 0.5 * ((m_p - m_q) * jnp.exp(-log_q)) ** 2, -1)
    return out if keep is None else jnp.where(keep, out, 0)


def _log_softmax(logits: Array) -> tuple[Array, Array]:
    """Log-probs, 0 outside the support, and the support."""
    support = ~jnp.isneginf(logits)
    top = jnp.max(logits, -1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isneginf(top), 0, top))
    # The double `where`: neither exp nor log sees what it must not differentiate.
    logits = jnp.where(support, logits - top, 0)
    total = jnp.sum(jnp.where(support, jnp.exp(logits), 0), -1, keepdims=True)
    log_total = jnp.log(jnp.where(total == 0, 1, total))  # 0: no action is allowed
    return jnp.where(support, logits - log_total, 0), support


def _normal_terms(mean: Array, log_std: Array, actions: Array) -> tuple[Array, Array]:
    z = (actions - mean) * jnp.exp(-log_std)
    log_probs = -jnp.sum(0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi), -1)
    return log_probs, jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), -1)


def _log_tanh_slope(u: Array) -> Array:
    """log(1 - tanh(u)^2), without the cancellation."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


def _rows(
    fn: str, mask: Array | None, name: str, x: Array
) -> tuple[Array, Array | None]:
    """An array with an axis past the rows, 0 in rows the mask leaves out."""
    (x,) = _checks.arrays(fn, **{name: x})
    if not x.ndim:
        raise ValueError(f"{fn}: `{name}` has shape (); expected (*batch, size).")
    keep = _checks.valid(fn, mask, **{f"{name}[..., 0]": x[..., 0]})
    return (x if keep is None else jnp.where(keep[..., None], x, 0)), keep


def _normal(
    fn: str, mean: Array, log_std: Array, mask: Array | None, name: str, actions: Array
) -> tuple[Array, Array, Array, Array | None]:
    _checks.arrays(fn, mean=mean, **{name: actions})
    _checks.arrays(fn, log_std=log_std)
    if np.shape(log_std) == np.shape(mean)[-1:]:
        log_std = jnp.broadcast_to(log_std, np.shape(mean))
    named = {"mean": mean, "log_std": log_std, name: actions}
    mean, log_std, actions = _checks.arrays(fn, **named)
    mean, keep = _rows(fn, mask, "mean", mean)
    log_std, _ = _rows(fn, mask, "log_std", log_std)
    actions, _ = _rows(fn, mask, name, actions)
    return mean, log_std, jax.lax.stop_gradient(actions), keep


def _mask_rows(keep: Array | None, *rows: Array) -> tuple[Array, Array]:
    a, b = rows if keep is None else (jnp.where(keep, x, 0) for x in rows)
    return a, b
