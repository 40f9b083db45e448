"""The policy losses and the critic's."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

row_mean = jaxppo.all_rows(jaxppo.sequence_mean)  # slime's `sum_of_sample_mean`


def ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip, times weights that correct for the sampler, if there are any.

    slime 624b824a, ppo_utils.py `compute_policy_loss`, for GRPO, PPO and REINFORCE++;
    `dual_clip` is `eps_clip_c`. OPSM is a weight, too: `jnp.where(keep, weights, 0)`.
    """
    clip_eps_high = clip_eps if clip_eps_high is None else clip_eps_high
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    return _clipped(
        x,
        advantages,
        mask,
        weights,
        (clip_eps, clip_eps_high, dual_clip),
        aggregate,
    )


def gspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GSPO: the same clip on the ratio of sequences.

    slime 624b824a, ppo_utils.py `compute_gspo_kl` and `compute_policy_loss`. PPO's
    widths by default: GSPO's paper has 3e-4 and 4e-4.
    """
    clip_eps_high = clip_eps if clip_eps_high is None else clip_eps_high
    x = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    return _clipped(
        x,
        advantages,
        mask,
        weights,
        (clip_eps, clip_eps_high, dual_clip),
        aggregate,
    )


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """CISPO: -sg(clip(r, 1 - eps, 1 + high)) A log pi.

    slime 624b824a, ppo_utils.py `compute_cispo_loss`. The bounds are PPO's by default;
    `clip_eps` of 1 or more has no lower one, as in the paper.
    """
    clip_eps_high = clip_eps if clip_eps_high is None else clip_eps_high
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    low, high = jnp.maximum(1 - clip_eps, 0), 1 + clip_eps_high
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=low, high=high)
    ratio = jnp.exp(x)
    return _reduced(loss, x, (ratio < low) | (ratio > high), mask, weights, aggregate)


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """The larger squared error, not halved, of v and of v held near v_old.

    slime 624b824a, loss.py `value_loss_function`. `value_clipfrac` counts values that
    have moved by more than `clip_eps`, not those whose held error is the larger one.
    """
    loss = jaxppo.clipped_value(values, old_values, returns, mask, clip_eps=clip_eps)
    total = aggregate(2 * loss, mask)
    moved = (jnp.abs(values - old_values) > clip_eps).astype(loss.dtype)
    metrics: dict[str, jaxppo.Metric] = {
        "value_loss": total,
        "value_clipfrac": aggregate(moved, mask),
    }
    return total, jax.lax.stop_gradient(metrics)


def _clipped(
    x: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    weights: jax.Array | float,
    bounds: tuple[ScalarLike, ScalarLike, ScalarLike],
    aggregate: jaxppo.Aggregator,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    eps, high, dual_clip = bounds
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=eps, clip_eps_high=high, dual_clip=dual_clip
    )
    low = jaxppo.clip_fraction_lower(x, advantages, clip_eps=eps)
    clipped = low + jaxppo.clip_fraction_upper(x, advantages, clip_eps=high) > 0
    return _reduced(loss, x, clipped, mask, weights, aggregate)


def _reduced(
    loss: jax.Array,
    x: jax.Array,
    clipped: jax.Array,
    mask: jax.Array,
    weights: jax.Array | float,
    aggregate: jaxppo.Aggregator,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    total = aggregate(weights * loss, mask)
    metrics: dict[str, jaxppo.Metric] = {
        "pg_loss": total,
        "pg_clipfrac": aggregate(clipped.astype(loss.dtype), mask),
        "ppo_kl": aggregate(-x, mask),
    }
    return total, jax.lax.stop_gradient(metrics)
