"""Losses that weigh, and do not clip."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

from ._common import row_mean


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps_high: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-sg(min(r, high)) A log pi, the mean over tokens.

    TRL 1.16.0, grpo_trainer.py, `loss_type="cispo"`. `clip_eps_high` is the largest
    weight itself, not a distance from 1. Fault: it falls back to `epsilon`, 0.2, at
    which all but the rarest ratios weigh 0.2. Use 5.0 instead, as TRL's documentation
    does.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token = jaxppo.cispo(log_probs, x, advantages, mask, high=clip_eps_high)
    clipped = ((jnp.exp(x) > clip_eps_high) & (advantages > 0)).astype(x.dtype)
    metrics: dict[str, jaxppo.Metric] = {
        "cispo_clip_ratio": jaxppo.token_mean(clipped, mask)
    }
    return jaxppo.token_mean(per_token * weights, mask), jax.lax.stop_gradient(metrics)


def sapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    temperature: ScalarLike = 1.0,
    temperature_negative: ScalarLike = 1.05,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """A sigmoid gate in place of the clip, the mean over all rows of their means.

    TRL 1.16.0, grpo_trainer.py, `loss_type="sapo"`. It logs nothing of its own.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    per_token = jaxppo.soft_gated_surrogate(
        x,
        advantages,
        temperature=temperature,
        temperature_negative=temperature_negative,
    )
    return row_mean(per_token * weights, mask), {}


def vespo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    importance_weights: jax.Array | float = 1.0,
    weights: jax.Array | float = 1.0,
    k: ScalarLike = 2.0,
    lambda_: ScalarLike = 3.0,
    k_negative: ScalarLike = 3.0,
    lambda_negative: ScalarLike = 2.0,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-phi A log pi with phi = w^k exp(lambda (1 - w)), the mean over tokens.

    TRL 1.16.0, grpo_trainer.py, `loss_type="vespo"` and `get_gamma_weights`. w is the
    whole sequence's ratio: tokens within 20 nats, their sum in [log 1e-8, 20].
    `importance_weights`, from `token_truncate` or `token_mask`, go into w, each in
    [1e-8, e^20]: one token that `token_mask` drops as good as drops its sequence.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    correction = jnp.clip(jnp.log(importance_weights), math.log(1e-8), 20.0)
    phi = jaxppo.vespo_weights(
        x + correction,
        advantages,
        mask,
        k=k,
        lambda_=jnp.maximum(lambda_, 1e-4),
        k_negative=k_negative,
        lambda_negative=jnp.maximum(lambda_negative, 1e-4),
    )
    per_token = phi * jaxppo.policy_gradient(log_probs, advantages, mask)
    every_row = jnp.where(jnp.any(mask, -1, keepdims=True), phi, 1)
    metrics: dict[str, jaxppo.Metric] = {
        "vespo/phi_seq_mean": jaxppo.token_mean(every_row)
    }
    return jaxppo.token_mean(per_token * weights, mask), jax.lax.stop_gradient(metrics)
