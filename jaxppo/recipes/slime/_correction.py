"""Weights and masks of the policy losses that correct for the sampler.

A mask is given to the losses as a weight: `jnp.where(keep, weights, 0)`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

from ._policy import row_mean


def opsm(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    threshold: ScalarLike = 1e-4,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """OPSM: drops tokens of A < 0 in sequences of mean log pi_old - log pi too large.

    slime 624b824a, ppo_utils.py `compute_opsm_mask`. `opsm_clipfrac` is the number of
    sequences dropped. Fault: slime's divides tokens dropped, masked ones included, by
    tokens that count, and comes out larger where the mask has holes; here it does not.
    """
    x = jaxppo.log_ratio(log_probs, old_log_probs, mask, max_abs=math.inf)
    keep = jaxppo.off_policy_sequence_mask(
        jax.lax.stop_gradient(x), advantages, mask, threshold=threshold
    )
    dropped = (mask.astype(bool) & ~keep).astype(x.dtype)
    metrics: dict[str, jaxppo.Metric] = {
        "opsm_clipfrac": jaxppo.token_sum(jaxppo.masked_mean(dropped, mask, axis=-1))
    }
    return keep, metrics


def tis(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    cap: ScalarLike = 2.0,
    floor: ScalarLike = 0.0,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's pi_old / pi_rollout, held in [floor, cap].

    slime 624b824a, loss.py `vanilla_tis_function`. slime logs `ois`, too: the mean of
    the policy's own ratio.
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    weights = jaxppo.truncated_weights(x, cap=cap, floor=floor)
    return weights, _tis_metrics(x, weights, mask, aggregate)


def icepop(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.0,
    high: ScalarLike = 2.0,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's pi_old / pi_rollout, 0 outside [low, high].

    slime 624b824a, loss.py `icepop_function`; its bounds are TIS's by default, IcePop's
    own are 0.5 and 5.
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    weights = jaxppo.band_weights(x, low=low, high=high)
    return weights, _tis_metrics(x, weights, mask, aggregate)


def mis_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    level: Callable[..., jax.Array] = jaxppo.log_ratio,
    cap: ScalarLike = 2.0,
    floor: ScalarLike | None = None,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """MIS: pi_old / pi_rollout at some level, at most `cap`; or held in [floor, cap].

    slime 624b824a, examples/train_infer_mismatch_helper/mis.py `compute_mis_weights`:
    "token", "sequence" and "geometric" are `jaxppo.log_ratio`, `trajectory_log_ratio`
    and `sequence_log_ratio`. Without a floor it is "truncate", its default; with one,
    "clip", for which 1 / cap is. Each reports its shares under its own names. For
    `tis_batch_normalize` pass them to `jaxppo.normalised_weights`.
    """
    ratio = _mis_ratio(level, old_log_probs, rollout_log_probs, mask)
    weights = jnp.clip(ratio, floor, cap)
    if floor is None:
        share = aggregate((ratio > cap).astype(ratio.dtype), mask)
        metrics: dict[str, jaxppo.Metric] = {"tis_truncate_fraction": share}
    else:
        metrics = _outside("tis_clip", ratio, floor, cap, mask, aggregate)
    metrics["tis_weight_before_bound"] = aggregate(ratio, mask)
    metrics["tis_weight_after_bound"] = aggregate(weights, mask)
    return jnp.where(mask, weights, 0), metrics


def mis_mask(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    level: Callable[..., jax.Array] = jaxppo.log_ratio,
    low: ScalarLike = 0.5,
    high: ScalarLike = 2.0,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """MIS's rejection: the tokens whose ratio, at some level, lies in [low, high].

    slime 624b824a, mis.py `compute_mis_weights`, `use_rs`; `level` as in `mis_weights`.
    As a weight: `jnp.where(keep, weights, 0)`.
    """
    ratio = _mis_ratio(level, old_log_probs, rollout_log_probs, mask)
    keep = jaxppo.rejection_mask(ratio, mask, low=low, high=high)
    return keep, _outside("rs_mask", ratio, low, high, mask, aggregate)


def mis_veto(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    threshold: ScalarLike = 1e-4,
    aggregate: jaxppo.Aggregator = row_mean,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """MIS's veto: sequences without a token of a ratio below the threshold.

    slime 624b824a, mis.py `calculate_veto_mask`; on top of `mis_mask`.
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    mask = mask.astype(bool)
    below = mask & (x < jnp.log(threshold))
    vetoed = jnp.broadcast_to(jnp.any(below, -1, keepdims=True), mask.shape)
    tokens = {
        "rs_catastrophic_token_fraction": below,
        "rs_catastrophic_seq_fraction": vetoed,
    }
    return mask & ~vetoed, {
        name: aggregate(x.astype(jnp.float32), mask) for name, x in tokens.items()
    }


def _tis_metrics(
    x: jax.Array, weights: jax.Array, mask: jax.Array, aggregate: jaxppo.Aggregator
) -> dict[str, jaxppo.Metric]:
    ratio = jnp.exp(jax.lax.stop_gradient(x))
    return {
        "tis": aggregate(ratio, mask),
        "tis_clipfrac": aggregate((weights != ratio).astype(x.dtype), mask),
        "tis_abs": aggregate(jnp.abs(ratio - 1), mask),
    }


def _mis_ratio(
    level: Callable[..., jax.Array],
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    x = level(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    return jnp.exp(jnp.clip(jax.lax.stop_gradient(x), -20, 20))


def _outside(
    name: str,
    ratio: jax.Array,
    low: ScalarLike,
    high: ScalarLike,
    mask: jax.Array,
    aggregate: jaxppo.Aggregator,
) -> dict[str, jaxppo.Metric]:
    return {
        f"{name}_fraction_low": aggregate((ratio < low).astype(ratio.dtype), mask),
        f"{name}_fraction_high": aggregate((ratio > high).astype(ratio.dtype), mask),
    }
