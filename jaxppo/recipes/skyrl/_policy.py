"""The policy losses, and SkyRL's own two reductions."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

row_mean = jaxppo.all_rows(jaxppo.sequence_mean)  # SkyRL's `sequence_mean`


def prompt_mean(group_size: int) -> jaxppo.Aggregator:
    """The mean over prompts of their token means, those without a token included.

    SkyRL a9564572, ppo_utils.py `apply_loss_reduction_to_advantages_minibatch`,
    "prompt_mean", for groups of one size. `seq_mean_token_sum_norm` is
    `jaxppo.all_rows(functools.partial(jaxppo.sequence_sum, scale=1 / max_length))`;
    `token_mean_legacy` is the mean of the microbatches' token means, where short ones
    weigh more. Use `jaxppo.token_mean` instead.
    """

    def over_prompts(x: jax.Array, mask: jax.Array | None = None) -> jaxppo.Mean:
        mean = jaxppo.prompt_mean(x, mask, group_size=group_size)
        return jaxppo.Mean(mean.total, jnp.full_like(mean.count, len(x) // group_size))

    return over_prompts


def regular(
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

    SkyRL a9564572, ppo_utils.py `ppo_policy_loss`. Its `dual_clip` loss is this one
    with `dual_clip=3.0`. Rejected tokens stay in the denominator.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.clipped_surrogate(
        x,
        advantages,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
    )
    clipped = _clipped(x, advantages, clip_eps, clip_eps_high)
    return aggregate(weights * loss, mask), _clip_ratio(clipped, mask)


def gspo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GSPO-token: the clip on the sequence's ratio, the gradient on each token's own.

    SkyRL a9564572, ppo_utils.py `gspo_policy_loss`; the mean log-ratio is held below 10
    and not from below. PPO's widths by default: GSPO's paper has 3e-4 and 4e-4. SkyRL's
    default reduction is over tokens; it warns where it is not this one.
    """
    x = jaxppo.sequence_token_log_ratio(
        log_probs, old_log_probs, mask, max_abs=math.inf
    )
    x = jnp.where(x > 10, 10.0, x)
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    clipped = _clipped(x, advantages, clip_eps, clip_eps_high)
    return aggregate(weights * loss, mask), _clip_ratio(clipped, mask)


def sapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    temperature: ScalarLike = 1.0,
    temperature_negative: ScalarLike = 1.05,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """SAPO: a clip with soft edges, -(4 / tau) sigmoid(tau (r - 1)) A.

    SkyRL a9564572, ppo_utils.py `sapo_policy_loss`. Its `clip_ratio` is always 0. SkyRL
    warns where the reduction is not this one.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    loss = jaxppo.soft_gated_surrogate(
        x,
        advantages,
        temperature=temperature,
        temperature_negative=temperature_negative,
    )
    return aggregate(weights * loss, mask), _clip_ratio(jnp.zeros_like(mask), mask)


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 1.0,
    clip_eps_high: ScalarLike = 4.0,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """CISPO: -sg(clip(r, 1 - eps, 1 + high)) A log pi, by default between 0 and 5.

    SkyRL a9564572, ppo_utils.py `compute_policy_loss_cispo`. With `cispo_anchor` =
    "rollout" the sampler's log-probs are the old ones, and there are no weights.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    low, high = 1 - clip_eps, 1 + clip_eps_high
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=low, high=high)
    ratio = jnp.exp(jax.lax.stop_gradient(x))
    metrics: dict[str, jaxppo.Metric] = {
        "cispo/ratio_mean": jaxppo.token_mean(ratio, mask),
        "cispo/ratio_clamped_mean": jaxppo.token_mean(jnp.clip(ratio, low, high), mask),
        "cispo/ratio_max": jaxppo.ratio_max(x, mask),
        "cispo/ratio_min": jaxppo.ratio_min(x, mask),
    }
    metrics |= _clip_ratio((ratio < low) | (ratio > high), mask)
    return aggregate(weights * loss, mask), metrics


def rollout_is(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-sg(r) A log pi where 1 - eps < r < 1 + high, else 0; r = pi / pi_rollout.

    SkyRL a9564572, ppo_utils.py `rollout_is_policy_loss`, for asynchronous training
    without pi_old. A token outside the band has no gradient, whichever way its
    advantage points; SkyRL's docstring calls that CISPO's gradient, which it is not.
    """
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask)
    ratio = jnp.exp(jax.lax.stop_gradient(x))
    inside = (ratio > 1 - clip_eps) & (ratio < 1 + clip_eps_high)
    loss = jaxppo.policy_gradient(log_probs, advantages, mask)
    loss = jnp.where(inside, ratio, 0) * loss
    return aggregate(weights * loss, mask), _clip_ratio(~inside, mask)


def dppo_tv(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    low: ScalarLike = 0.2,
    high: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """DPPO: -r A, 0 where |pi - pi_rollout| is too large and A would make it larger.

    SkyRL a9564572, ppo_utils.py `dppo_policy_loss`, "binary_tv" (its default). The
    ratio is not truncated; without rollout log-probs SkyRL takes the old ones.
    """
    divergence = jaxppo.binary_tv(log_probs, rollout_log_probs, mask)
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask)
    return _dppo(x, advantages, divergence, mask, weights, low, high, aggregate)


def dppo_kl(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
    low: ScalarLike = 0.2,
    high: ScalarLike = 0.2,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """DPPO with the binary KL divergence of pi_rollout from pi as the distance.

    SkyRL a9564572, ppo_utils.py `dppo_policy_loss`, "binary_kl", with its eps of 1e-8.
    The thresholds are total variation's, 0.2, which is far for a KL divergence.
    """
    divergence = jaxppo.binary_kl(log_probs, rollout_log_probs, mask)
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask)
    return _dppo(x, advantages, divergence, mask, weights, low, high, aggregate)


def importance_sampling(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-r A without a bound, summed over tokens.

    SkyRL a9564572, ppo_utils.py `importance_sampling_loss`; no guard on the ratio.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.unclipped_surrogate(x, advantages)
    ratio = jnp.exp(jax.lax.stop_gradient(x))
    metrics: dict[str, jaxppo.Metric] = {
        "importance_ratio": jaxppo.token_mean(ratio, mask)
    }
    return jaxppo.token_sum(loss, mask), metrics


def cross_entropy(
    log_probs: jax.Array, mask: jax.Array
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """-log pi, summed over tokens: supervised fine-tuning.

    SkyRL a9564572, ppo_utils.py `cross_entropy_loss`.
    """
    metrics = _clip_ratio(jnp.zeros_like(mask), mask)
    return jaxppo.token_sum(-log_probs, mask), metrics


def _dppo(
    x: jax.Array,
    advantages: jax.Array,
    divergence: jax.Array,
    mask: jax.Array,
    weights: jax.Array | float,
    low: ScalarLike,
    high: ScalarLike,
    aggregate: jaxppo.Aggregator,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    keep = jaxppo.trust_region_mask(x, advantages, divergence, low=low, high=high)
    loss = jnp.where(keep, jaxppo.unclipped_surrogate(x, advantages), 0)
    dropped = ~keep & (advantages != 0)
    return aggregate(weights * loss, mask), _clip_ratio(dropped, mask)


def _clipped(
    x: jax.Array,
    advantages: jax.Array,
    clip_eps: ScalarLike,
    clip_eps_high: ScalarLike,
) -> jax.Array:
    low = jaxppo.clip_fraction_lower(x, advantages, clip_eps=clip_eps)
    return low + jaxppo.clip_fraction_upper(x, advantages, clip_eps=clip_eps_high) > 0


def _clip_ratio(clipped: jax.Array, mask: jax.Array) -> dict[str, jaxppo.Metric]:
    return {"clip_ratio": jaxppo.token_mean(clipped.astype(jnp.float32), mask)}
