"""KL from the reference, and its coefficient."""

import math
from collections.abc import Callable

import jax
from jaxtyping import ScalarLike

import jaxppo


def approx_kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k1,
) -> jax.Array:
    """An estimate of KL(pi || ref) per token, held in [-10, 10]: k1, k2 or k3.

    OpenRLHF 0.11.2, utils.py `compute_approx_kl`. k1 is for the reward, k3 or k2 for a
    loss: k1's gradient is 0 in expectation. Beyond 10 there is no gradient, so that
    k3's pull ends where pi is exp(2.61) times rarer than ref. Use
    `unbiased_gradient_kl`, or `jaxppo.kl_k3` on a bounded log-ratio, instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask)
    return jaxppo.bounded_kl(x, estimator=estimator)


def unbiased_gradient_kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    old_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k1,
) -> jax.Array:
    """`approx_kl` where it is read; where differentiated, KL's own gradient, w x.

    OpenRLHF 0.11.2, utils.py `compute_approx_kl`, `unbiased_gradient=True`. x = log pi
    - log ref, unbounded, and w = min(pi / pi_old, 10), a constant: the gradient is the
    same for all estimators, and does not end where the value is held.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    moved = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    value = jax.lax.stop_gradient(jaxppo.bounded_kl(x, estimator=estimator))
    surrogate = jaxppo.truncated_weights(moved, cap=10.0) * jaxppo.kl_k2(x)
    return value + (surrogate - jax.lax.stop_gradient(surrogate))


def adaptive_kl(
    *,
    target: ScalarLike,
    samples: int,
    init_coef: float | jax.Array = 0.01,
    horizon: ScalarLike = 10000,
) -> jaxppo.Controller:
    """The coefficient of the KL in the reward, led to a target.

    OpenRLHF 0.11.2, kl_controller.py `AdaptiveKLController`; `samples` is prompts times
    answers per update, here at most `horizon`. It observes the mean over samples of
    their mean `approx_kl`. Without a target (the default) the coefficient is a number,
    0.01: `FixedKLController`.
    """
    gain = samples / horizon
    return jaxppo.adaptive_kl(target=target, init_coef=init_coef, gain=gain)
