"""The methods' advantages, where they have their own."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def grpo_advantages(
    rewards: jax.Array,
    *,
    group_size: int | None = None,
    group_ids: jax.Array | None = None,
) -> jax.Array:
    """GRPO: (r - mean) / (std + 1e-6) among a prompt's samples.

    Shao et al., 2024 (arXiv:2402.03300). One per sample; `[:, None]` for the losses.
    """
    return jaxppo.group_advantages(rewards, group_size=group_size, group_ids=group_ids)


def dr_grpo_advantages(
    rewards: jax.Array,
    *,
    group_size: int | None = None,
    group_ids: jax.Array | None = None,
) -> jax.Array:
    """Dr. GRPO: r less the mean of the prompt's samples, of no particular scale.

    Liu et al., 2025 (arXiv:2503.20783).
    """
    return jaxppo.group_advantages(
        rewards, group_size=group_size, group_ids=group_ids, scale_by_std=False
    )


def rloo_advantages(
    rewards: jax.Array,
    *,
    group_size: int | None = None,
    group_ids: jax.Array | None = None,
) -> jax.Array:
    """RLOO: r less the mean of the prompt's other samples.

    Ahmadian et al., 2024 (arXiv:2402.14740). The rewards are less kl_coef times the
    sequence's log pi - log pi_ref.
    """
    return jaxppo.leave_one_out_advantages(
        rewards, group_size=group_size, group_ids=group_ids
    )


def opo_advantages(
    rewards: jax.Array,
    lengths: jax.Array,
    *,
    group_size: int | None = None,
    group_ids: jax.Array | None = None,
) -> jax.Array:
    """OPO: r less the group's mean weighted by length, the baseline of least variance.

    Hao et al., 2025 (arXiv:2505.23585), for `reinforce` with one update per batch.
    """
    return jaxppo.group_advantages(
        rewards,
        group_size=group_size,
        group_ids=group_ids,
        weights=lengths.astype(rewards.dtype),
        scale_by_std=False,
    )


def gpg_advantages(
    rewards: jax.Array,
    *,
    group_size: int | None = None,
    group_ids: jax.Array | None = None,
) -> jax.Array:
    """GPG: r less the group's mean, scaled up for groups that teach nothing.

    Times n / (samples whose group's rewards are not all equal): those of equal rewards
    are in the loss's denominator only (Chu et al., 2025, arXiv:2504.02546). verl's
    `gpg` counts samples with rewards other than 0 instead.
    """
    varied = jaxppo.varied_groups(rewards, group_size=group_size, group_ids=group_ids)
    centred = dr_grpo_advantages(rewards, group_size=group_size, group_ids=group_ids)
    count = jnp.maximum(jnp.sum(varied, -1, keepdims=True, dtype=jnp.int32), 1)
    return centred * (varied.shape[-1] / count.astype(centred.dtype))


def maxrl_advantages(
    rewards: jax.Array,
    *,
    group_size: int | None = None,
    group_ids: jax.Array | None = None,
    eps: ScalarLike = 1e-6,
) -> jax.Array:
    """MaxRL: (r - mean) / (mean + eps) within the group: the rarer a success, the more.

    For rewards of 0 and 1 the gradient is that of log p(success), estimated from the
    group (Tajwar et al., 2026, arXiv:2602.02710).
    """
    centred = jaxppo.group_advantages(
        rewards, group_size=group_size, group_ids=group_ids, scale_by_std=False
    )
    return centred / (rewards.astype(centred.dtype) - centred + eps)


def gdpo_advantages(
    rewards: jax.Array,
    *,
    group_size: int | None = None,
    group_ids: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """GDPO: GRPO's advantage of each reward on its own, added up, and whitened.

    rewards are `(kinds, n)`: a reward that is small or rare keeps its voice (Liu et
    al., 2026, arXiv:2601.05242). weights, `(kinds,)`, are 1 by default.
    """

    def of_one(rewards: jax.Array) -> jax.Array:
        return grpo_advantages(rewards, group_size=group_size, group_ids=group_ids)

    each = jax.vmap(of_one)(rewards)
    if weights is not None:
        each = each * weights[:, None]
    return jaxppo.whiten(jnp.sum(each, 0), ddof=1, eps=1e-6)


def vapo_advantages(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    alpha: ScalarLike = 0.05,
) -> jaxppo.Advantages:
    """VAPO: GAE with a lambda that grows with the length; returns with lambda = 1.

    lambda = 1 - 1 / (alpha length), gamma = 1 (Yue et al., 2025, arXiv:2504.05118). The
    rewards are per token; with one at the end, the returns are that one.
    """
    lambda_ = jaxppo.length_adaptive_lambda(mask, alpha=alpha)
    policy = jaxppo.gae(rewards, values, 1.0, lambda_=lambda_, mask=mask)
    critic = jaxppo.gae(rewards, values, 1.0, lambda_=1.0, mask=mask)
    return jaxppo.Advantages(policy.advantages, critic.returns)


def reinforce_pp_advantages(
    rewards: jax.Array, mask: jax.Array, *, gamma: ScalarLike = 1.0
) -> jax.Array:
    """REINFORCE++: the rewards to come of each token, whitened over the batch.

    Hu, 2025 (arXiv:2501.03262). The rewards are per token: the outcome at the last,
    less kl_coef (log pi - log pi_ref) at each.
    """
    returns = jaxppo.discounted_returns(rewards, gamma, mask=mask)
    return jaxppo.whiten(returns, mask)


def reinforce_pp_baseline_advantages(
    rewards: jax.Array,
    mask: jax.Array,
    *,
    group_size: int | None = None,
    group_ids: jax.Array | None = None,
) -> jax.Array:
    """REINFORCE++-baseline: r less the group's mean, whitened over the batch's tokens.

    Hu, 2025 (arXiv:2501.03262): the scale is the whole batch's, not a group's of few.
    """
    centred = dr_grpo_advantages(rewards, group_size=group_size, group_ids=group_ids)
    return jaxppo.whiten(jnp.broadcast_to(centred[:, None], mask.shape), mask)


def remax_advantages(rewards: jax.Array, greedy_rewards: jax.Array) -> jax.Array:
    """ReMax: the sampled answer's reward less the greedy answer's to the same prompt.

    Li et al., 2023 (arXiv:2310.10505), for `reinforce` of whole answers: `rloo`.
    """
    return rewards - greedy_rewards


def ema_baseline(
    baseline: jax.Array,
    rewards: jax.Array,
    mask: jax.Array | None = None,
    *,
    decay: ScalarLike = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """r less a running mean of rewards, and the running mean, to be carried on.

    Role-conditioned advantage estimation (Liu et al., 2025, SPIRAL, arXiv:2506.24119):
    call it with one baseline, and mask of samples, per game and role. The mean is
    updated first; a batch without a sample leaves it.
    """
    mean = jaxppo.masked_mean(rewards, mask)
    some = jaxppo.masked_sum(jnp.ones_like(rewards), mask) > 0
    updated = decay * baseline + (1 - decay) * mean
    baseline = jnp.where(some, updated, baseline)
    keep = True if mask is None else mask
    return jnp.where(keep, rewards - baseline, 0), baseline
