"""Tunix 0.1.7: `tunix/rl/algo_core.py` and `tunix/rl/common.py`.

`grpo_loss_fn` holds log-ratios within 20 nats; `ppo_policy_loss_fn` has no guard.
Where Tunix adds 1e-8 to a count of tokens, the count here is at least 1. Tunix
multiplies by the mask, so that a NaN under it is a NaN in the loss: not here.
"""

import math
from collections.abc import Callable

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
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip, always a mean over tokens.

    Tunix 0.1.7, algo_core.py `ppo_policy_loss_fn`; `dual_clip` is `epsilon_c`, off by
    default. No guard on the log-ratio: use `jaxppo.log_ratio` with its bound. Its
    entropy bonus, off by default, is `- entropy_coef * token_mean(entropy, mask)`.
    """
    clip_eps_high = clip_eps if clip_eps_high is None else clip_eps_high
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.clipped_surrogate(
        x,
        advantages,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
    )
    clipped, dual = _clip_fractions(x, advantages, clip_eps, clip_eps_high, dual_clip)
    metrics: dict[str, jaxppo.Metric] = {
        "pg_clipfrac": jaxppo.token_mean(clipped, mask),
        "pg_clipfrac_lower": jaxppo.token_mean(dual, mask),
    }
    return jaxppo.token_mean(loss, mask), jax.lax.stop_gradient(metrics)


def grpo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    ref_log_probs: jax.Array | None = None,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
    kl_coef: ScalarLike = 0.04,
    kl: Callable[[jax.Array], jax.Array] = jaxppo.kl_k1,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GRPO, with a KL term if there are log-probs of a reference.

    Tunix 0.1.7, algo_core.py `grpo_loss_fn`: log-ratios within 20 nats (those to the
    reference unbounded), by sequence unless told otherwise. `pg_clipfrac_lower` goes
    through `aggregate`, the other metrics are token means. Fault: the default `kl` is
    k1, whose gradient is 0 in expectation, so that the penalty only adds noise. Use
    `kl=jaxppo.unbiased_gradient_kl` instead.
    """
    clip_eps_high = clip_eps if clip_eps_high is None else clip_eps_high
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask)
    drift = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss, metrics = _clipped(
        x, drift, advantages, mask, clip_eps, clip_eps_high, dual_clip, aggregate
    )
    if ref_log_probs is not None:
        y = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
        loss = loss + kl_coef * kl(y)
        metrics["kl"] = jaxppo.token_mean(kl(y), mask)
        metrics["kl_loss"] = aggregate(kl(y), mask)
    return aggregate(loss, mask), jax.lax.stop_gradient(metrics)


def gspo_token(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike | None = None,
    dual_clip: ScalarLike = math.inf,
    aggregate: jaxppo.Aggregator = jaxppo.sequence_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """GSPO-token: the sequence's mean log-ratio, with each token's own gradient.

    Tunix 0.1.7, algo_core.py `grpo_loss_fn` with `loss_algo="gspo-token"`: each token
    is held within 20 nats before the mean, but keeps its gradient there; the mean is
    held below 10. The default widths are PPO's: GSPO's paper has 3e-4 and 4e-4.
    """
    clip_eps_high = clip_eps if clip_eps_high is None else clip_eps_high
    mean = jaxppo.sequence_log_ratio(log_probs, old_log_probs, mask)
    own = jaxppo.log_ratio(log_probs, log_probs, mask)  # 0, but for its gradient
    x = jnp.minimum(jax.lax.stop_gradient(mean) + own, 10)
    drift = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss, metrics = _clipped(
        x, drift, advantages, mask, clip_eps, clip_eps_high, dual_clip, aggregate
    )
    return aggregate(loss, mask), jax.lax.stop_gradient(metrics)


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.2,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Half the larger of two squared errors, a mean over tokens.

    Tunix 0.1.7, algo_core.py `ppo_value_loss_fn`.
    """
    error = jaxppo.clipped_value(values, old_values, returns, mask, clip_eps=clip_eps)
    bounded = jaxppo.bounded_value(values, old_values, returns, mask, clip_eps=clip_eps)
    held = bounded > jaxppo.squared_value(values, returns, mask)
    loss = jaxppo.token_mean(error, mask)
    metrics: dict[str, jaxppo.Metric] = {
        "vf_loss": loss,
        "vpred_mean": jaxppo.token_mean(values, mask),
        "vf_clipfrac": jaxppo.token_mean(held.astype(bounded.dtype), mask),
        "return_mean": jaxppo.token_mean(returns, mask),
    }
    return loss, jax.lax.stop_gradient(metrics)


def kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    max_value: ScalarLike = math.inf,
) -> jax.Array:
    """k1 per token. Tunix 0.1.7, common.py `compute_kl_divergence`, `kl`."""
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.bounded_kl(x, estimator=jaxppo.kl_k1, max_value=max_value)


def mse_kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    max_value: ScalarLike = math.inf,
) -> jax.Array:
    """k2 per token. Tunix 0.1.7, common.py `compute_kl_divergence`, `mse_kl`."""
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.bounded_kl(x, estimator=jaxppo.kl_k2, max_value=max_value)


def low_var_kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    max_value: ScalarLike = math.inf,
) -> jax.Array:
    """k3 per token. Tunix 0.1.7, common.py `compute_kl_divergence`, `low_var_kl`.

    Unbounded by default: exp(-x) overflows where pi is exp(88) times rarer than ref.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=math.inf)
    return jaxppo.bounded_kl(x, estimator=jaxppo.kl_k3, max_value=max_value)


def sequence_mean_token_scale(
    per_token: jax.Array, mask: jax.Array, *, norm: ScalarLike
) -> jaxppo.Mean:
    """The mean over sequences of their sums / norm; Tunix's own norm is the width.

    Tunix 0.1.7, common.py `aggregate_loss`. Give it to a loss with `functools.partial`.
    """
    return jaxppo.sequence_sum(per_token, mask, scale=1 / norm)


def sequence_mean_token_sum_norm(
    per_token: jax.Array, mask: jax.Array, *, norm: ScalarLike
) -> jaxppo.Mean:
    """The sum over all tokens / norm.

    Tunix 0.1.7, common.py `aggregate_loss`, whose own norm is the number of sequences.
    Fault: a norm given to it *replaces* that number, so that the loss grows with the
    batch. Use `sequence_mean_token_scale` instead.
    """
    return jaxppo.token_sum(per_token, mask) * (1 / norm)


def grpo_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """(r - mean) / (std + 1e-6), ddof 1, within each group.

    Tunix 0.1.7, algo_core.py `compute_advantages`. A group of one is 0 here and
    NaN in Tunix.
    """
    return jaxppo.group_advantages(rewards, group_size=group_size)


def dr_grpo_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """r - mean. Tunix 0.1.7, algo_core.py `compute_drgrpo_advantages`."""
    return jaxppo.group_advantages(rewards, group_size=group_size, scale_by_std=False)


def rloo_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """r less the mean of the others. Tunix 0.1.7, `compute_rloo_advantages`."""
    return jaxppo.leave_one_out_advantages(rewards, group_size=group_size)


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: ScalarLike = 1.0,
    lambda_: ScalarLike = 0.95,
) -> jaxppo.Advantages:
    """GAE that skips masked tokens, then whitened; the returns are not.

    Tunix 0.1.7, algo_core.py `compute_gae_advantages`.
    """
    out = jaxppo.gae(rewards, values, gamma, lambda_=lambda_, mask=mask)
    return jaxppo.Advantages(masked_whiten(out.advantages, mask), out.returns)


def masked_whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-8), ddof 1. Tunix 0.1.7, algo_core.py.

    A single token is 0 here and NaN in Tunix.
    """
    variance = jaxppo.masked_variance(x, mask, ddof=1)
    return jaxppo.centred(x, mask) * jax.lax.rsqrt(variance + 1e-8)


def _clipped(
    x: jax.Array,
    drift: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    low: ScalarLike,
    high: ScalarLike,
    dual_clip: ScalarLike,
    aggregate: jaxppo.Aggregator,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """The loss per token of `grpo_loss_fn` and what it logs."""
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=low, clip_eps_high=high, dual_clip=dual_clip
    )
    clipped, dual = _clip_fractions(x, advantages, low, high, dual_clip)
    size = jnp.broadcast_to(advantages, x.shape).astype(x.dtype)
    per_token = {
        "ppo_kl": jaxppo.approx_kl_k1(drift),
        "pg_clipfrac": clipped,
        "is_ratio/mean": jnp.exp(x),
        "log_ratio/abs_mean": jnp.abs(x),
        "pg_loss/unclipped_mean": jaxppo.unclipped_surrogate(x, advantages),
        "pg_loss/clipped_mean": -jnp.clip(jnp.exp(x), 1 - low, 1 + high) * size,
        "advantage/abs_mean": jnp.abs(size),
        "advantage/nonzero_frac": (jnp.abs(size) > 1e-8).astype(x.dtype),
    }
    metrics: dict[str, jaxppo.Metric] = {
        name: jaxppo.token_mean(y, mask) for name, y in per_token.items()
    }
    return loss, metrics | {
        "pg_loss": aggregate(loss, mask),
        "pg_clipfrac_lower": aggregate(dual, mask),
        "is_ratio/max": jaxppo.ratio_max(x, mask),
        "is_ratio/min": jaxppo.ratio_min(x, mask),
        "advantage/max": jaxppo.Max(jaxppo.masked_max(size, mask)),
        "advantage/min": jaxppo.Min(-jaxppo.masked_max(-size, mask)),
    }


def _clip_fractions(
    x: jax.Array,
    advantages: jax.Array,
    low: ScalarLike,
    high: ScalarLike,
    dual_clip: ScalarLike,
) -> tuple[jax.Array, jax.Array]:
    """1 where PPO's clip binds, on either side; 1 where the dual clip does."""
    clipped = jaxppo.clip_fraction_lower(x, advantages, clip_eps=low)
    clipped = clipped + jaxppo.clip_fraction_upper(x, advantages, clip_eps=high)
    dual = (jnp.exp(x) > dual_clip) & (advantages < 0)
    return clipped, dual.astype(x.dtype)
