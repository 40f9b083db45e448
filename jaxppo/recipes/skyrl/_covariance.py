"""The two losses that spare entropy: clip-cov and kl-cov.

Fault of both: the advantages come multiplied by each token's share in the reduction, of
the order of one over the number of tokens. So do the covariances, which are compared
with fixed bounds (clip-cov), and the policy's term, but not the penalty beside it
(kl-cov). Give `verl.clip_cov` and `verl.kl_cov` the advantages as they are instead.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def clip_cov(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    key: jax.Array,
    fraction: ScalarLike = 2e-4,
    low: ScalarLike = 1.0,
    high: ScalarLike = 5.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip without some of the tokens of large covariance, drawn at random.

    SkyRL a9564572, ppo_utils.py `compute_policy_loss_clip_cov`: not those that the clip
    holds already; no guard on the ratio, no rollout correction. `clip_ratio` is the
    share dropped. Fault: see the module; with its default bounds nothing is ever
    dropped.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    advantages = advantages.astype(x.dtype) * _shares(aggregate, x, mask)
    clipped = jaxppo.clip_fraction_lower(x, advantages, clip_eps=clip_eps)
    clipped += jaxppo.clip_fraction_upper(x, advantages, clip_eps=clip_eps_high)
    covariance = jaxppo.token_covariance(log_probs, advantages, mask)
    covariance = jnp.where(clipped > 0, -jnp.inf, covariance)
    drop = jaxppo.clip_cov_mask(
        key, covariance, mask, fraction=fraction, low=low, high=high
    )
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    metrics: dict[str, jaxppo.Metric] = {
        "clip_ratio": jaxppo.token_mean(drop.astype(x.dtype), mask)
    }
    return jaxppo.token_sum(jnp.where(drop, 0, loss), mask), metrics


def kl_cov(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    fraction: ScalarLike = 0.2,
    kl_coef: ScalarLike = 1.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-r A, plus kl_coef |log r| on the tokens of largest covariance.

    SkyRL a9564572, ppo_utils.py `compute_policy_loss_kl_cov`; no guard on the ratio, no
    rollout correction. Fault: see the module; the penalties are added, not averaged, so
    that they outweigh the rest by the number of tokens. `clip_ratio` is always 0.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    advantages = advantages.astype(x.dtype) * _shares(aggregate, x, mask)
    covariance = jaxppo.token_covariance(log_probs, advantages, mask)
    held = jaxppo.kl_cov_mask(covariance, mask, fraction=fraction)
    loss = jaxppo.unclipped_surrogate(x, advantages)
    loss += jnp.where(held, kl_coef * jaxppo.kl_abs(x), 0)
    metrics: dict[str, jaxppo.Metric] = {
        "clip_ratio": jaxppo.token_mean(jnp.zeros_like(x), mask)
    }
    return jaxppo.token_sum(loss, mask), metrics


def _shares(aggregate: jaxppo.Aggregator, x: jax.Array, mask: jax.Array) -> jax.Array:
    """What each token counts in a reduction, which is linear: its gradient."""
    return jax.grad(lambda x: aggregate(x, mask).value)(jnp.zeros_like(x))
