"""The policy losses, which are `ClippedPGLossFn` in its modes, and the critic's."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

row_mean = jaxppo.all_rows(jaxppo.sequence_mean)  # NeMo's `token_level_loss=False`


def ppo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    dual_clip: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip, times weights that correct for the sampler, if there are any.

    NeMo-RL 7ea279ab, loss_functions.py `ClippedPGLossFn`, its defaults (but for the KL
    penalty, on at 0.01 there); `dual_clip` is `ratio_clip_c`. `aggregate` is
    `token_mean` or `row_mean`. Rejected tokens stay in the denominator.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.clipped_surrogate(
        x,
        advantages,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
    )
    held = jnp.clip(jnp.exp(x), 1 - clip_eps, 1 + clip_eps_high)
    return _with_metrics(aggregate(weights * loss, mask), jnp.exp(x), held, mask)


def gspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    dual_clip: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GSPO: the clip on the ratio of sequences, always a mean over sequences.

    NeMo-RL 7ea279ab, `ClippedPGLossFn` with `sequence_level_importance_ratios`. Its
    widths are PPO's by default (the paper's are 3e-4 and 4e-4), and its weights are
    `sequence_weights`, products of a whole sequence's ratios, without a bound.
    """
    x = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.clipped_surrogate(
        x,
        advantages,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
    )
    held = jnp.clip(jnp.exp(x), 1 - clip_eps, 1 + clip_eps_high)
    return _with_metrics(row_mean(weights * loss, mask), jnp.exp(x), held, mask)


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """CISPO: -sg(clip(r, 1 - eps, 1 + high)) A log pi, always a mean over tokens.

    NeMo-RL 7ea279ab, `ClippedPGLossFn` with `use_cispo`. The bounds are widths around
    1, and PPO's by default; ScaleRL's, [0, 5], are `clip_eps=1.0, clip_eps_high=4.0`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    low, high = 1 - clip_eps, 1 + clip_eps_high
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=low, high=high)
    held = jnp.clip(jnp.exp(x), low, high)
    total = jaxppo.token_mean(weights * loss, mask)
    return _with_metrics(total, jnp.exp(x), held, mask)


def on_policy(
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-A exp(log pi - sg log pi): REINFORCE's gradient, and a ratio that reads 1.

    NeMo-RL 7ea279ab, `ClippedPGLossFn` with `force_on_policy_ratio`: for one update per
    batch. The weights' and `diagnostics`' `old_log_probs` are the current ones there.
    """
    x = jaxppo.log_ratio(log_probs, log_probs, mask)
    loss = jaxppo.unclipped_surrogate(x, advantages)
    total = aggregate(weights * loss, mask)
    return _with_metrics(total, jnp.exp(x), jnp.exp(x), mask)


def reinforce(
    log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """REINFORCE: -A log pi.

    NeMo-RL 7ea279ab, `ClippedPGLossFn` with `disable_ppo_ratio`. Fault: the log-probs
    stand in for the ratios there, and are logged under their names (as here).
    """
    loss = jaxppo.policy_gradient(log_probs, advantages, mask)
    total = aggregate(weights * loss, mask)
    return _with_metrics(total, log_probs, log_probs, mask)


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Half the squared error, or the larger one of v and of v held near v_old.

    NeMo-RL 7ea279ab, loss_functions.py `MseValueLossFn`; no clip by default
    (`cliprange`). The explained variance is 1 - (residual_sq_mean - (returns_mean -
    values_mean)^2) / (returns_sq_mean - returns_mean^2), which cancels in float32: use
    `jaxppo.explained_variance` instead, on a whole batch.
    """
    loss = jaxppo.clipped_value(values, old_values, returns, mask, clip_eps=clip_eps)
    plain = jaxppo.squared_value(values, returns, mask)
    held = jnp.clip(values, old_values - clip_eps, old_values + clip_eps)
    held = jaxppo.squared_value(held, returns, mask)
    total = jaxppo.token_mean(loss, mask)
    tokens = {
        "loss": loss,
        "vf_clipfrac": (held > plain).astype(loss.dtype),
        "returns_mean": returns,
        "values_mean": values,
        "returns_sq_mean": returns**2,
        "residual_sq_mean": 2 * plain,
    }
    metrics: dict[str, jaxppo.Metric] = {
        "values_max": jaxppo.Max(jaxppo.masked_max(values, mask)),
        "values_min": jaxppo.Min(-jaxppo.masked_max(-values, mask)),
    }
    metrics |= {name: jaxppo.token_mean(x, mask) for name, x in tokens.items()}
    return total, jax.lax.stop_gradient(metrics)


def _with_metrics(
    loss: jaxppo.Mean, ratio: jax.Array, held: jax.Array, mask: jax.Array
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    metrics: dict[str, jaxppo.Metric] = {"loss": loss}
    for name, x in {"probs_ratio": ratio, "probs_ratio_clamped": held}.items():
        metrics[name] = jaxppo.token_mean(x, mask)
        metrics[f"{name}_max"] = jaxppo.Max(jaxppo.masked_max(x, mask))
        metrics[f"{name}_min"] = jaxppo.Min(-jaxppo.masked_max(-x, mask))
    return loss, jax.lax.stop_gradient(metrics)
