"""KL penalties, per token, and what controls their coefficient."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def k1(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """log pi - log pi_ref, unbounded (`kl`).

    verl 0.9.1, `kl_penalty`. Fault: as a loss its gradient is zero in expectation; use
    `k1_plus` there.
    """
    return jaxppo.kl_k1(_ratio(log_probs, ref_log_probs, mask))


def abs_kl(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """|log pi - log pi_ref| (`abs`).

    verl 0.9.1, `kl_penalty`. It estimates no divergence.
    """
    return jaxppo.kl_abs(_ratio(log_probs, ref_log_probs, mask))


def k2(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Half the squared log-ratio (`mse`).

    verl 0.9.1, `kl_penalty`: on policy, the KL divergence's own gradient.
    """
    return jaxppo.kl_k2(_ratio(log_probs, ref_log_probs, mask))


def low_var_kl(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """k3, with the log-ratio bounded at 20 and the result at 10 (`low_var_kl`).

    verl 0.9.1, `kl_penalty`. Fault: the bound on the result ends the gradient where pi
    has fallen exp(2.61) below pi_ref. `jaxppo.kl_k3` has none.
    """
    return jaxppo.bounded_kl(jaxppo.log_ratio(log_probs, ref_log_probs, mask))


def k1_plus(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """The value of `k1`, the gradient of `k2` (`k1+`).

    verl 0.9.1, `kl_penalty`.
    """
    x = _ratio(log_probs, ref_log_probs, mask)
    return jaxppo.unbiased_gradient_kl(x, estimator=jaxppo.kl_k1)


def k3_plus(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """The value of `low_var_kl`, the gradient of `k2` (`k3+`).

    verl 0.9.1, `kl_penalty`. The gradient is not bounded.
    """
    plain = jaxppo.kl_k2(_ratio(log_probs, ref_log_probs, mask))
    value = low_var_kl(log_probs, ref_log_probs, mask)
    return jax.lax.stop_gradient(value) + (plain - jax.lax.stop_gradient(plain))


def kl_in_reward(
    rewards: jax.Array, kl: jax.Array, mask: jax.Array, *, kl_coef: ScalarLike
) -> jax.Array:
    """Rewards per token less the penalty, which is not differentiated.

    verl 0.9.1, `ray_trainer.apply_kl_penalty`.
    """
    return rewards - kl_coef * jnp.where(mask, jax.lax.stop_gradient(kl), 0)


def kl_control(
    *,
    init_coef: ScalarLike = 0.001,
    target: ScalarLike = 0.1,
    horizon: ScalarLike = 10_000,
    batch_size: int,
) -> jaxppo.Controller:
    """The adaptive coefficient: times 1 + clip(KL / target - 1, +-0.2) n / horizon.

    verl 0.9.1, `AdaptiveKLController`, at `KLControlConfig`'s numbers.
    """
    gain = batch_size / horizon
    return jaxppo.adaptive_kl(target=target, init_coef=init_coef, gain=gain)


def _ratio(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    return jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
