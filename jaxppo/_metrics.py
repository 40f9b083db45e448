"""Diagnostics, without gradient; per-token arrays are for the caller to aggregate."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks
from ._masked import masked_variance
from ._types import Mask, Max, Min, PerSequence, PerToken, Scalar
from ._units import power_of_two


def clip_fraction(
    log_ratio: PerToken, *, clip_eps: Scalar = 0.2, clip_eps_high: Scalar | None = None
) -> PerToken:
    """1 where the ratio has left [1 - eps, 1 + high], else 0, whatever the advantage.

    Its mean is the `clip_fraction` of SB3 and the `clipfrac` of CleanRL.

    Args:
      log_ratio: from `log_ratio`, any shape.
      clip_eps: eps in (0, 1).
      clip_eps_high: positive; None means `clip_eps`.

    Returns:
      An array of the same shape, 0 or 1.

    Raises:
      TypeError: log_ratio is not a floating-point array.
      ValueError: a hyper-parameter is out of its range.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.clip_fraction(jnp.log(jnp.array([0.7, 1.1, 1.3])))
      Array([1., 0., 1.], dtype=float32)
    """
    fn = "clip_fraction"
    (x,) = _checks.arrays(fn, log_ratio=log_ratio)
    eps = _checks.number(fn, "clip_eps", clip_eps, "(0, 1)", x.dtype)
    high = eps
    if clip_eps_high is not None:
        high = _checks.number(fn, "clip_eps_high", clip_eps_high, "(0, inf)", x.dtype)
    ratio = jnp.exp(jax.lax.stop_gradient(x))
    return ((ratio < 1 - eps) | (ratio > 1 + high)).astype(x.dtype)


def clip_fraction_lower(
    log_ratio: PerToken, advantages: PerSequence, *, clip_eps: Scalar = 0.2
) -> PerToken:
    """1 where the lower bound binds: the ratio is below 1 - eps and A < 0.

    Such tokens have no gradient. TRL's `clip_ratio/low_mean`.

    Args:
      log_ratio: from `log_ratio`, any shape `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`.
      clip_eps: eps in (0, 1).

    Returns:
      An array of log_ratio's shape, 0 or 1.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ, or clip_eps is out of (0, 1).

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.log(jnp.array([0.7, 0.7, 1.3]))
      >>> jaxppo.clip_fraction_lower(x, jnp.array([1.0, -1.0, -1.0]))
      Array([0., 1., 0.], dtype=float32)
    """
    fn = "clip_fraction_lower"
    x, advantages = _checks.arrays(
        fn, per_sequence=("advantages",), log_ratio=log_ratio, advantages=advantages
    )
    eps = _checks.number(fn, "clip_eps", clip_eps, "(0, 1)", x.dtype)
    return ((jnp.exp(x) < 1 - eps) & (advantages < 0)).astype(x.dtype)


def clip_fraction_upper(
    log_ratio: PerToken, advantages: PerSequence, *, clip_eps: Scalar = 0.2
) -> PerToken:
    """1 where the upper bound binds: the ratio is above 1 + eps and A > 0.

    Such tokens have no gradient. TRL's `clip_ratio/high_mean`.

    Args:
      log_ratio: from `log_ratio`, any shape `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`.
      clip_eps: eps, positive (with asymmetric bounds, pass `clip_eps_high` here).

    Returns:
      An array of log_ratio's shape, 0 or 1.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ, or clip_eps is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jnp.log(jnp.array([0.7, 1.3, 1.3]))
      >>> jaxppo.clip_fraction_upper(x, jnp.array([1.0, 1.0, -1.0]))
      Array([0., 1., 0.], dtype=float32)
    """
    fn = "clip_fraction_upper"
    x, advantages = _checks.arrays(
        fn, per_sequence=("advantages",), log_ratio=log_ratio, advantages=advantages
    )
    eps = _checks.number(fn, "clip_eps", clip_eps, "(0, inf)", x.dtype)
    return ((jnp.exp(x) > 1 + eps) & (advantages > 0)).astype(x.dtype)


def bound_fraction(log_ratio: PerToken, *, max_abs: Scalar = 20.0) -> PerToken:
    """1 where `log_ratio` held a token at its bound, which then has no gradient.

    More than a stray one means that sampler and trainer disagree about what was
    sampled, or that the policy has blown up.

    Args:
      log_ratio: from `log_ratio`, any shape.
      max_abs: the bound it was given, nats.

    Returns:
      An array of the same shape, 0 or 1.

    Raises:
      TypeError: log_ratio is not a floating-point array.
      ValueError: max_abs is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x = jaxppo.log_ratio(jnp.array([-1.0, -jnp.inf]), jnp.array([-1.5, -2.0]))
      >>> jaxppo.bound_fraction(x)
      Array([0., 1.], dtype=float32)
    """
    (x,) = _checks.arrays("bound_fraction", log_ratio=log_ratio)
    bound = _checks.number("bound_fraction", "max_abs", max_abs, "(0, inf]", x.dtype)
    return (jnp.abs(x) >= bound).astype(x.dtype)


def ratio_max(log_ratio: PerToken, mask: Mask | None = None) -> Max:
    """The largest ratio of the tokens that count, as a metric that merges.

    Args:
      log_ratio: from `log_ratio`, any shape.
      mask: the same shape, bool or integer, nonzero counts.

    Returns:
      A `Max` of a scalar; -inf where nothing counts.

    Raises:
      TypeError: log_ratio is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.ratio_max(jnp.log(jnp.array([0.5, 4.0]))).value.round(3)
      Array(4., dtype=float32)
    """
    (x,) = _checks.arrays("ratio_max", mask, log_ratio=log_ratio)
    keep = _checks.valid("ratio_max", mask, log_ratio=x)
    ratio = jnp.exp(jax.lax.stop_gradient(x))
    return Max(jnp.max(ratio, initial=-jnp.inf, where=keep))


def ratio_min(log_ratio: PerToken, mask: Mask | None = None) -> Min:
    """The smallest ratio of the tokens that count, as a metric that merges.

    Args:
      log_ratio: from `log_ratio`, any shape.
      mask: the same shape, bool or integer, nonzero counts.

    Returns:
      A `Min` of a scalar; inf where nothing counts.

    Raises:
      TypeError: log_ratio is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.ratio_min(jnp.log(jnp.array([0.5, 4.0]))).value.round(3)
      Array(0.5, dtype=float32)
    """
    (x,) = _checks.arrays("ratio_min", mask, log_ratio=log_ratio)
    keep = _checks.valid("ratio_min", mask, log_ratio=x)
    ratio = jnp.exp(jax.lax.stop_gradient(x))
    return Min(jnp.min(ratio, initial=jnp.inf, where=keep))


def effective_sample_size(
    log_ratio: PerToken, mask: Mask | None = None
) -> Float[Array, ""]:
    """Share of the samples that importance weights leave: (sum w)^2 / (n sum w^2).

    w = exp(log_ratio). 1 on policy, 1 / n when a single token has all the weight
    (Kong, 1992).

    Args:
      log_ratio: from `log_ratio`, any shape.
      mask: the same shape, bool or integer, nonzero counts.

    Returns:
      A scalar in (0, 1], over all axes; 0 where nothing counts.

    Raises:
      TypeError: log_ratio is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.effective_sample_size(jnp.log(jnp.array([1.0, 3.0]))).round(3)
      Array(0.8, dtype=float32)
    """
    (x,) = _checks.arrays("effective_sample_size", mask, log_ratio=log_ratio)
    keep = _checks.kept("effective_sample_size", mask, log_ratio=x)
    x = jax.lax.stop_gradient(x)
    # Relative to the largest weight, so that its square does not overflow.
    top = jnp.max(x, initial=-jnp.inf, where=keep)
    weights = jnp.where(keep, jnp.exp(x - jnp.where(jnp.isfinite(top), top, 0)), 0)
    squares = jnp.sum(keep, dtype=jnp.int32).astype(x.dtype) * jnp.sum(weights**2)
    return jnp.sum(weights) ** 2 / jnp.where(squares == 0, 1, squares)


def explained_variance(
    values: PerToken, returns: PerToken, mask: Mask | None = None
) -> Float[Array, ""]:
    """How much of the returns' variance a critic explains: 1 - Var(R - v) / Var(R).

    1 is perfect, 0 no better than a constant, negative worse than one. As in SB3 and
    CleanRL, on a whole batch.

    Args:
      values: v at rollout, any shape.
      returns: R, the same shape.
      mask: the same shape, bool or integer, nonzero counts.

    Returns:
      A scalar, over all axes; 0 where the returns do not vary.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> returns = jnp.array([1.0, 2.0, 3.0])
      >>> float(jaxppo.explained_variance(returns + 0.5, returns))
      1.0
    """
    values, returns = _checks.arrays(
        "explained_variance", mask, values=values, returns=returns
    )
    values, returns = jax.lax.stop_gradient((values, returns))
    rest = returns - values
    # Each in units of its size, whose squares can be neither 0 nor infinite.
    units = [power_of_two(jnp.max(jnp.abs(x), initial=0)) for x in (returns, rest)]
    total = masked_variance(returns / units[0], mask)
    share = masked_variance(rest / units[1], mask) / jnp.where(total == 0, 1, total)
    times = units[1] / units[0]
    return jnp.where(total == 0, 0, 1 - share * times * times)
