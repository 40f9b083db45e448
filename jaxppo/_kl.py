"""KL divergence from samples, as per-token terms, and its adaptive coefficient.

With x = log p - log q at a sample of p, E[k1] = E[k3] = KL(p || q). For the drift of
the policy on its own old samples, which come from q, use `approx_kl_k1` and
`approx_kl_k3`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from . import _checks
from ._types import Controller, PerToken, Scalar


def kl_k1(log_ratio: PerToken) -> PerToken:
    """KL(p || q) from samples of p, plainly: x = log p - log q.

    Unbiased, of large variance, negative for about half the samples. As a *loss* it
    does nothing: the expectation of its gradient is 0. Use it in rewards, or through
    `unbiased_gradient_kl`. Source: Schulman, 2020, "Approximating KL divergence".

    Args:
      log_ratio: log p - log q, nats, from `log_ratio`; any shape.

    Returns:
      An array of the same shape, in float32 at least.

    Raises:
      TypeError: log_ratio is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.kl_k1(jnp.array([0.5, -0.5]))
      Array([ 0.5, -0.5], dtype=float32)
    """
    (x,) = _checks.arrays("kl_k1", log_ratio=log_ratio)
    return x


def kl_k2(log_ratio: PerToken) -> PerToken:
    """KL(p || q) from samples of p, to second order: x^2 / 2.

    Biased as a value, never negative; on samples of the current policy its *gradient*
    is the exact one, in expectation. Source: Schulman, 2020.

    Args:
      log_ratio: log p - log q, nats, from `log_ratio`; any shape.

    Returns:
      An array of the same shape, in float32 at least.

    Raises:
      TypeError: log_ratio is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.kl_k2(jnp.array([0.5, -0.5]))
      Array([0.125, 0.125], dtype=float32)
    """
    (x,) = _checks.arrays("kl_k2", log_ratio=log_ratio)
    return 0.5 * x**2


def kl_k3(log_ratio: PerToken) -> PerToken:
    """KL(p || q) from samples of p, with a control variate: exp(-x) - 1 + x.

    Unbiased as a value, never negative; its gradient, 1 - exp(-x), is that of
    KL(q || p). GRPO's penalty. There is no clamp on the result, so the pull back to
    the reference never ends; `log_ratio` bounds x. Source: Schulman, 2020.

    Args:
      log_ratio: log p - log q, nats, from `log_ratio`; any shape.

    Returns:
      An array of the same shape, in float32 at least, accurate near 0, too.

    Raises:
      TypeError: log_ratio is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.kl_k3(jnp.array([0.5, -0.5])).round(4)
      Array([0.1065, 0.1487], dtype=float32)
    """
    (x,) = _checks.arrays("kl_k3", log_ratio=log_ratio)
    # expm1(-x) + x cancels near 0, and is negative there for 1.7 % of small x. The
    # series 2 (exp(-x) - 1 + x) / x^2 = 1 - x/3 (1 - x/4 (...)) does not: to 14 terms
    # it is exact in float64 for |x| < 1/4.
    near = jnp.abs(x) < 0.25
    small = jnp.where(near, x, 0)
    series = jnp.ones_like(x)
    for k in range(14, 2, -1):
        series = 1 - small * series / k
    return jnp.where(near, 0.5 * small**2 * series, jnp.expm1(-x) + x)


def kl_abs(log_ratio: PerToken) -> PerToken:
    """The absolute log-ratio, |x|: a distance, not an estimate of the KL divergence.

    verl's `abs`. Its gradient, sign(x), pulls every token with the same force.

    Args:
      log_ratio: log p - log q, nats, from `log_ratio`; any shape.

    Returns:
      An array of the same shape, in float32 at least.

    Raises:
      TypeError: log_ratio is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.kl_abs(jnp.array([0.5, -0.5]))
      Array([0.5, 0.5], dtype=float32)
    """
    (x,) = _checks.arrays("kl_abs", log_ratio=log_ratio)
    return x * jax.lax.stop_gradient(jnp.sign(x))  # no gradient at 0, in any backend


def bounded_kl(
    log_ratio: PerToken,
    *,
    estimator: Callable[[PerToken], PerToken] = kl_k3,
    max_value: Scalar = 10.0,
) -> PerToken:
    """An estimator held in [-max_value, max_value], without gradient beyond it.

    verl, OpenRLHF, SkyRL, NeMo-RL and ROLL clamp their estimates at 10. For k3 that
    ends the pull back to the reference where pi is exp(2.61) times rarer; it is rather
    the *log-ratio* that needs a bound, and `log_ratio` has one.

    Args:
      log_ratio: log pi - log pi_ref, nats, from `log_ratio`; any shape.
      estimator: `kl_k1`, `kl_k2`, `kl_k3`, `kl_abs` or your own.
      max_value: the bound, nats, positive.

    Returns:
      An array of the same shape, in float32 at least.

    Raises:
      TypeError: log_ratio is not a floating-point array, or estimator not a function.
      ValueError: max_value is not positive.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.bounded_kl(jnp.array([0.5, -9.0]), estimator=jaxppo.kl_k2)
      Array([ 0.125, 10.   ], dtype=float32)
    """
    fn = "bounded_kl"
    (x,) = _checks.arrays(fn, log_ratio=log_ratio)
    _checks.function(fn, "estimator", estimator, "jaxppo.kl_k3")
    bound = _checks.number(fn, "max_value", max_value, "(0, inf]", x.dtype)
    value = estimator(x)
    held = jax.lax.stop_gradient(jnp.clip(value, -bound, bound))
    return jnp.where(jnp.abs(value) <= bound, value, held)


def unbiased_gradient_kl(
    log_ratio: PerToken, *, estimator: Callable[[PerToken], PerToken] = kl_k3
) -> PerToken:
    """The value of one estimator with the gradient of k2, which is KL's own.

    k(x) where it is read, x^2 / 2 where it is differentiated ("straight-through",
    verl's `k3+`): on samples of the current policy, E[d/dtheta] is the gradient of
    KL(pi || pi_ref), which the gradients of k1 (0) and k3 (the reverse KL's) are not.

    Args:
      log_ratio: log pi - log pi_ref, nats, from `log_ratio`; any shape.
      estimator: the value's formula: `kl_k1`, `kl_k2`, `kl_k3` or your own.

    Returns:
      An array of the same shape, in float32 at least.

    Raises:
      TypeError: log_ratio is not a floating-point array, or estimator not a function.

    Example:
      >>> import jax, jax.numpy as jnp, jaxppo
      >>> x = jnp.array([0.5])
      >>> jaxppo.unbiased_gradient_kl(x, estimator=jaxppo.kl_k1)
      Array([0.5], dtype=float32)
      >>> jax.grad(lambda x: jaxppo.unbiased_gradient_kl(x).sum())(x)
      Array([0.5], dtype=float32)
    """
    (x,) = _checks.arrays("unbiased_gradient_kl", log_ratio=log_ratio)
    _checks.function("unbiased_gradient_kl", "estimator", estimator, "jaxppo.kl_k3")
    k2 = kl_k2(x)
    return jax.lax.stop_gradient(estimator(x)) + (k2 - jax.lax.stop_gradient(k2))


def importance_weighted_kl(
    log_ratio: PerToken,
    policy_log_ratio: PerToken,
    *,
    estimator: Callable[[PerToken], PerToken] = kl_k3,
) -> PerToken:
    """An estimator weighted by r = pi / pi_old, which is differentiated, too.

    r k(x): on samples of pi_old its expectation is that of k on samples of pi, for
    every pi, and so its gradient is KL(pi || pi_ref)'s own, for k1 and k3 alike
    (DeepSeek-V3.2, 2025; TRL's `use_bias_correction_kl`, slime's `use_unbiased_kl`).
    Take r per token: one ratio for the sequence, as in TRL with GSPO, is biased.

    Args:
      log_ratio: log pi - log pi_ref, nats, from `log_ratio`; any shape.
      policy_log_ratio: log pi - log pi_old, nats, from `log_ratio`, the same shape. On
        samples of pi itself, `log_ratio(log_probs, stop_gradient(log_probs))`.
      estimator: `kl_k1`, `kl_k3` or your own.

    Returns:
      An array of the same shape, in float32 at least.

    Raises:
      TypeError: an array is not floating point, or estimator not a function.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> x, policy = jnp.array([0.5]), jnp.log(jnp.array([2.0]))
      >>> jaxppo.importance_weighted_kl(x, policy, estimator=jaxppo.kl_k1)
      Array([1.], dtype=float32)
    """
    fn = "importance_weighted_kl"
    x, policy = _checks.arrays(
        fn, log_ratio=log_ratio, policy_log_ratio=policy_log_ratio
    )
    _checks.function(fn, "estimator", estimator, "jaxppo.kl_k3")
    return jnp.exp(policy) * estimator(x)


def approx_kl_k1(log_ratio: PerToken) -> PerToken:
    """How far a policy has moved, on its *old* samples: KL(pi_old || pi), -x plainly.

    k1 with the roles exchanged, since the samples are the old policy's. CleanRL's
    `old_approx_kl`, torchrl's `kl_approx`. A diagnostic, without gradient.

    Args:
      log_ratio: log pi - log pi_old, nats, from `log_ratio`; any shape.

    Returns:
      An array of the same shape, in float32 at least.

    Raises:
      TypeError: log_ratio is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.approx_kl_k1(jnp.array([0.5, -0.5]))
      Array([-0.5,  0.5], dtype=float32)
    """
    (x,) = _checks.arrays("approx_kl_k1", log_ratio=log_ratio)
    return -jax.lax.stop_gradient(x)


def approx_kl_k3(log_ratio: PerToken) -> PerToken:
    """How far a policy has moved, on its *old* samples: KL(pi_old || pi), exp(x)-1-x.

    k3 with the roles exchanged, since the samples are the old policy's. The `approx_kl`
    of SB3 and CleanRL. A diagnostic, without gradient.

    Args:
      log_ratio: log pi - log pi_old, nats, from `log_ratio`; any shape.

    Returns:
      An array of the same shape, in float32 at least, never negative.

    Raises:
      TypeError: log_ratio is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.approx_kl_k3(jnp.array([0.5, -0.5])).round(4)
      Array([0.1487, 0.1065], dtype=float32)
    """
    (x,) = _checks.arrays("approx_kl_k3", log_ratio=log_ratio)
    return kl_k3(-jax.lax.stop_gradient(x))


def adaptive_kl(
    *,
    target: Scalar,
    init_coef: Scalar = 0.2,
    gain: Scalar = 0.1,
    max_error: Scalar = 0.2,
    metric: str = "kl",
) -> Controller:
    """A KL coefficient that follows a target: coef *= 1 + gain clip(KL / target - 1).

    The proportional controller of Ziegler et al., 2019 (arXiv:1909.08593), as in verl,
    OpenRLHF and TRL, where gain = samples per update / horizon (256 / 10000, say).
    Give it to `learner(adaptive={"kl_coef": ...})`, which carries the coefficient in
    its state, or call the pair yourself. A KL that is not finite changes nothing.

    Args:
      target: KL to hold, nats per token, positive.
      init_coef: the first coefficient, positive.
      gain: share of the error corrected per update, in (0, 1].
      max_error: bound on the relative error, positive.
      metric: the metric it observes: "kl", from the reference, or "approx_kl".

    Returns:
      A `Controller`: `init() -> coef`, `update(coef, kl) -> coef`.

    Raises:
      ValueError: a hyper-parameter is out of its range.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> controller = jaxppo.adaptive_kl(target=0.1, init_coef=0.5, gain=0.1)
      >>> controller.update(controller.init(), jnp.array(0.3))  # 0.5 (1 + 0.1 0.2)
      Array(0.51, dtype=float32)
    """
    fn = "adaptive_kl"
    target = _checks.number(fn, "target", target, "(0, inf)", jnp.float32)
    init_coef = _checks.number(fn, "init_coef", init_coef, "(0, inf)", jnp.float32)
    gain = _checks.number(fn, "gain", gain, "(0, 1]", jnp.float32)
    max_error = _checks.number(fn, "max_error", max_error, "(0, inf)", jnp.float32)

    def init():
        return jnp.copy(init_coef)  # the learner's state may be donated

    def update(coef, kl):
        error = jnp.clip(kl / target - 1, -max_error, max_error)
        return jnp.where(jnp.isfinite(kl), coef * (1 + gain * error), coef)

    return Controller(init, update, metric)
