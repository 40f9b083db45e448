"""Advantages, of groups and along time."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def group_advantages(
    rewards: jax.Array, *, group_size: int, scale_by_std: bool = True
) -> jax.Array:
    """GRPO: (r - mean) / (std + 1e-6) with ddof 1, of consecutive samples.

    slime 624b824a, ray/rollout.py `_post_process_rewards`. Fault: groups of unequal
    sizes are taken for one group, the whole batch. Use `jaxppo.group_advantages` with
    `group_ids` instead.
    """
    return jaxppo.group_advantages(
        rewards, group_size=group_size, scale_by_std=scale_by_std
    )


def token_rewards(rewards: jax.Array, kl: jax.Array, mask: jax.Array) -> jax.Array:
    """Each sequence's reward at its last token, less the KL penalty of each token.

    `kl` has its coefficient in it (0 by default). slime 624b824a, ppo_utils.py
    `get_reinforce_plus_plus_returns`; for "ppo" loss.py puts the reward at the last
    token whether the mask counts it or not.
    """
    mask = mask.astype(bool)
    later = jnp.cumsum(mask[:, ::-1], -1, dtype=jnp.int32)[:, ::-1]
    at_end = jnp.where(mask & (later == 1), rewards[:, None], 0)
    return jnp.where(mask, at_end - kl, 0)


def reinforce_plus_plus_returns(
    token_rewards: jax.Array, *, gamma: ScalarLike = 1.0
) -> jax.Array:
    """REINFORCE++: the discounted sum of the rewards to come, masked steps included.

    slime 624b824a, ppo_utils.py `get_reinforce_plus_plus_returns`; not whitened unless
    `normalize_advantages`: `whitened`. A hole in the mask discounts as it is passed.
    """
    return jaxppo.discounted_returns(token_rewards, gamma)


def reinforce_plus_plus_baseline_advantages(
    rewards: jax.Array, kl: jax.Array, mask: jax.Array, *, group_size: int
) -> jax.Array:
    """REINFORCE++-baseline: r less its group's mean, less the KL penalty per token.

    `kl` has its coefficient in it. slime 624b824a, ppo_utils.py
    `get_reinforce_plus_plus_baseline_advantages`.
    """
    centred = jaxppo.group_advantages(
        rewards, group_size=group_size, scale_by_std=False
    )
    return jnp.where(mask, centred[:, None] - kl, 0)


def gae(
    token_rewards: jax.Array,
    values: jax.Array,
    *,
    gamma: ScalarLike = 1.0,
    lambda_: ScalarLike = 1.0,
) -> jaxppo.Advantages:
    """GAE over all steps of the array, masked ones too.

    slime 624b824a, ppo_utils.py `vanilla_gae` and `chunked_gae`, which are equal.
    Values and rewards behind each response are 0 in slime: set them so. Fault: holes
    take part with what the critic says of a tool's tokens. Use `jaxppo.gae` with a
    `mask` instead, which skips them.
    """
    return jaxppo.gae(token_rewards, values, gamma, lambda_=lambda_)


def whitened(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """(A - mean) / sqrt(variance + 1e-8) over the batch's tokens, with ddof 1.

    slime 624b824a, distributed_utils.py `distributed_masked_whiten`; off by default.
    Fault: its variance is E[A^2] - E[A]^2, which cancels where the mean is large. Here
    it does not.
    """
    variance = jaxppo.masked_variance(advantages, mask, ddof=1)
    return jaxppo.centred(advantages, mask) * jax.lax.rsqrt(variance + 1e-8)
