"""Methods for data of another policy: inference engines, stale samplers."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

from ._metrics import clipped, moved, report


def decoupled_ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array | None = None,
    *,
    clip_eps: ScalarLike = 0.2,
    cap: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Decoupled PPO: clips pi / pi_prox, and weighs by pi_prox / pi_rollout.

    Hilton et al., 2021 (arXiv:2110.00641); old_log_probs are the proximal policy's: the
    trainer's before the update, or an average of its past. The weight is constant here;
    `cap` holds it (AReaL: 5, PPO-EWMA's code: 100).
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    drift = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)
    weights = jaxppo.truncated_weights(drift, cap=cap)
    loss = weights * jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps)
    metrics = clipped(x, advantages, mask, clip_eps, clip_eps)
    return jaxppo.token_mean(loss, mask), metrics | report(mask, weight=weights)


def tis(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    cap: ScalarLike = 2.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Truncated importance sampling: PPO times min(pi_old / pi_rollout, cap).

    For an inference engine whose log-probs are not the trainer's (Yao et al., 2025,
    "Your efficient RL framework secretly brings you off-policy RL training").
    """
    return decoupled_ppo(
        log_probs,
        old_log_probs,
        advantages,
        rollout_log_probs,
        mask,
        clip_eps=clip_eps,
        cap=cap,
    )


def icepop(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    low: ScalarLike = 0.5,
    high: ScalarLike = 5.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """IcePop: PPO times pi_old / pi_rollout, and 0 where that is out of [low, high].

    Ling team, 2025 (arXiv:2510.18855, with its bounds). Dropped tokens stay in the
    denominator.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    drift = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)
    weights = jaxppo.band_weights(drift, low=low, high=high)
    loss = weights * jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps)
    metrics = report(mask, weight=weights, kept_fraction=(weights > 0).astype(x.dtype))
    metrics |= clipped(x, advantages, mask, clip_eps, clip_eps)
    return jaxppo.token_mean(loss, mask), metrics


def sequence_masked_tis(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    low: ScalarLike = 0.999,
    high: ScalarLike = 1.002,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO times pi_old / pi_rollout in the sequences whose mean ratio is in a band.

    The geometric mean of a sequence's ratios decides on all of it; the tokens kept have
    their own weights (NeMo-RL's `seq-mask-tis`, with its bounds). Dropped sequences
    stay in the denominator.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    drift = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)
    mean = jaxppo.sequence_log_ratio(old_log_probs, rollout_log_probs, mask)
    keep = jaxppo.rejection_mask(jnp.exp(mean), mask, low=low, high=high)
    weights = jnp.where(keep, jaxppo.truncated_weights(drift, cap=math.inf), 0)
    loss = weights * jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps)
    metrics = report(mask, weight=weights, kept_fraction=keep.astype(x.dtype))
    metrics |= clipped(x, advantages, mask, clip_eps, clip_eps)
    return jaxppo.token_mean(loss, mask), metrics


def m2po(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    threshold: ScalarLike = 0.04,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """M2PO: -r A without the largest log-ratios, until their mean square is small.

    Zheng et al., 2025 (arXiv:2510.01161), for samples that are many updates old. No
    clip; dropped tokens stay in the denominator, as in the paper's formula (AReaL takes
    them out, clips what is left, and reads the moment off pi_old / pi_rollout).
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    keep = jaxppo.second_moment_mask(x, mask, threshold=threshold)
    loss = jnp.where(keep, jaxppo.unclipped_surrogate(x, advantages), 0)
    metrics = moved(x, mask) | report(mask, kept_fraction=keep.astype(x.dtype))
    return jaxppo.token_mean(loss, mask), metrics


def opsm(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    threshold: ScalarLike,
    clip_eps: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GRPO's clip without the bad sequences the policy would hardly write any more.

    Off-policy sequence masking: out where A < 0 and mean_t log(pi_rollout / pi) is
    above the threshold, which the paper (DeepSeek-V3.2, 2025, arXiv:2512.02556) does
    not publish; slime's default is 1e-4. What is out stays in the denominator.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    drift = jaxppo.log_ratio(log_probs, rollout_log_probs, mask)
    keep = jaxppo.off_policy_sequence_mask(drift, advantages, mask, threshold=threshold)
    loss = jaxppo.clipped_surrogate(x, advantages, clip_eps=clip_eps)
    metrics = report(mask, kept_fraction=keep.astype(x.dtype))
    metrics |= clipped(x, advantages, mask, clip_eps, clip_eps)
    return jaxppo.sequence_mean(jnp.where(keep, loss, 0), mask), metrics
