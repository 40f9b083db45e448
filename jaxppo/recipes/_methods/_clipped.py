"""Methods that clip the ratio, hard or softly."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

from ._metrics import clipped, moved, outside, report


def ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    clip_eps: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO, the policy alone: -min(r A, clip(r, 1 - eps, 1 + eps) A).

    Schulman et al., 2017 (arXiv:1707.06347). `jaxppo.ppo_loss` adds the critic, the
    entropy bonus and more.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps)
    return aggregate(loss, mask), clipped(x, advantages, mask, clip_eps, clip_eps)


def grpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    kl_coef: ScalarLike = 0.04,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GRPO: PPO's clip and a k3 penalty, each sequence weighing the same.

    Shao et al., 2024 (DeepSeekMath, arXiv:2402.03300), with `grpo_advantages`. The
    coefficient is the paper's; it does not state eps. The gradient of k3 is that of
    KL(ref || pi): `jaxppo.unbiased_gradient_kl` has the one that is meant.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    kl = jaxppo.kl_k3(jaxppo.log_ratio(log_probs, ref_log_probs, mask))
    loss = jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps) + kl_coef * kl
    metrics = clipped(x, advantages, mask, clip_eps, clip_eps) | report(mask, kl=kl)
    return aggregate(loss, mask), metrics


def dapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.28,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """DAPO: more room above than below ("clip-higher"), each token weighing the same.

    Yu et al., 2025 (arXiv:2503.14476): no KL term; `grpo_advantages` over groups that
    are `jaxppo.varied_groups`, rewards less `jaxppo.overlong_penalty`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    metrics = clipped(x, advantages, mask, clip_eps, clip_eps_high)
    return aggregate(loss, mask), metrics


def dr_grpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    max_length: ScalarLike,
    clip_eps: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Dr. GRPO: sums over tokens, divided by a constant: no bias from lengths.

    Liu et al., 2025 (arXiv:2503.20783): no KL term, and `grpo_advantages` without the
    standard deviation (`dr_grpo_advantages`). max_length is the generation's budget,
    3000 in the paper; it scales the loss only.
    """
    aggregate = functools.partial(jaxppo.sequence_sum, scale=1 / max_length)
    return ppo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        clip_eps=clip_eps,
        aggregate=aggregate,
    )


def gspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 3e-4,
    clip_eps_high: ScalarLike = 4e-4,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GSPO: clips the geometric mean of a sequence's ratios instead of each.

    Zheng et al., 2025 (arXiv:2507.18071, the widths from its section 5.1). With one
    advantage per sequence `gspo_token` is the same.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    s = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.clipped_surrogate(
        s, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    metrics = moved(x, mask) | outside(s, advantages, mask, clip_eps, clip_eps_high)
    return aggregate(loss, mask), metrics


def gspo_token(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 3e-4,
    clip_eps_high: ScalarLike = 4e-4,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GSPO for advantages that differ within a sequence: each token's own gradient.

    s_t = sg(s) pi / sg(pi) (Zheng et al., 2025, arXiv:2507.18071, section 4.3).
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    s = jaxppo.sequence_token_log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.clipped_surrogate(
        s, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    metrics = moved(x, mask) | outside(s, advantages, mask, clip_eps, clip_eps_high)
    return aggregate(loss, mask), metrics


def luspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 2e-3,
    clip_eps_high: ScalarLike = 2.5e-3,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """LUSPO: GSPO with each sequence's loss times its length.

    GSPO's mean over tokens makes each token of a long answer count less; the sum does
    not (Liu et al., 2026, arXiv:2602.05261, the widths from its section 5.1).
    """
    return gspo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        aggregate=jaxppo.sequence_sum,
    )


def gmpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.4,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GMPO: -A times the geometric mean of ratios clipped to [exp(-eps), exp(eps)].

    Zhao et al., 2025 (arXiv:2507.20673): the mean that outliers move least, each token
    clipped in log space on the side A points to.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.geometric_mean_surrogate(x, advantages, mask, clip_eps=clip_eps)
    metrics = clipped(
        x, advantages, mask, 1 - jnp.exp(jnp.negative(clip_eps)), jnp.expm1(clip_eps)
    )
    return jaxppo.sequence_mean(loss, mask), metrics


def sapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    temperature: ScalarLike = 1.0,
    temperature_negative: ScalarLike = 1.05,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """SAPO: a sigmoid of the ratio instead of the clip, tighter where A <= 0.

    Gao et al., 2025 (arXiv:2511.20347), each sequence weighing the same.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.soft_gated_surrogate(
        x,
        advantages,
        temperature=temperature,
        temperature_negative=temperature_negative,
    )
    return jaxppo.sequence_mean(loss, mask), moved(x, mask)


def vapo(
    log_probs: jax.Array,
    values: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    returns: jax.Array,
    correct: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.28,
    value_coef: ScalarLike = 1.0,
    nll_coef: ScalarLike = 0.1,
) -> tuple[dict[str, jaxppo.Mean], dict[str, jaxppo.Metric]]:
    """VAPO: DAPO's policy term, a critic, and imitation of the correct answers.

    Yue et al., 2025 (arXiv:2504.05118), with `vapo_advantages`. `correct` is bool,
    `(batch, 1)`. Three means of three denominators, as the imitation's is the count of
    the correct answers' tokens: a dict, whose values `jaxppo.learner` adds.
    """
    loss, metrics = dapo(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
    )
    value = jaxppo.token_mean(jaxppo.squared_value(values, returns, mask), mask)
    nll = jaxppo.token_mean(-log_probs, mask.astype(bool) & correct)
    losses = {"policy_loss": loss, "value_loss": value, "nll": nll}
    metrics |= jax.lax.stop_gradient(losses)
    return losses | {"value_loss": value * value_coef, "nll": nll * nll_coef}, metrics


def reinforce_pp(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """REINFORCE++: PPO without a critic, on `reinforce_pp_advantages`.

    Hu, 2025 (arXiv:2501.03262): one sample per prompt, the KL penalty in the reward,
    the advantages normalised over the whole batch.
    """
    return ppo(log_probs, old_log_probs, advantages, mask, clip_eps=clip_eps)


def reinforce_pp_baseline(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    kl_coef: ScalarLike = 1e-4,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """REINFORCE++-baseline: the same with a k2 penalty in the loss.

    Hu, 2025 (arXiv:2501.03262), on `reinforce_pp_baseline_advantages`: the group's mean
    is the baseline, the batch's standard deviation the scale. k2 has KL(pi || ref)'s
    gradient. The coefficient is of OpenRLHF's ProRL v2 script.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    kl = jaxppo.kl_k2(jaxppo.log_ratio(log_probs, ref_log_probs, mask))
    loss = jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps) + kl_coef * kl
    metrics = clipped(x, advantages, mask, clip_eps, clip_eps) | report(mask, kl=kl)
    return jaxppo.token_mean(loss, mask), metrics
