"""The policy losses and the critic's."""

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
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip, times weights that correct for the sampler, if there are any.

    OpenRLHF 0.11.2, loss.py `PolicyLoss`; `aggregate` is `token_mean` or
    `sequence_mean`. Weights are from `clip_weights`, `mask_weights` or one of their
    kin; rejected tokens stay in the denominator. KL and entropy terms are token means
    whatever `aggregate` is: add them by value.
    """
    clip_eps_high = clip_eps if clip_eps_high is None else clip_eps_high
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    drift = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    return _clipped(
        x,
        drift,
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
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GSPO: the clip on the ratio of sequences, always a mean over sequences.

    OpenRLHF 0.11.2, loss.py `PolicyLoss`, `policy_loss_type="gspo"`. No guard on the
    log-ratio, and PPO's widths by default: GSPO's paper has 3e-4 and 4e-4. Fault: with
    a rollout correction on, OpenRLHF takes the sampler's log-probs for the old ones,
    and neither weighs nor rejects anything. To have that, pass them as
    `old_log_probs`. Multiply the surrogate by `sequence_mask_weights` instead.
    """
    clip_eps_high = clip_eps if clip_eps_high is None else clip_eps_high
    x = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    drift = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    return _clipped(
        x,
        drift,
        advantages,
        mask,
        None,
        (clip_eps, clip_eps_high, dual_clip),
        jaxppo.sequence_mean,
    )


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.5,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Half the larger of two squared errors, a mean over tokens.

    OpenRLHF 0.11.2, loss.py `ValueLoss`; 0.5 is the command line's default.
    `clip_eps=math.inf` is its `None`.
    """
    loss = jaxppo.clipped_value(values, old_values, returns, mask, clip_eps=clip_eps)
    loss = jaxppo.token_mean(loss, mask)
    metrics: dict[str, jaxppo.Metric] = {
        "critic_loss": loss,
        "values": jaxppo.token_mean(values, mask),
    }
    return loss, jax.lax.stop_gradient(metrics)


def _clipped(
    x: jax.Array,
    drift: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    weights: jax.Array | None,
    bounds: tuple[ScalarLike, ScalarLike, ScalarLike],
    aggregate: jaxppo.Aggregator,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """What both policies share: the clip, its weights and what is logged."""
    low, high, dual_clip = bounds
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=low, clip_eps_high=high, dual_clip=dual_clip
    )
    if weights is not None:
        loss = loss * jax.lax.stop_gradient(jnp.where(mask, weights, 0))
    clipped = jaxppo.clip_fraction_lower(x, advantages, clip_eps=low)
    clipped = clipped + jaxppo.clip_fraction_upper(x, advantages, clip_eps=high)
    loss = aggregate(loss, mask)
    metrics: dict[str, jaxppo.Metric] = {
        "policy_loss": loss,
        "ppo_clip_ratio": jaxppo.token_mean(clipped, mask),
        "ppo_kl": jaxppo.token_mean(jaxppo.approx_kl_k1(drift), mask),
    }
    return loss, jax.lax.stop_gradient(metrics)
