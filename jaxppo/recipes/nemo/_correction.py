"""Weights of the policy loss that correct for the sampler, and what tells of it.

All are pi_old / pi_rollout, constant, without a bound of the log-ratio. Fault: a weight
that overflows counts 0, and a NaN does, too, silently (`nan_to_num`); bound the
log-ratio instead, as `jaxppo.log_ratio` does. NeMo computes and logs the weights even
if they are not used, which is its default.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def importance_weights(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's ratio, as it is.

    NeMo-RL 7ea279ab, loss_functions.py `ClippedPGLossFn` with
    `use_importance_sampling_correction` alone. Prefer `truncated_weights`.
    """
    weights = _ratio(_drift(old_log_probs, rollout_log_probs, mask))
    return weights, _logged(weights, mask)


def truncated_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    cap: ScalarLike = 2.0,
    floor: ScalarLike = 0.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's ratio, held in [floor, cap].

    NeMo-RL 7ea279ab, `ClippedPGLossFn`, type "tis"; NeMo has no default for the cap.
    """
    ratio = _ratio(_drift(old_log_probs, rollout_log_probs, mask))
    weights = jnp.clip(ratio, floor, cap)
    outside = ((ratio > cap) | (ratio < floor)).astype(ratio.dtype)
    out_of_bounds = jaxppo.token_mean(outside, mask)
    return weights, {**_logged(weights, mask), "is_oob_ratio": out_of_bounds}


def icepop_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.5,
    high: ScalarLike = 5.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's ratio, 0 outside [low, high].

    NeMo-RL 7ea279ab, `ClippedPGLossFn`, type "icepop"; the bounds are those that its
    comments recommend.
    """
    ratio = _ratio(_drift(old_log_probs, rollout_log_probs, mask))
    inside = (ratio >= low) & (ratio <= high)
    weights = jnp.where(inside, ratio, 0)
    out_of_bounds = jaxppo.token_mean((~inside).astype(ratio.dtype), mask)
    return weights, {**_logged(weights, mask), "is_oob_ratio": out_of_bounds}


def sequence_masked_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.999,
    high: ScalarLike = 1.002,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's ratio; 0 in sequences whose geometric mean is not in [low, high].

    NeMo-RL 7ea279ab, `ClippedPGLossFn`, type "seq-mask-tis"; the bounds are those that
    its comments recommend. The weights themselves are not truncated. `is_oob_ratio` is
    a share of all sequences.
    """
    drift = _drift(old_log_probs, rollout_log_probs, mask)
    finite = jnp.where(jnp.isfinite(drift), drift, 0)
    mean = jnp.exp(jaxppo.masked_mean(finite, mask, axis=-1, keepdims=True))
    inside = (mean >= low) & (mean <= high)
    weights = jnp.where(inside, _ratio(drift), 0)
    out_of_bounds = jaxppo.token_mean((~inside).astype(mean.dtype))
    return weights, {**_logged(weights, mask), "is_oob_ratio": out_of_bounds}


def sequence_weights(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """The ratio of each whole sequence, the product of its tokens': `(batch, 1)`.

    NeMo-RL 7ea279ab, `ClippedPGLossFn` with `sequence_level_importance_ratios`, for
    `gspo`. Not truncated: a few sequences soon have all the weight, and one that
    overflows has none. Use `jaxppo.truncated_weights` of
    `jaxppo.trajectory_log_ratio` instead. Fault: what is logged as their mean is their
    sum (`(batch, 1)` meets a mask of `(batch,)`), as here.
    """
    drift = _drift(old_log_probs, rollout_log_probs, mask)
    weights = _ratio(jaxppo.masked_sum(drift, mask, axis=-1, keepdims=True))
    return weights, {"sampling_importance_ratio": jaxppo.token_sum(weights)}


def diagnostics(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
) -> dict[str, jaxppo.Metric]:
    """How far trainer and sampler are apart, and an estimate of the entropy.

    NeMo-RL 7ea279ab, `ClippedPGLossFn`. With x = log pi_old - log pi_rollout:
    `token_mult_prob_error` is exp |x|, `gen_kl_error` and `policy_kl_error` are k3 of
    either direction, both on the sampler's tokens, and `js_divergence_error` is half of
    either's k3 to their mixture (log pi_old less its log is log 2 - log(1 + exp(-x))).
    `approx_entropy` is -r log pi with r = pi / pi_rollout, unbounded.
    """
    x = _drift(old_log_probs, rollout_log_probs, mask)
    current = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    trainer = math.log(2) - jax.nn.softplus(-x)  # above the mixture
    sampler = math.log(2) - jax.nn.softplus(x)
    mixture = jaxppo.approx_kl_k3(trainer) + jaxppo.approx_kl_k3(sampler)
    tokens = {
        "token_mult_prob_error": jnp.exp(jnp.abs(x)),
        "gen_kl_error": jaxppo.approx_kl_k3(x),
        "policy_kl_error": jaxppo.kl_k3(x),
        "js_divergence_error": mixture / 2,
        "approx_entropy": jnp.exp(current) * jnp.where(mask, -log_probs, 0),
    }
    metrics: dict[str, jaxppo.Metric] = {
        name: jaxppo.token_mean(x, mask) for name, x in tokens.items()
    }
    # As many as there are rows; of parts of a batch the numbers add up.
    rows = jnp.ones_like(x[:, 0])
    metrics["num_valid_samples"] = jaxppo.token_sum(rows)
    return jax.lax.stop_gradient(metrics)


def _drift(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """log pi_old - log pi_rollout, constant."""
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    return jax.lax.stop_gradient(x)


def _ratio(drift: jax.Array) -> jax.Array:
    ratio = jnp.exp(drift)
    return jnp.where(jnp.isfinite(ratio), ratio, 0)


def _logged(weights: jax.Array, mask: jax.Array) -> dict[str, jaxppo.Metric]:
    return {"sampling_importance_ratio": jaxppo.token_mean(weights, mask)}
