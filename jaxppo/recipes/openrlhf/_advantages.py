"""From rewards of samples to advantages of tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def token_rewards(
    rewards: jax.Array,
    kl: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: float | jax.Array = 0.01,
    reward_clip: float | jax.Array = 10.0,
) -> jax.Array:
    """-coef KL at each token, plus the sample's reward at its last one.

    OpenRLHF 0.11.2, utils.py `compute_reward`; rewards are `(batch,)`, held in [-10,
    10], kl is `approx_kl` or zeros. A coefficient below 0 counts as 0.
    """
    mask = mask.astype(bool)
    after = jnp.cumsum(mask[:, ::-1], -1, dtype=jnp.int32)[:, ::-1]
    score = jnp.clip(rewards, -reward_clip, reward_clip)[:, None]
    score = jnp.where(mask & (after == 1), score, 0).astype(kl.dtype)
    return jnp.where(mask, score - jnp.maximum(kl_coef, 0) * kl, 0)


def gae(
    token_rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: ScalarLike = 1.0,
    lambda_: ScalarLike = 1.0,
    scale_by_std: bool = True,
) -> jaxppo.Advantages:
    """GAE over steps of reward and value 0 where masked, then whitened.

    OpenRLHF 0.11.2, experience_maker.py `get_advantages_and_returns`. Fault: tokens
    inside an answer that are masked (a tool's) discount as they pass, and before them
    the value of what follows is 0. Use `jaxppo.gae(..., mask=mask)` instead.
    """
    token_rewards, values = (jnp.where(mask, x, 0) for x in (token_rewards, values))
    out = jaxppo.gae(token_rewards, values, gamma, lambda_=lambda_)
    advantages = whiten(out.advantages, mask, scale_by_std=scale_by_std)
    return jaxppo.Advantages(advantages, out.returns)


def reinforce_advantages(
    rewards: jax.Array,
    kl: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: float | jax.Array = 0.01,
    reward_clip: float | jax.Array = 10.0,
    gamma: ScalarLike = 1.0,
    scale_by_std: bool = True,
) -> jax.Array:
    """REINFORCE++: discounted returns, KL included, whitened over all tokens.

    OpenRLHF 0.11.2, experience_maker.py, estimator "reinforce".
    """
    x = token_rewards(rewards, kl, mask, kl_coef=kl_coef, reward_clip=reward_clip)
    x = cumulative_returns(x, mask, gamma=gamma)
    return whiten(x, mask, scale_by_std=scale_by_std)


def reinforce_baseline_advantages(
    rewards: jax.Array,
    kl: jax.Array,
    mask: jax.Array,
    *,
    group_size: int,
    kl_coef: float | jax.Array = 0.01,
    reward_clip: float | jax.Array = 10.0,
    scale_by_std: bool = True,
) -> jax.Array:
    """REINFORCE++-baseline: less the group's mean, then as REINFORCE++ with gamma 1.

    OpenRLHF 0.11.2, experience_maker.py, estimator "reinforce_baseline". Fault:
    `reward_clip` holds what is left when the baseline is subtracted, not the rewards,
    here as for all that follow. Clip the rewards yourself instead.
    """
    x = dr_grpo_advantages(
        rewards,
        kl,
        mask,
        group_size=group_size,
        kl_coef=kl_coef,
        reward_clip=reward_clip,
    )
    return whiten(x, mask, scale_by_std=scale_by_std)


def dr_grpo_advantages(
    rewards: jax.Array,
    kl: jax.Array,
    mask: jax.Array,
    *,
    group_size: int,
    kl_coef: float | jax.Array = 0.01,
    reward_clip: float | jax.Array = 10.0,
) -> jax.Array:
    """Less the group's mean, KL subtracted; not whitened.

    OpenRLHF 0.11.2, experience_maker.py, estimator "dr_grpo".
    """
    x = jaxppo.group_advantages(rewards, group_size=group_size, scale_by_std=False)
    x = token_rewards(x, kl, mask, kl_coef=kl_coef, reward_clip=reward_clip)
    return cumulative_returns(x, mask)


def group_norm_advantages(
    rewards: jax.Array,
    kl: jax.Array,
    mask: jax.Array,
    *,
    group_size: int,
    kl_coef: float | jax.Array = 0.01,
    reward_clip: float | jax.Array = 10.0,
) -> jax.Array:
    """GRPO's (r - mean) / (std + 1e-9), ddof 1, KL subtracted.

    OpenRLHF 0.11.2, experience_maker.py, estimator "group_norm". A group of equal
    rewards is exactly 0 here; there, rounding divided by 1e-9 may remain.
    """
    x = jaxppo.group_advantages(rewards, group_size=group_size, eps=1e-9)
    x = token_rewards(x, kl, mask, kl_coef=kl_coef, reward_clip=reward_clip)
    return cumulative_returns(x, mask)


def rloo_advantages(
    rewards: jax.Array,
    kl: jax.Array,
    mask: jax.Array,
    *,
    group_size: int,
    kl_coef: float | jax.Array = 0.01,
    reward_clip: float | jax.Array = 10.0,
) -> jax.Array:
    """Less the mean of the others of the group, KL subtracted.

    OpenRLHF 0.11.2, experience_maker.py, estimator "rloo". A group of one is refused
    there, and 0 here.
    """
    x = jaxppo.leave_one_out_advantages(rewards, group_size=group_size)
    x = token_rewards(x, kl, mask, kl_coef=kl_coef, reward_clip=reward_clip)
    return cumulative_returns(x, mask)


def flash_reinforce_advantages(
    rewards: jax.Array,
    kl: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: float | jax.Array = 0.01,
    reward_clip: float | jax.Array = 10.0,
) -> jax.Array:
    """Less the mean of all samples, one per prompt, KL subtracted; not whitened.

    OpenRLHF 0.11.2, experience_maker.py, estimator "flash_reinforce".
    """
    n = rewards.shape[-1]
    x = jaxppo.group_advantages(rewards, group_size=n, scale_by_std=False)
    x = token_rewards(x, kl, mask, kl_coef=kl_coef, reward_clip=reward_clip)
    return cumulative_returns(x, mask)


def cumulative_returns(
    token_rewards: jax.Array, mask: jax.Array, *, gamma: ScalarLike = 1.0
) -> jax.Array:
    """The discounted sum of the rewards to come, those under the mask being 0.

    OpenRLHF 0.11.2, experience_maker.py `get_cumulative_returns`. Masked steps discount
    as they pass, too.
    """
    return jaxppo.discounted_returns(jnp.where(mask, token_rewards, 0), gamma)


def whiten(x: jax.Array, mask: jax.Array, *, scale_by_std: bool = True) -> jax.Array:
    """(x - mean) / sqrt(max(variance, 1e-8)), ddof 0; 0 under the mask.

    OpenRLHF 0.11.2, experience_maker.py, over all samples of an update.
    `scale_by_std=False` is `no_std_norm`.
    """
    variance = jaxppo.masked_variance(x, mask)
    scale = jax.lax.rsqrt(jnp.maximum(variance, 1e-8)) if scale_by_std else 1.0
    return jaxppo.centred(x, mask) * scale


def stop_properly_penalty(
    rewards: jax.Array, truncated: jax.Array, *, coef: float | jax.Array
) -> jax.Array:
    """ProRL's: the reward of a truncated answer times `coef`, or `coef` if negative.

    OpenRLHF 0.11.2, length_penalty.py `apply_stop_properly_penalty`. Fault: a negative
    reward times a coefficient in [0, 1) is a better one, for being cut off. Pass a
    negative coefficient instead. (Its overlong penalty is `jaxppo.overlong_penalty`.)
    """
    scaled = jnp.where(coef < 0, coef, rewards * coef)
    return jnp.where(truncated, scaled, rewards)
