"""The critic's loss, and the estimates of KL."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def critic(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Half the larger squared error, of v and of v held near v_old: a mean over rows.

    SkyRL a9564572, ppo_utils.py `ppo_critic_loss`: the mean of token means whatever the
    policy's reduction is, rows without a token included. `clip_eps=math.inf` does not
    clip.
    """
    loss = jaxppo.clipped_value(values, old_values, returns, mask, clip_eps=clip_eps)
    held = jnp.clip(values, old_values - clip_eps, old_values + clip_eps)
    held = jaxppo.squared_value(held, returns, mask)
    clipped = held > jaxppo.squared_value(values, returns, mask)
    metrics: dict[str, jaxppo.Metric] = {
        "clipfrac": jaxppo.token_mean(clipped.astype(loss.dtype), mask)
    }
    return jaxppo.all_rows(jaxppo.sequence_mean)(loss, mask), metrics


def kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k1,
) -> jax.Array:
    """An estimate of KL per token, without a guard: k1, k2 or abs.

    SkyRL a9564572, ppo_utils.py `compute_approx_kl`. As a loss none but k2 has KL's
    gradient; use `jaxppo.unbiased_gradient_kl` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return estimator(x)


def kl_k3(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """k3 per token, the log-ratio held within 20, the result within 10.

    SkyRL a9564572, ppo_utils.py `compute_approx_kl`, the default. Without gradient
    where pi is exp(2.61) times rarer than pi_ref; use `jaxppo.kl_k3` of
    `jaxppo.log_ratio` instead.
    """
    return jaxppo.bounded_kl(jaxppo.log_ratio(log_probs, ref_log_probs, mask))
