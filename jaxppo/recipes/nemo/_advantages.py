"""Advantages: of groups, of batches, along time, of a teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def leave_one_out_advantages(
    rewards: jax.Array, *, group_ids: jax.Array, eps: ScalarLike = 1e-6
) -> jax.Array:
    """GRPO against the others of the group: (r - their mean) / (their std + eps).

    NeMo-RL 7ea279ab, advantage_estimator.py `GRPOAdvantageEstimator`, its defaults:
    both mean and std (of ddof 1) leave the sample itself out. Not divided where the std
    is 0; a group of one gets 0, groups of two are not divided. Fault: NeMo's variance
    is E[r^2] - E[r]^2 in float32, whose rounding passes for a std and makes advantages
    of thousands where the others are equal: here it does not.
    """
    advantages = jaxppo.leave_one_out_advantages(rewards, group_ids=group_ids)
    std = jaxppo.leave_one_out_std(rewards, group_ids=group_ids)
    return jnp.where(std > 0, advantages / (std + eps), advantages)


def group_advantages(
    rewards: jax.Array, *, group_ids: jax.Array, eps: ScalarLike = 1e-6
) -> jax.Array:
    """GRPO: (r - mean) / (std + eps), with ddof 1; a group of one gets 0.

    NeMo-RL 7ea279ab, `GRPOAdvantageEstimator`, `use_leave_one_out_baseline=False`.
    """
    return jaxppo.group_advantages(rewards, group_ids=group_ids, eps=eps)


def gdpo_advantages(
    rewards: jax.Array, component_weights: jax.Array, *, group_ids: jax.Array
) -> jax.Array:
    """GDPO: each component's own GRPO, their weighted sum, whitened over the batch.

    `rewards` is `(components, samples)`. NeMo-RL 7ea279ab, `GDPOAdvantageEstimator`
    (arXiv:2601.05242): mean and std over samples, with ddof 1, no eps. The components
    are `leave_one_out_advantages`; NeMo weighs them 1 each by default.
    """
    parts = leave_one_out_advantages(rewards, group_ids=group_ids)
    total = jnp.sum(component_weights[:, None] * parts, 0)
    return jaxppo.whiten(total, ddof=1, eps=0.0)


def reinforce_plus_plus_advantages(
    rewards: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    penalty: jax.Array | float = 0.0,
) -> jax.Array:
    """REINFORCE++: r less its group's mean, less a penalty per token, whitened.

    NeMo-RL 7ea279ab, `ReinforcePlusPlusAdvantageEstimator`; `penalty` is `kl_coef *
    nemo.kl(...)` with `use_kl_in_reward`. There is no sum over the rewards to come, and
    the variance is of ddof 0, at least 1e-8. Without `minus_baseline` give the sum of
    baseline and reward: `raw_reward_advantages`.
    """
    centred = jaxppo.group_advantages(rewards, group_ids=group_ids, scale_by_std=False)
    return _normalised(centred[:, None] - penalty, mask)


def raw_reward_advantages(rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """The reward itself, whitened over the batch's tokens (ddof 0).

    NeMo-RL 7ea279ab, `RawRewardAdvantageEstimator` with `normalize_advantages`. Longer
    answers weigh more in mean and variance.
    """
    return _normalised(rewards[:, None], mask)


def token_rewards(
    rewards: jax.Array, mask: jax.Array, *, penalty: jax.Array | float = 0.0
) -> jax.Array:
    """Each sequence's reward at its last token, less a penalty per token.

    NeMo-RL 7ea279ab, `GeneralizedAdvantageEstimator`; `penalty` is `kl_coef *
    nemo.kl(...)` with `use_kl_in_reward`.
    """
    mask = mask.astype(bool)
    later = jnp.cumsum(mask[:, ::-1], -1, dtype=jnp.int32)[:, ::-1]
    at_end = jnp.where(mask & (later == 1), rewards[:, None], 0)
    return jnp.where(mask, at_end - penalty, 0)


def gae(
    token_rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: ScalarLike = 1.0,
    lambda_: ScalarLike | jax.Array = 0.95,
    lambda_value: ScalarLike = 0.95,
) -> jaxppo.Advantages:
    """GAE that skips masked steps, advantages whitened, returns of their own lambda.

    NeMo-RL 7ea279ab, `GeneralizedAdvantageEstimator`. VAPO's length-adaptive lambda is
    `lambda_=jaxppo.length_adaptive_lambda(mask, alpha=...)`. Whitened as (x - mean) /
    sqrt(var + 1e-8), with ddof 1 (`normalize_advantages`); use `jaxppo.whiten` where
    one token counts, for which that is a division by 0 in NeMo. NeMo takes these
    numbers from its configuration and has no defaults of its own.
    """
    advantages = jaxppo.gae(token_rewards, values, gamma, lambda_=lambda_, mask=mask)
    targets = jaxppo.gae(token_rewards, values, gamma, lambda_=lambda_value, mask=mask)
    centred = jaxppo.centred(advantages.advantages, mask)
    variance = jaxppo.masked_variance(centred, mask, ddof=1)
    return jaxppo.Advantages(centred * jax.lax.rsqrt(variance + 1e-8), targets.returns)


def distillation_advantages(
    log_probs: jax.Array, teacher_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """On-policy distillation: log pi_teacher - log pi per token, constant.

    NeMo-RL 7ea279ab, `OPDAdvantageEstimator` (arXiv:2601.02780); no bound.
    """
    x = jaxppo.log_ratio(teacher_log_probs, log_probs, mask, max_abs=jnp.inf)
    return jax.lax.stop_gradient(x)


def _normalised(x: jax.Array, mask: jax.Array) -> jax.Array:
    centred = jaxppo.centred(jnp.where(mask, x, 0), mask)
    variance = jaxppo.masked_variance(centred, mask)
    return centred * jax.lax.rsqrt(jnp.maximum(variance, 1e-8))
