"""Advantages: one per sequence, `(n,)`; `[:, None]` for the losses.

Rows of a group are consecutive. A reward of NaN is one that no function could give:
its row takes no part and gets 0, as does a row alone in its group.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def summed_rewards(rewards: jax.Array, reward_coefs: jax.Array) -> jax.Array:
    """The weighted sum of several rewards, `(n, k)` and `(k,)`, without those of NaN.

    TRL 1.16.0, grpo_trainer.py, `multi_objective_aggregation="sum_then_normalize"`,
    its default; NaN where all are. Fault: a missing reward counts as 0, for or against
    its sample.
    """
    total = jnp.nansum(rewards * reward_coefs[None], -1)
    return jnp.where(jnp.all(jnp.isnan(rewards), -1), jnp.nan, total)


def group_advantages(
    rewards: jax.Array, *, group_size: int, eps: ScalarLike = 1e-4
) -> jax.Array:
    """(r - mean) / (std + eps) of the group, std with n - 1.

    TRL 1.16.0, grpo_trainer.py, `scale_rewards="group"`, its default.
    """
    scored = ~jnp.isnan(rewards)
    return jaxppo.group_advantages(rewards, scored, group_size=group_size, eps=eps)


def batch_advantages(
    rewards: jax.Array, *, group_size: int, eps: ScalarLike = 1e-4
) -> jax.Array:
    """(r - the group's mean) / (the batch's std + eps), of rewards, with n - 1.

    TRL 1.16.0, grpo_trainer.py, `scale_rewards="batch"`. The std is of the rewards
    themselves, the differences between prompts included. Give it a whole batch.
    """
    centred = unscaled_advantages(rewards, group_size=group_size)
    variance = jaxppo.masked_variance(rewards, ~jnp.isnan(rewards), ddof=1)
    return centred / (jnp.sqrt(variance) + eps)


def unscaled_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """r - the group's mean.

    TRL 1.16.0, grpo_trainer.py, `scale_rewards="none"` (Dr. GRPO).
    """
    scored = ~jnp.isnan(rewards)
    return jaxppo.group_advantages(
        rewards, scored, group_size=group_size, scale_by_std=False
    )


def gdpo_advantages(
    rewards: jax.Array,
    reward_coefs: jax.Array,
    *,
    group_size: int,
    eps: ScalarLike = 1e-4,
) -> jax.Array:
    """Each of several rewards normalised in its group, summed, whitened over the batch.

    TRL 1.16.0, grpo_trainer.py, `multi_objective_aggregation="normalize_then_sum"`;
    `(n, k)` and `(k,)`. Both stds are with n - 1. Give it a whole batch.
    """

    def normalised(reward: jax.Array) -> jax.Array:
        return group_advantages(reward, group_size=group_size, eps=eps)

    each = jax.vmap(normalised, -1, -1)(rewards)
    total = jnp.sum(each * reward_coefs[None], -1)
    scored = jnp.any(~jnp.isnan(rewards), -1)
    return jaxppo.whiten(total, scored, ddof=1, eps=eps)


def penalised_rewards(
    rewards: jax.Array,
    old_log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: ScalarLike = 0.05,
    low: ScalarLike = -math.inf,
    high: ScalarLike = math.inf,
) -> jax.Array:
    """clip(r, low, high) - kl_coef times the sum over tokens of k1, before RLOO.

    TRL 1.16.0, rloo_trainer.py; no clip by default, and none of the KL.
    """
    x = jaxppo.log_ratio(old_log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jnp.clip(rewards, low, high) - kl_coef * jnp.sum(x, -1)


def rloo_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """r - the mean of the others of the group.

    TRL 1.16.0, rloo_trainer.py, `normalize_advantages=False`, its default.
    """
    scored = ~jnp.isnan(rewards)
    return jaxppo.leave_one_out_advantages(rewards, scored, group_size=group_size)


def normalised_rloo_advantages(
    rewards: jax.Array, *, group_size: int, eps: ScalarLike = 1e-4
) -> jax.Array:
    """`rloo_advantages`, whitened over the batch, std with n - 1.

    TRL 1.16.0, rloo_trainer.py, `normalize_advantages=True`: over the rows that have a
    score and company. Give it a whole batch.
    """
    advantages = rloo_advantages(rewards, group_size=group_size)
    scored = ~jnp.isnan(rewards).reshape(-1, group_size)
    company = scored & (jnp.sum(scored, -1, keepdims=True, dtype=jnp.int32) > 1)
    return jaxppo.whiten(advantages, company.reshape(-1), ddof=1, eps=eps)
