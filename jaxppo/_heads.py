"""Policy heads: log-probability of the action taken, and entropy, from parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from . import _checks
from ._distributions import log_rest, log_softmax, rows, stirling
from ._types import RowMask, Rows


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
    (logits,), keep = rows(fn, mask, logits=logits)
    if tuple(actions.shape) != logits.shape[:-1]:
        raise ValueError(
            f"{fn}: `actions` has shape {tuple(actions.shape)}, but `logits` has shape "
            f"{logits.shape}; pass shape {logits.shape[:-1]}, one index per row."
        )
    logits, support = log_softmax(logits)
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


def beta(
    alpha: Float[Array, "*b d"],
    beta: Float[Array, "*b d"],
    actions: Float[Array, "*b d"],
    mask: RowMask | None = None,
) -> tuple[Rows, Rows]:
    """Log-prob of each action and entropy of independent beta distributions on [0, 1].

    log p = sum of (alpha - 1) log a + (beta - 1) log(1 - a) - log B(alpha, beta);
    H = sum of log B(alpha, beta) - (alpha - 1) psi(alpha) - (beta - 1) psi(beta)
    + (alpha + beta - 2) psi(alpha + beta), psi the digamma function.
    Actions in [low, high] go in as (a - low) / (high - low); the constant that leaves
    out, log(high - low) for each, is in no ratio and no gradient.
    Computed without the cancellation of these formulas (5 nats at 1e6). In float32, for
    parameters from 1e-4 to 1e6, the entropy is good to 2e-6 of the larger of 1 nat and
    itself; the log-prob of a sampled action to 1e-5 up to 1e3 and to 2e-4 up to 1e6,
    which is what the rounding of the action costs there.
    Source: Chou, Maturana and Scherer, 2017, "Improving stochastic policy gradients in
    continuous control with deep reinforcement learning using the beta distribution",
    ICML; their alpha and beta are above 1 (1 + softplus): one mode, no pole.

    Args:
      alpha: the power of a, plus 1; above 0, `(*batch, size)`.
      beta: the power of 1 - a, plus 1; above 0, the same shape.
      actions: the actions taken, a, inside (0, 1), the same shape; constant.
      mask: `(*batch)`, bool or integer; rows it leaves out give 0 and no gradient,
        whatever is in them.

    Returns:
      `(log_probs, entropy)`, nats, each `(*batch)`, in float32 at least. An action
      of exactly 0 has log-prob log beta where alpha is 1, inf below and -inf above it;
      one of 1 likewise, with alpha and beta exchanged; one outside [0, 1] has -inf.
      A row with a -inf has -inf. What is infinite has no gradient.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes do not fit.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> twos = jnp.full((1, 2), 2.0)
      >>> log_probs, entropy = jaxppo.beta(twos, twos, jnp.full((1, 2), 0.25))
      >>> log_probs.round(4), entropy.round(4)
      (Array([0.2356], dtype=float32), Array([-0.2502], dtype=float32))
    """
    named = dict(alpha=alpha, beta=beta, actions=actions)
    (a, b, x), keep = rows("beta", mask, 0.5, **named)
    entropy = jnp.sum(_beta_entropy(a, b), -1)
    return _mask_rows(keep, _beta_log_probs(a, b, jax.lax.stop_gradient(x)), entropy)


def _normal_terms(mean: Array, log_std: Array, actions: Array) -> tuple[Array, Array]:
    z = (actions - mean) * jnp.exp(-log_std)
    log_probs = -jnp.sum(0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi), -1)
    return log_probs, jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), -1)


def _log_tanh_slope(u: Array) -> Array:
    """log(1 - tanh(u)^2), without the cancellation."""
    return 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))


def _beta_log_probs(a: Array, b: Array, x: Array) -> Array:
    """Of each row; x constant."""
    # Subnormal numbers count as 0, as they do for XLA on a CPU: their log is -inf.
    ends = (x < jnp.finfo(x.dtype).tiny) | (x >= 1)
    inside = _beta_inside(a, b, jnp.where(ends, 0.5, x))
    terms = jnp.where(ends, _beta_at_an_end(a, b, x), inside)
    out = jnp.sum(terms, -1)
    never = jnp.any(jnp.isneginf(terms), -1) & ~jnp.any(jnp.isnan(terms), -1)
    return jnp.where(never, -jnp.inf, out)


def _beta_inside(a: Array, b: Array, x: Array) -> Array:
    """Log-density by Loader's saddle point: around the mean nothing large cancels."""
    s = a + b
    d = x * b - (1 - x) * a  # s times the distance from the mean
    out = 0.5 * jnp.log(a / s * b / (2 * math.pi)) - jnp.log(x) - jnp.log1p(-x)
    out = out - a * log_rest(d / a, x * (s / a))
    out = out - b * log_rest(-d / b, (1 - x) * (s / b))
    return out - stirling(a)[0] - stirling(b)[0] + stirling(s)[0]


def _beta_at_an_end(a: Array, b: Array, x: Array) -> Array:
    """Log-density at 0 and 1, and beyond: finite where a power is x^0."""
    power, other = jnp.where(x < 0.5, a, b), jnp.where(x < 0.5, b, a)
    power = jax.lax.stop_gradient(power)
    pole = jnp.where(power > 1, -jnp.inf, power - 1)  # 0 at 1, and NaN stays
    pole = jnp.where(power < 1, jnp.inf, pole)
    pole = jnp.where(((x < 0) | (x > 1)) & ~jnp.isnan(power), -jnp.inf, pole)
    other = jnp.where(pole == 0, other, jax.lax.stop_gradient(other))
    return jnp.log(other) + pole


def _beta_entropy(a: Array, b: Array) -> Array:
    """Of each distribution; Stirling's formula put in, its large terms are gone."""
    s = a + b
    out = 0.5 * jnp.log(2 * math.pi * math.e * (a / s) * (b / s) / s)
    for x, ones, sign in ((a, 1, 1), (b, 1, 1), (s, 2, -1)):
        rest, slope = stirling(x)
        out = out + sign * (rest - (x - ones) * slope - ones / (2 * x))
    return out


def _normal(
    fn: str, mean: Array, log_std: Array, mask: Array | None, name: str, actions: Array
) -> tuple[Array, Array, Array, Array | None]:
    _checks.arrays(fn, mean=mean, **{name: actions})
    _checks.arrays(fn, log_std=log_std)
    if np.shape(log_std) == np.shape(mean)[-1:]:
        log_std = jnp.broadcast_to(log_std, np.shape(mean))
    named = {"mean": mean, "log_std": log_std, name: actions}
    (mean, log_std, actions), keep = rows(fn, mask, **named)
    return mean, log_std, jax.lax.stop_gradient(actions), keep


def _mask_rows(keep: Array | None, *xs: Array) -> tuple[Array, Array]:
    a, b = xs if keep is None else (jnp.where(keep, x, 0) for x in xs)
    return a, b
