"""Methods that weigh the policy gradient instead of clipping the ratio."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

from ._metrics import clipped, moved, report


def reinforce(
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None = None,
    *,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """REINFORCE: -A log pi (Williams, 1992), on policy: one update per batch."""
    loss = aggregate(jaxppo.policy_gradient(log_probs, advantages, mask), mask)
    return loss, report(mask, log_prob=log_probs)


def rloo(
    log_probs: jax.Array, advantages: jax.Array, mask: jax.Array
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """RLOO: REINFORCE of whole answers, -A log pi(y|x), on `rloo_advantages`.

    Ahmadian et al., 2024 (arXiv:2402.14740): an answer is one action, so its tokens'
    log-probs are summed. The KL penalty is in the reward.
    """
    return reinforce(log_probs, advantages, mask, aggregate=jaxppo.sequence_sum)


def gpg(
    log_probs: jax.Array, advantages: jax.Array, mask: jax.Array
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GPG: the policy gradient with nothing added, on `gpg_advantages`.

    Chu et al., 2025 (arXiv:2504.02546): no ratio, clip, KL term or critic.
    """
    return reinforce(log_probs, advantages, mask)


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.0,
    high: ScalarLike = 5.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """CISPO: -sg(clip(r, low, high)) A log pi: no token loses its gradient.

    MiniMax, 2025 (arXiv:2506.13585), which clips above only and does not publish the
    bound; 5 is ScaleRL's (Khatri et al., 2025, arXiv:2510.13786).
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=low, high=high)
    ratio = jnp.exp(x)
    held = ((ratio < low) | (ratio > high)).astype(x.dtype)
    weights = jaxppo.truncated_weights(x, cap=high, floor=low)
    more = report(mask, weight=weights, clip_fraction=held)
    return jaxppo.token_mean(loss, mask), moved(x, mask) | more


def topr(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    cap: ScalarLike = 1.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """TOPR: good answers as in imitation, bad ones by their truncated ratio.

    Le Roux et al., 2025 (arXiv:2503.14286): the ratio of whole answers, held in
    [0, cap], weighs those with A <= 0; the others have weight 1.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    s = jaxppo.trajectory_log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.topr(log_probs, s, advantages, mask, cap=cap)
    return jaxppo.sequence_sum(loss, mask), moved(x, mask)


def vespo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    k: ScalarLike = 2.0,
    lambda_: ScalarLike = 3.0,
    k_negative: ScalarLike = 3.0,
    lambda_negative: ScalarLike = 2.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """VESPO: -w^k exp(lambda (1 - w)) A log pi, w the product ratio of the answer.

    arXiv:2602.10693, its defaults as in TRL, each token weighing the same.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    weights = jaxppo.vespo_weights(
        x,
        advantages,
        mask,
        k=k,
        lambda_=lambda_,
        k_negative=k_negative,
        lambda_negative=lambda_negative,
    )
    loss = jaxppo.policy_gradient(log_probs, advantages, mask) * weights
    metrics = report(mask, weight=jnp.broadcast_to(weights, x.shape))
    return jaxppo.token_mean(loss, mask), moved(x, mask) | metrics


def dro(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: ScalarLike = 1.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """DRO: -A log pi(y|x) + (beta / 2) (log pi(y|x) / pi_ref(y|x))^2, whole answers.

    Richemond et al., 2024 (arXiv:2405.19107), for offline data; A = r - V, the critic's
    own loss being `jaxppo.squared_value`. verl's `dro` and ROLL's `kimi15` take the
    square per token, which penalises less what the tokens of an answer have in common.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask)
    # Without a bound, as nothing is exponentiated: else long answers lose the penalty.
    s = jaxppo.trajectory_log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    terms = jaxppo.policy_gradient(log_probs, advantages, mask)
    answer = jaxppo.masked_sum(terms, mask, axis=-1, keepdims=True)
    loss = jnp.broadcast_to(answer, s.shape) + kl_coef * jaxppo.kl_k2(s)
    return jaxppo.sequence_mean(loss, mask), moved(x, mask)


def kimi(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: ScalarLike = 0.1,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Kimi k1.5's policy mirror descent: `dro` against the last iteration's policy.

    Kimi team, 2025 (arXiv:2501.12599), on `dr_grpo_advantages`, r less the group's
    mean. The paper does not publish tau; 0.1 is ROLL's.
    """
    return dro(log_probs, old_log_probs, advantages, mask, kl_coef=kl_coef)


def luffy(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    off_policy: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    gamma: ScalarLike = 0.1,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """LUFFY: PPO on the policy's own answers, -A pi / (pi + gamma) on another's.

    Yan et al., 2025 (arXiv:2504.14945). `off_policy` is bool, `(batch, time)` or
    `(batch, 1)`; old_log_probs are not looked at there. Divided by all tokens.
    """
    mask = mask.astype(bool)
    own, other = mask & ~off_policy, mask & off_policy
    x = jaxppo.log_ratio(log_probs, old_log_probs, own)
    loss = jnp.where(
        other,
        jaxppo.shaped_off_policy(log_probs, advantages, other, gamma=gamma),
        jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps),
    )
    metrics = clipped(x, advantages, own, clip_eps, clip_eps)
    return jaxppo.token_mean(loss, mask), metrics


def sft(
    log_probs: jax.Array,
    mask: jax.Array,
    *,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Supervised fine-tuning: -log pi of the tokens that count."""
    return aggregate(-log_probs, mask), report(mask, log_prob=log_probs)


def on_policy_distillation(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    teacher_log_probs: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: ScalarLike = 1.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """On-policy distillation: -r A, where A = -(log pi_old - log pi_teacher) per token.

    The student's own samples, graded by a teacher's log-probs: the policy gradient of
    KL(student || teacher), token by token (Agarwal et al., 2023, arXiv:2306.13649; Lu
    and Thinking Machines, 2025). The teacher is evaluated on the student's samples.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    kl = jaxppo.kl_k1(jaxppo.log_ratio(old_log_probs, teacher_log_probs, mask))
    loss = jaxppo.unclipped_surrogate(x, -kl * kl_coef)
    return jaxppo.token_mean(loss, mask), moved(x, mask) | report(mask, kl=kl)
