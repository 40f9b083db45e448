"""Weights for `ppo` that correct for the sampler."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def clip_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.5,
    high: ScalarLike = 5.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Truncated importance weights of tokens, for `ppo`: clip(r, low, high).

    OpenRLHF 0.11.2, loss.py `PolicyLoss`: level "token", mode "clip" (TIS). r = pi_old
    / pi_rollout, without a guard.
    """
    x = _drift(old_log_probs, rollout_log_probs, mask)
    held = jaxppo.truncated_weights(x, cap=high, floor=low)
    inside = mask.astype(bool) & (jnp.exp(x) >= low) & (jnp.exp(x) <= high)
    return held, _rollout_metrics(x, inside, mask)


def mask_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.5,
    high: ScalarLike = 5.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Importance weights of tokens, 0 outside [low, high], for `ppo`.

    OpenRLHF 0.11.2, loss.py `PolicyLoss`: level "token", mode "mask" (IcePop).
    """
    x = _drift(old_log_probs, rollout_log_probs, mask)
    inside = mask.astype(bool) & (jnp.exp(x) >= low) & (jnp.exp(x) <= high)
    return jnp.where(inside, jnp.exp(x), 0), _rollout_metrics(x, inside, mask)


def sequence_mask_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.5,
    high: ScalarLike = 5.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's own weight, in sequences whose geometric mean is in [low, high].

    OpenRLHF 0.11.2, loss.py `PolicyLoss`: level "seq", mode "mask". "seq" is the
    geometric mean of a sequence's ratios, not their product as in verl and TRL.
    """
    x = _drift(old_log_probs, rollout_log_probs, mask)
    ratio = jnp.exp(jaxppo.masked_mean(x, mask, axis=-1, keepdims=True))
    inside = mask.astype(bool) & (ratio >= low) & (ratio <= high)
    return jnp.where(inside, jnp.exp(x), 0), _rollout_metrics_by_row(x, inside, mask)


def divergence_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    high: ScalarLike,
    divergence: Callable[..., jax.Array] = jaxppo.binary_kl,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Importance weights of tokens on which sampler and trainer differ by <= `high`.

    OpenRLHF 0.11.2, loss.py `PolicyLoss`: level "token", gating "binary_kl" or "tv"
    (`divergence=jaxppo.binary_tv`). Of KL(Bernoulli(pi_rollout) || Bernoulli(pi_old))
    at the sampled token, with probabilities in [1e-6, 1 - 1e-6]. Fault: a threshold
    given alone has 0 as its lower bound there; where the two all but agree, KL rounds
    to less for up to a third of the tokens, which are rejected. Here there is none.
    """
    x = _drift(old_log_probs, rollout_log_probs, mask)
    distance = _distance(divergence, old_log_probs, rollout_log_probs, mask)
    inside = mask.astype(bool) & (distance <= high)
    return jnp.where(inside, jnp.exp(x), 0), _rollout_metrics(x, inside, mask)


def sequence_divergence_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    high: ScalarLike,
    divergence: Callable[..., jax.Array] = jaxppo.binary_kl,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's own weight, in sequences of a mean divergence of at most `high`.

    OpenRLHF 0.11.2, loss.py `PolicyLoss`: level "seq", gating "binary_kl" (the trust
    region of FlashREINFORCE) or "tv". Fault: as in `divergence_weights`.
    """
    x = _drift(old_log_probs, rollout_log_probs, mask)
    distance = _distance(divergence, old_log_probs, rollout_log_probs, mask)
    distance = jaxppo.masked_mean(distance, mask, axis=-1, keepdims=True)
    inside = mask.astype(bool) & (distance <= high)
    return jnp.where(inside, jnp.exp(x), 0), _rollout_metrics_by_row(x, inside, mask)


def _drift(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """From the sampler to the trainer, constant and without a guard."""
    old_log_probs = jax.lax.stop_gradient(old_log_probs)
    return jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)


def _distance(
    divergence: Callable[..., jax.Array],
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """Of probabilities held in [1e-6, 1 - 1e-6]."""
    low, high = math.log(1e-6), math.log1p(-1e-6)
    old, rollout = (jnp.clip(x, low, high) for x in (old_log_probs, rollout_log_probs))
    return divergence(old, rollout, mask)


def _rollout_metrics(
    x: jax.Array, inside: jax.Array, mask: jax.Array
) -> dict[str, jaxppo.Metric]:
    """How far the sampler is, and the share of tokens that were clipped or rejected."""
    return {
        "vllm_kl": jaxppo.token_mean(-x, mask),
        "is_filter_ratio": jaxppo.token_mean((~inside).astype(x.dtype), mask),
    }


def _rollout_metrics_by_row(
    x: jax.Array, inside: jax.Array, mask: jax.Array
) -> dict[str, jaxppo.Metric]:
    """The same of sequences. A row without a token counts as rejected, as there."""
    rejected = ~jnp.any(inside, -1)
    return {
        "vllm_kl": jaxppo.token_mean(-x, mask),
        "is_filter_ratio": jaxppo.token_mean(rejected.astype(x.dtype)),
    }
