"""open-instruct at commit e6c3044a: `open_instruct/grpo_utils.py`.

The policy's log-ratio has no guard, that to the sampler is held within 10 nats and
that to the reference within 40. The loss is pg weight + beta KL per token, over the
number of response tokens of a step. Fault: open-instruct turns a NaN among the
log-probs into 1.0 (`mask_logprobs`), a probability of 2.7, so that a broken model
trains on; here it stays in sight.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def dapo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    kl: jax.Array | None = None,
    clip_eps: ScalarLike = 0.2,
    clip_eps_high: ScalarLike = 0.272,
    kl_coef: ScalarLike = 0.05,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """PPO's clip with a higher upper bound, weighted for the sampler, plus a KL term.

    open-instruct e6c3044a, grpo_utils.py `compute_grpo_loss`. `weights` are from
    `rho_weights`; `kl` from `kl1` ... `kl4`, kl3 by default there. The weights do not
    touch the KL term.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=clip_eps, clip_eps_high=clip_eps_high
    )
    clipped = jaxppo.clip_fraction_lower(x, advantages, clip_eps=clip_eps)
    clipped = clipped + jaxppo.clip_fraction_upper(
        x, advantages, clip_eps=clip_eps_high
    )
    return _total(loss, clipped, x, mask, weights, kl, kl_coef, aggregate)


def cispo(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    weights: jax.Array | None = None,
    kl: jax.Array | None = None,
    clip_eps_high: ScalarLike = 0.272,
    kl_coef: ScalarLike = 0.05,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """CISPO, its weights held below 1.272 only: -sg(min(r, 1 + eps)) A log pi.

    open-instruct e6c3044a, grpo_utils.py `compute_grpo_loss` with `loss_fn=cispo`.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.cispo(log_probs, x, advantages, mask, high=1 + clip_eps_high)
    clipped = (jnp.exp(x) > 1 + clip_eps_high).astype(x.dtype)
    return _total(loss, clipped, x, mask, weights, kl, kl_coef, aggregate)


def rho_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    floor: ScalarLike = 0.0,
    cap: ScalarLike = 2.0,
    low: ScalarLike = 0.0,
    high: ScalarLike = math.inf,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """rho = pi_old / pi_rollout per token: 0 outside [low, high], in [floor, cap] else.

    open-instruct e6c3044a, grpo_utils.py `compute_rho_correction`; nothing is dropped
    by default. Log-ratios are held within 10 nats. Its own 0 for `cap` and `high` means
    none: `math.inf` here.
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=10.0)
    rho = jnp.exp(x)
    return _weights(x, rho < low, rho > high, mask, floor, cap)


def sequence_rho_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    floor: ScalarLike = 0.0,
    cap: ScalarLike = 2.0,
    low: ScalarLike = 0.0,
    high: ScalarLike = math.inf,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """`rho_weights` of each sequence's geometric mean, weight and bounds alike.

    open-instruct e6c3044a, `compute_rho_correction` with `rho_mask_sequence_level`.
    """
    x = jaxppo.sequence_log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=10.0)
    rho = jnp.exp(x)
    return _weights(x, rho < low, rho > high, mask, floor, cap)


def divergence_rho_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    floor: ScalarLike = 0.0,
    cap: ScalarLike = 2.0,
    low: ScalarLike = 0.0,
    high: ScalarLike = math.inf,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """`rho_weights`, dropping tokens of sequences far from their sampler (VACO).

    A token has weight 0 where the mean of |rho - 1| over its sequence is outside
    [low, high] and sign(log rho) A > 0: it would be pushed farther. open-instruct
    e6c3044a, `compute_rho_correction` with `rho_mask_tv_divergence`. A divergence has
    no use for `low`: near 0 it is good.
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=10.0)
    distance = jnp.abs(jnp.exp(x) - 1)
    far = jaxppo.masked_mean(distance, mask, axis=-1, keepdims=True)
    away = ((x > 0) & (advantages > 0)) | ((x < 0) & (advantages < 0))
    return _weights(x, (far < low) & away, (far > high) & away, mask, floor, cap)


def kl1(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """k1 per token: x. open-instruct e6c3044a, `estimate_kl`, index 0.

    Fault: in a loss its gradient is 0 in expectation. Use
    `jaxppo.unbiased_gradient_kl` instead.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=40.0)
    return jaxppo.kl_k1(x)


def kl2(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """k2 per token: x^2 / 2. open-instruct e6c3044a, `estimate_kl`, index 1."""
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=40.0)
    return jaxppo.kl_k2(x)


def kl3(log_probs: jax.Array, ref_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """k3 per token: exp(-x) - 1 + x. open-instruct e6c3044a, `estimate_kl`, index 2."""
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=40.0)
    return jaxppo.kl_k3(x)


def kl4(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """k1 on samples of pi_old: r x, differentiated through r, too, so not in vain.

    open-instruct e6c3044a, `estimate_kl`, index 3. The ratio has no guard.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask, max_abs=40.0)
    policy = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    return jaxppo.importance_weighted_kl(x, policy, estimator=jaxppo.kl_k1)


def centered_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """r - mean, the default. open-instruct e6c3044a, data_loader.py."""
    return jaxppo.group_advantages(rewards, group_size=group_size, scale_by_std=False)


def standard_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """(r - mean) / (std + 1e-8), ddof 0. open-instruct e6c3044a, data_loader.py.

    With `advantage_normalization_type="standard"`. Of equal rewards that no float
    represents open-instruct makes rounding / 1e-8; here they give exactly 0.
    """
    return jaxppo.group_advantages(rewards, group_size=group_size, ddof=0, eps=1e-8)


def _total(
    loss: jax.Array,
    clipped: jax.Array,
    x: jax.Array,
    mask: jax.Array,
    weights: jax.Array | None,
    kl: jax.Array | None,
    kl_coef: ScalarLike,
    aggregate: jaxppo.Aggregator,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """What both losses have in common: weights, KL, metrics."""
    if weights is not None:
        weights = jax.lax.stop_gradient(weights)
        loss = loss * weights
        clipped = jnp.where(weights == 0, 0, clipped)
    metrics: dict[str, jaxppo.Metric] = {
        "clipfrac": jaxppo.token_mean(clipped, mask),
        "loss/policy_avg": jaxppo.token_mean(loss, mask),
        "val/ratio": jaxppo.token_mean(jnp.exp(x), mask),
    }
    if kl is not None:
        loss = loss + kl * kl_coef
        metrics["loss/kl_avg"] = jaxppo.token_mean(kl * kl_coef, mask)
    return aggregate(loss, mask), jax.lax.stop_gradient(metrics)


def _weights(
    x: jax.Array,
    too_low: jax.Array,
    too_high: jax.Array,
    mask: jax.Array,
    floor: ScalarLike,
    cap: ScalarLike,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """exp(x) in [floor, cap] where it is neither dropped nor masked, and the shares."""
    held = jaxppo.truncated_weights(x, cap=cap, floor=floor)
    weights = jnp.where(mask.astype(bool) & ~too_low & ~too_high, held, 0)
    per_token = {
        "val/rho_drop_frac": too_low | too_high,
        "val/rho_drop_low_frac": too_low,
        "val/rho_drop_high_frac": too_high,
        "val/rho_weight": weights,
        "val/rho_clipfrac": held != jnp.exp(x),
    }
    metrics: dict[str, jaxppo.Metric] = {
        name: jaxppo.token_mean(y.astype(x.dtype), mask)
        for name, y in per_token.items()
    }
    return weights, jax.lax.stop_gradient(metrics)
