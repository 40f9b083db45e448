"""Weights and masks against a sampler that is not the trainer's policy.

Tokens whose sampler log-prob is NaN (vLLM could not score them) are not corrected.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def token_truncate(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.0,
    high: ScalarLike = 3.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's weight pi_old / pi_rollout, held in [low, high].

    TRL 1.16.0, grpo_trainer.py, `vllm_importance_sampling_mode="token_truncate"`.
    """
    x, known = _drift(old_log_probs, rollout_log_probs, mask)
    weights = jaxppo.truncated_weights(x, cap=high, floor=low)
    return weights, _metrics(weights, mask, x, known)


def token_mask(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.0,
    high: ScalarLike = 3.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's weight, 0 outside [low, high].

    TRL 1.16.0, grpo_trainer.py, `vllm_importance_sampling_mode="token_mask"`. With its
    default bounds no ratio is too small: IcePop has [0.5, 5].
    """
    x, known = _drift(old_log_probs, rollout_log_probs, mask)
    weights = jaxppo.band_weights(x, low=low, high=high)
    return weights, _metrics(weights, mask, x, known)


def sequence_truncate(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.0,
    high: ScalarLike = 3.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each sequence's weight, the product of its tokens', held in [low, high].

    TRL 1.16.0, grpo_trainer.py, `vllm_importance_sampling_mode="sequence_truncate"`;
    `(batch, 1)`. Fault: the product's spread grows with the length. Use
    `jaxppo.sequence_log_ratio`'s weights instead.
    """
    x, known = _drift(old_log_probs, rollout_log_probs, mask)
    weights = jaxppo.truncated_weights(
        jnp.sum(x, -1, keepdims=True), cap=high, floor=low
    )
    return weights, _metrics(weights, jnp.ones_like(weights, bool), x, known)


def sequence_mask(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.0,
    high: ScalarLike = 3.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each sequence's weight, the product of its tokens', 0 outside [low, high].

    TRL 1.16.0, grpo_trainer.py, `vllm_importance_sampling_mode="sequence_mask"`, its
    default; `(batch, 1)`. Fault: as for `sequence_truncate`.
    """
    x, known = _drift(old_log_probs, rollout_log_probs, mask)
    weights = jaxppo.band_weights(jnp.sum(x, -1, keepdims=True), low=low, high=high)
    return weights, _metrics(weights, jnp.ones_like(weights, bool), x, known)


def off_policy_mask(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    threshold: ScalarLike,
) -> jax.Array:
    """False where A < 0 and the mean of log pi_rollout - log pi is above `threshold`.

    TRL 1.16.0, grpo_trainer.py, `get_off_policy_mask` (DeepSeek-V3.2's OPSM), off by
    default; of pi_old where there are no log-probs of the sampler.
    """
    x, _ = _drift(jax.lax.stop_gradient(log_probs), rollout_log_probs, mask)
    return jaxppo.off_policy_sequence_mask(x, advantages, mask, threshold=threshold)


def _drift(
    log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The log-ratio, 0 where the sampler's is not known, and where it is."""
    known = mask.astype(bool) & ~jnp.isnan(rollout_log_probs)
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, known, max_abs=math.inf)
    return x, known


def _metrics(
    weights: jax.Array, mask: jax.Array, x: jax.Array, known: jax.Array
) -> dict[str, jaxppo.Metric]:
    distance = jnp.abs(x)
    metrics: dict[str, jaxppo.Metric] = {
        "sampling/sampling_logp_difference/mean": jaxppo.token_mean(distance, known),
        "sampling/sampling_logp_difference/max": jaxppo.Max(jnp.max(distance)),
        "sampling/importance_sampling_ratio/min": jaxppo.Min(
            -jaxppo.masked_max(-weights, mask)
        ),
        "sampling/importance_sampling_ratio/mean": jaxppo.token_mean(weights, mask),
        "sampling/importance_sampling_ratio/max": jaxppo.Max(
            jaxppo.masked_max(weights, mask)
        ),
    }
    return jax.lax.stop_gradient(metrics)
