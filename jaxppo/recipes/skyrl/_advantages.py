"""Advantages of outcomes: per sequence, `(batch, 1)`; the others per token."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def grpo_advantages(
    token_rewards: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    scale_by_std: bool = True,
    eps: ScalarLike = 1e-6,
) -> jax.Array:
    """GRPO: (r - mean) / (std + eps) with ddof 1, r the sum over the sequence.

    SkyRL a9564572, ppo_utils.py `compute_grpo_outcome_advantage`. Surprising: a group
    of one gets its raw reward as advantage, / (1 + eps). Here a group of equal rewards
    gets 0, not what rounding leaves.
    """
    scores = jaxppo.masked_sum(token_rewards, mask, axis=-1)
    advantages = jaxppo.group_advantages(
        scores,
        group_ids=group_ids,
        scale_by_std=scale_by_std,
        eps=eps,
        singleton=1 / (1 + eps) if scale_by_std else 1.0,
    )
    return advantages[:, None]


def rloo_advantages(
    token_rewards: jax.Array, mask: jax.Array, *, group_ids: jax.Array
) -> jax.Array:
    """RLOO: r less the mean of the group's others; a group of one gets 0.

    SkyRL a9564572, ppo_utils.py `compute_rloo_outcome_advantage`.
    """
    scores = jaxppo.masked_sum(token_rewards, mask, axis=-1)
    return jaxppo.leave_one_out_advantages(scores, group_ids=group_ids)[:, None]


def maxrl_advantages(
    token_rewards: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    eps: ScalarLike = 1e-6,
) -> jax.Array:
    """MaxRL: (r - mean) / (mean + eps); a group of one gets its raw reward.

    SkyRL a9564572, ppo_utils.py `compute_maxrl_advantage`. For rewards of 0 or 1; where
    they can be negative, so can the mean, and the advantages' signs turn.
    """
    scores = jaxppo.masked_sum(token_rewards, mask, axis=-1)

    def centred(x: jax.Array, singleton: float) -> jax.Array:
        return jaxppo.group_advantages(
            x, group_ids=group_ids, scale_by_std=False, singleton=singleton
        )

    above = centred(scores, 0.0)
    alone = centred(jnp.ones_like(scores), 1.0) > 0
    return jnp.where(alone, scores, above / (scores - above + eps))[:, None]


def reinforce_plus_plus_advantages(
    token_rewards: jax.Array, mask: jax.Array, *, gamma: ScalarLike = 1.0
) -> jaxppo.Advantages:
    """REINFORCE++: the discounted sum of the rewards to come, and it whitened.

    SkyRL a9564572, ppo_utils.py `compute_reinforce_plus_plus_outcome_advantage`. Fault:
    the sum restarts at every hole of the mask, so that what was done before a tool's
    answer has no part in the outcome. Use `jaxppo.discounted_returns(token_rewards,
    gamma, mask=mask)` instead.
    """
    following = jnp.roll(mask.astype(bool), -1, -1).astype(token_rewards.dtype)
    rewards = jnp.where(mask, token_rewards, 0)
    returns = jaxppo.discounted_returns(rewards, gamma * following)
    return jaxppo.Advantages(_whitened(returns, mask), returns)


def gae(
    token_rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: ScalarLike = 1.0,
    lambda_: ScalarLike = 1.0,
) -> jaxppo.Advantages:
    """GAE over all steps of the array, masked ones too; the advantages whitened.

    SkyRL a9564572, ppo_utils.py `compute_gae_advantage_return`. Fault: the values in
    holes and in the padding behind the last token take part (and a NaN there is a NaN
    in all). Use `jaxppo.gae` with `mask=mask` instead, which skips them.
    """
    out = jaxppo.gae(token_rewards, values, gamma, lambda_=lambda_)
    return jaxppo.Advantages(_whitened(out.advantages, mask), out.returns)


def _whitened(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-8), with ddof 1, 0 under the mask."""
    variance = jaxppo.masked_variance(x, mask, ddof=1)
    return jaxppo.centred(x, mask) * jax.lax.rsqrt(variance + 1e-8)
