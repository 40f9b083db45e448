"""Advantage estimators: per token, 0 where the mask is.

Outcome estimators take token rewards and sum them over all tokens, as verl does.
"""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: ScalarLike = 1.0,
    lambda_: ScalarLike = 1.0,
) -> jaxppo.Advantages:
    """GAE over the tokens that count, then whitened.

    verl 0.9.1, `compute_gae_advantage_return`: masked tokens are skipped, and the
    returns are those of before whitening.
    """
    raw = jaxppo.gae(rewards, values, discount, lambda_=lambda_, mask=mask)
    return jaxppo.Advantages(_whiten(raw.advantages, mask), raw.returns)


def grpo(
    rewards: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    eps: ScalarLike = 1e-6,
) -> jax.Array:
    """(R - mean) / (std + eps) of the group; for a group of one R / (1 + eps).

    verl 0.9.1, `compute_grpo_outcome_advantage` and its vectorised form.
    """
    alone = 1 / (1 + eps)  # mean 0, std 1
    scores = jaxppo.group_advantages(
        _outcome(rewards), group_ids=group_ids, eps=eps, singleton=alone
    )
    return _spread(scores, mask)


def grpo_no_std(
    rewards: jax.Array, mask: jax.Array, *, group_ids: jax.Array
) -> jax.Array:
    """R - mean of the group; a group of one keeps R.

    verl 0.9.1, `compute_grpo_outcome_advantage(norm_adv_by_std_in_grpo=False)`.
    """
    return _spread(_centred(rewards, group_ids), mask)


def grpo_passk(
    rewards: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    eps: ScalarLike = 1e-6,
) -> jax.Array:
    """(R_1 - R_2) / (std + eps) for the best of the group, 0 for the rest.

    verl 0.9.1, `compute_grpo_passk_outcome_advantage`, which refuses a group of one.
    """
    scores = jaxppo.pass_at_k_advantages(
        _outcome(rewards), group_ids=group_ids, eps=eps
    )
    return _spread(scores, mask)


def gdpo(
    rewards: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    weights: jax.Array,
    eps: ScalarLike = 1e-6,
) -> jax.Array:
    """GRPO of each of several rewards `(k, batch, time)`, weighted, added, whitened.

    verl 0.9.1, `compute_gdpo_outcome_advantage`; `weights` has one number a reward.
    """
    each = jax.vmap(lambda r: grpo(r, mask, group_ids=group_ids, eps=eps))(rewards)
    return _whiten(jnp.sum(weights[:, None, None] * each, 0), mask)


def reinforce_plus_plus_baseline(
    rewards: jax.Array, mask: jax.Array, *, group_ids: jax.Array
) -> jax.Array:
    """R - mean of the group, whitened over all tokens.

    verl 0.9.1, `compute_reinforce_plus_plus_baseline_outcome_advantage`.
    """
    return _whiten(grpo_no_std(rewards, mask, group_ids=group_ids), mask)


def reinforce_plus_plus(
    rewards: jax.Array, mask: jax.Array, *, discount: ScalarLike = 1.0
) -> jaxppo.Advantages:
    """The rewards to come, whitened.

    verl 0.9.1, `compute_reinforce_plus_plus_outcome_advantage`; until 0.8 a masked
    token made it forget what came after.
    """
    returns = jaxppo.discounted_returns(rewards, discount, mask=mask)
    return jaxppo.Advantages(_whiten(returns, mask), returns)


def rloo(rewards: jax.Array, mask: jax.Array, *, group_ids: jax.Array) -> jax.Array:
    """R less the mean of the others; a group of one keeps R.

    verl 0.9.1, `compute_rloo_outcome_advantage`.
    """
    scores = jaxppo.leave_one_out_advantages(
        _outcome(rewards), group_ids=group_ids, singleton=1.0
    )
    return _spread(scores, mask)


def rloo_vectorized(
    rewards: jax.Array, mask: jax.Array, *, group_ids: jax.Array
) -> jax.Array:
    """R less the mean of the others; a group of one gets 0.

    verl 0.9.1, `compute_rloo_vectorized_outcome_advantage`. Fault: it is not the same
    estimator as `rloo` for a group of one.
    """
    scores = jaxppo.leave_one_out_advantages(_outcome(rewards), group_ids=group_ids)
    return _spread(scores, mask)


def opo(rewards: jax.Array, mask: jax.Array, *, group_ids: jax.Array) -> jax.Array:
    """R less the group's mean weighted by length; a group of one keeps R.

    verl 0.9.1, `compute_opo_outcome_advantage`.
    """
    lengths = jnp.sum(mask.astype(bool), -1).astype(rewards.dtype)
    scores = jaxppo.group_advantages(
        _outcome(rewards),
        group_ids=group_ids,
        weights=lengths,
        scale_by_std=False,
        singleton=1.0,
    )
    return _spread(scores, mask)


def remax(rewards: jax.Array, baselines: jax.Array, mask: jax.Array) -> jax.Array:
    """The rewards to come less the reward `(batch,)` of a greedy answer.

    verl 0.9.1, `compute_remax_outcome_advantage`.
    """
    returns = jaxppo.discounted_returns(rewards, 1.0, mask=mask)
    return jnp.where(mask, returns - baselines[:, None], 0)


def gpg_advantages(
    rewards: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    f_norm: ScalarLike = 1.0,
) -> jax.Array:
    """(R - mean) / f_norm, times batch / (rewards that are not 0).

    verl 0.9.1, `compute_gpg_outcome_advantage`.
    """
    nonzero = jnp.sum(_outcome(rewards) != 0).astype(rewards.dtype)
    alpha = rewards.shape[0] / jnp.maximum(nonzero, 1)
    return _spread(alpha * _centred(rewards, group_ids) / f_norm, mask)


def optimal_token_baseline(
    rewards: jax.Array,
    old_log_probs: jax.Array,
    sum_pi_squared: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    weights: jax.Array | None = None,
    turn_aligned: bool = False,
    zero_tail: bool = True,
) -> jaxppo.Advantages:
    """The rewards to come less the baseline of least variance for each token.

    verl 0.9.1, `compute_optimal_token_baseline_advantage`. Its tail, a number of
    tokens, is counted in places of the array, so that holes move it.
    """
    returns = jaxppo.discounted_returns(rewards, 1.0, mask=mask)
    baseline = jaxppo.optimal_token_baseline(
        returns,
        old_log_probs,
        sum_pi_squared,
        mask,
        group_ids=group_ids,
        weights=weights,
        turn_aligned=turn_aligned,
        zero_tail=zero_tail,
    )
    return jaxppo.Advantages(jnp.where(mask, returns - baseline, 0), returns)


def tir_optimal_token_baseline(
    rewards: jax.Array,
    old_log_probs: jax.Array,
    sum_pi_squared: jax.Array,
    mask: jax.Array,
    *,
    group_ids: jax.Array,
    weights: jax.Array | None = None,
    zero_tail: bool = True,
) -> jaxppo.Advantages:
    """`optimal_token_baseline` with places counted over the tokens written.

    verl 0.9.1, `compute_multi_turn_optimal_token_baseline_advantage`.
    """
    return optimal_token_baseline(
        rewards,
        old_log_probs,
        sum_pi_squared,
        mask,
        group_ids=group_ids,
        weights=weights,
        turn_aligned=True,
        zero_tail=zero_tail,
    )


def _outcome(rewards: jax.Array) -> jax.Array:
    return jnp.sum(rewards, -1)


def _centred(rewards: jax.Array, group_ids: jax.Array) -> jax.Array:
    return jaxppo.group_advantages(
        _outcome(rewards), group_ids=group_ids, scale_by_std=False, singleton=1.0
    )


def _spread(scores: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask, scores[:, None], 0)


def _whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(var + 1e-8), with ddof 1."""
    variance = jaxppo.masked_variance(x, mask, ddof=1)
    return jaxppo.centred(x, mask) / jnp.sqrt(variance + 1e-8)
