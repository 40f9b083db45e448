"""KL penalties, per token, as rewards or as losses."""

import math

import jax

import jaxppo


def kl(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """k1: x. ROLL 8eb27cc2, utils/functionals.py `compute_approx_kl`, "kl".

    The default in rewards. Fault: as a loss its gradient is 0 in expectation. Use
    `jaxppo.unbiased_gradient_kl` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.kl_k1(x)


def kl_abs(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """|x|. ROLL 8eb27cc2, utils/functionals.py `compute_approx_kl`, "abs"."""
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.kl_abs(x)


def kl_mse(
    log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """k2: x^2 / 2. ROLL 8eb27cc2, utils/functionals.py `compute_approx_kl`, "mse"."""
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.kl_k2(x)


def kl_k3(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """k3: exp(-x) - 1 + x, at most 10, with no gradient beyond: the KL loss.

    ROLL 8eb27cc2, utils/functionals.py `compute_approx_kl`, "k3". Fault: the pull back
    to the reference ends where pi is exp(2.61) times rarer. Use `jaxppo.kl_k3` of a
    bounded `jaxppo.log_ratio` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.bounded_kl(x, estimator=jaxppo.kl_k3, max_value=10.0)
