"""The policy losses."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip per token; decoupled PPO with weights, 0 for what is rejected.

    AReaL 1.0.4, functional.py `ppo_actor_loss_fn`; `dual_clip` is its `c_clip`, off by
    default. Metrics are means over the mask, rejected tokens included, of which
    `importance_weight` and `actor_loss` are 0. `approx_kl` is log pi - log pi_old,
    whose sign is the wrong one on samples of pi_old: use `jaxppo.approx_kl_k1` instead.
    """
    kept = mask if weights is None else mask.astype(bool) & (weights > 0)
    x = jaxppo.log_ratio(log_probs, old_log_probs, kept, max_abs=math.inf)
    drift = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    bounds = (clip_eps, clip_eps_high, dual_clip)
    return _clipped(x, drift, advantages, mask, kept, weights, bounds)


def sequence_ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GSPO's ratio of sequences, with the mean of their advantages, a mean over tokens.

    AReaL 1.0.4, functional.py `ppo_actor_loss_fn`, level "sequence". Ratio and
    advantage are means over the tokens that are not rejected. The widths are PPO's:
    GSPO's paper has 3e-4 and 4e-4. Fault: a mean over tokens weighs sequences by their
    length, which GSPO does not. Use `jaxppo.sequence_mean` instead.
    """
    kept = mask if weights is None else mask.astype(bool) & (weights > 0)
    x = jaxppo.sequence_log_ratio(log_probs, old_log_probs, kept, max_abs=math.inf)
    drift = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    bounds = (clip_eps, clip_eps_high, dual_clip)
    advantages = _sequence_advantages(advantages, kept)
    return _clipped(x, drift, advantages, mask, kept, weights, bounds)


def sapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    temperature: ScalarLike = 1.0,
    temperature_negative: ScalarLike = 1.05,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """SAPO's soft gate per token: -(4 / tau) sigmoid(tau (r - 1)) A.

    AReaL 1.0.4, functional.py `sapo_loss_fn`: a mean over tokens, where SAPO's paper
    and verl have one over sequences. It takes no weights: not for decoupled PPO.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    return _gated(x, x, advantages, mask, temperature, temperature_negative)


def sequence_sapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    temperature: ScalarLike = 1.0,
    temperature_negative: ScalarLike = 1.05,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """SAPO's gate on the ratio of sequences, with the mean of their advantages.

    AReaL 1.0.4, functional.py `sapo_loss_fn`, level "sequence".
    """
    x = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    drift = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    advantages = _sequence_advantages(advantages, mask)
    return _gated(x, drift, advantages, mask, temperature, temperature_negative)


def loglinear_log_probs(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    versions: jax.Array,
    *,
    version: int | jax.Array,
) -> jax.Array:
    """`old_log_probs` without a forward pass: between the sampler's and the current.

    log mu + alpha (log pi - log mu), alpha = (age - 1) / age, where age is how many
    updates before `version`, the current one, a token was sampled; 0 for tokens of no
    age, and for prompts, whose version is negative. AReaL 1.0.4, actor.py
    `compute_prox_logp_approximations`, "loglinear".
    """
    age = version - versions
    alpha = (age - 1) / jnp.maximum(age, 1)
    x = -jaxppo.log_ratio(rollout_log_probs, log_probs, max_abs=math.inf)
    alpha = jnp.where((age > 0) & (versions >= 0), alpha, 0).astype(x.dtype)
    return jax.lax.stop_gradient(rollout_log_probs.astype(x.dtype) + alpha * x)


def m2po_mask(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    threshold: ScalarLike,
) -> jax.Array:
    """M2PO: without the tokens the two differ most on, until the mean square is small.

    AReaL 1.0.4, actor.py `_apply_m2po_masking`, off by default; at least one token is
    kept. AReaL gives it to `ppo` as the mask, so that it shrinks the denominator.
    Fault: AReaL chooses, and divides by what is left, in each microbatch, then weighs
    microbatches by all their tokens. Choose for a batch at once instead.
    """
    old_log_probs = jax.lax.stop_gradient(old_log_probs)
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    return jaxppo.second_moment_mask(x, mask, threshold=threshold)


def _clipped(
    x: jax.Array,
    drift: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    kept: jax.Array,
    weights: jax.Array | None,
    bounds: tuple[ScalarLike, ScalarLike | None, ScalarLike],
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    low, high, dual_clip = bounds
    high = low if high is None else high
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=low, clip_eps_high=high, dual_clip=dual_clip
    )
    if weights is not None:
        loss = loss * jax.lax.stop_gradient(weights)
    loss = jaxppo.token_mean(loss, mask)
    clipped = jaxppo.clip_fraction_lower(x, advantages, clip_eps=low)
    clipped = clipped + jaxppo.clip_fraction_upper(x, advantages, clip_eps=high)
    dual = ((jnp.exp(x) > dual_clip) & (advantages < 0)).astype(x.dtype)
    per_token = {
        "importance_weight": jnp.where(kept, jnp.exp(x), 0),
        "approx_kl": drift,
        "clip_ratio": clipped,
        "dual_clip_ratio": dual,
    }
    return loss, _means(per_token, loss, mask)


def _gated(
    x: jax.Array,
    drift: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    temperature: ScalarLike,
    temperature_negative: ScalarLike,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    def gate(advantages: jax.Array) -> jax.Array:
        return jaxppo.soft_gated_surrogate(
            x,
            advantages,
            temperature=temperature,
            temperature_negative=temperature_negative,
        )

    loss = jaxppo.token_mean(gate(advantages), mask)
    rising, falling = -gate(jnp.ones_like(x)), gate(-jnp.ones_like(x))
    per_token = {
        "importance_weight": jnp.exp(x),
        "approx_kl": drift,
        "clip_ratio": jnp.zeros_like(x),
        "dual_clip_ratio": jnp.zeros_like(x),
        "sapo_soft_gate": jnp.where(advantages > 0, rising, falling),
        "sapo_scaled_gate_pos": rising,
        "sapo_scaled_gate_neg": falling,
    }
    return loss, _means(per_token, loss, mask)


def _means(
    per_token: dict[str, jax.Array], loss: jaxppo.Mean, mask: jax.Array
) -> dict[str, jaxppo.Metric]:
    metrics: dict[str, jaxppo.Metric] = {"actor_loss": loss}
    metrics |= {name: jaxppo.token_mean(x, mask) for name, x in per_token.items()}
    return jax.lax.stop_gradient(metrics)


def _sequence_advantages(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over each sequence, `(batch, 1)`."""
    advantages = jnp.broadcast_to(advantages, mask.shape)
    return jaxppo.masked_mean(advantages, mask, axis=-1, keepdims=True)
