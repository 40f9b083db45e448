"""The estimates of KL, per token."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k1,
) -> jax.Array:
    """An estimate of KL per token, without a guard: k1 (the default), k2 or k3.

    slime 624b824a, ppo_utils.py `compute_approx_kl`. As a loss none but k2 has KL's
    gradient; use `unbiased_kl` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return estimator(x)


def low_var_kl(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """k3 held within 10, without gradient beyond.

    slime 624b824a, ppo_utils.py `compute_approx_kl`, "low_var_kl". Fault: it is held
    after `exp`, whose overflow gives a NaN gradient. Use `kl` with `jaxppo.kl_k3` of a
    bounded `jaxppo.log_ratio` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.bounded_kl(x)


def unbiased_kl(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k3,
    max_value: ScalarLike = math.inf,
) -> jax.Array:
    """r k(x), both differentiated: KL's own gradient on the old policy's samples.

    slime 624b824a, ppo_utils.py `compute_approx_kl` with `use_unbiased_kl`; for
    "low_var_kl" the product is held, `max_value=10.0`, which is biased again.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    policy = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    weighted = lambda x: jnp.exp(policy) * estimator(x)
    return jaxppo.bounded_kl(x, estimator=weighted, max_value=max_value)
