"""Rollout correction: weights, rejection, and what verl logs of them.

Each returns its metrics, too. Means over rows count all rows, as there. A standard
deviation or a sample size does not add up over microbatches: it is a `Mean` of one.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

Metrics = dict[str, jaxppo.Metric]
PREFIX = "rollout_corr/rollout_"


def token_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    cap: ScalarLike = 2.0,
) -> tuple[jax.Array, Metrics]:
    """TIS per token: min(exp(log pi_old - log pi_rollout), cap).

    verl 0.9.1, `compute_rollout_correction_weights("token")`, bounded at exp(20).
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)
    weights = jnp.where(mask, jaxppo.truncated_weights(x, cap=cap), 0)
    return weights, _token_metrics(weights, jnp.exp(x), mask, 1 / cap, cap)


def token_band_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.5,
    high: ScalarLike = 5.0,
) -> tuple[jax.Array, Metrics]:
    """IcePop per token: the ratio inside [low, high], 0 outside.

    verl 0.9.1, `compute_rollout_correction_weights("token", "low_high")`.
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)
    weights = jnp.where(mask, jaxppo.band_weights(x, low=low, high=high), 0)
    metrics = _token_metrics(weights, jnp.exp(x), mask, low, high)
    return weights, metrics | _outside(jnp.exp(x), mask, low, high)


def sequence_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    cap: ScalarLike = 2.0,
) -> tuple[jax.Array, Metrics]:
    """TIS per sequence: the product of its ratios, up to cap, at each of its tokens.

    verl 0.9.1, `compute_rollout_correction_weights("sequence")`.
    """
    x = jaxppo.trajectory_log_ratio(old_log_probs, rollout_log_probs, mask)
    weights = jnp.where(mask, jaxppo.truncated_weights(x, cap=cap), 0)
    return weights, _sequence_metrics(weights, x, mask, 1 / cap, cap)


def sequence_band_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.5,
    high: ScalarLike = 2.0,
) -> tuple[jax.Array, Metrics]:
    """IcePop per sequence: the product of its ratios inside [low, high], 0 outside.

    verl 0.9.1, `compute_rollout_correction_weights("sequence", "low_high")`.
    """
    x = jaxppo.trajectory_log_ratio(old_log_probs, rollout_log_probs, mask)
    weights = jnp.where(mask, jaxppo.band_weights(x, low=low, high=high), 0)
    metrics = _sequence_metrics(weights, x, mask, low, high)
    return weights, metrics | _outside(jnp.exp(x), mask, low, high)


def batch_normalised(weights: jax.Array, mask: jax.Array) -> tuple[jax.Array, Metrics]:
    """Weights of tokens divided by their mean over tokens.

    verl 0.9.1, `compute_rollout_correction_weights(rollout_is_batch_normalize=True)`,
    after truncation. Its other metrics are those of before.
    """
    factor = jaxppo.masked_mean(weights, mask)
    return _divided(weights, factor, mask)


def batch_normalised_sequences(
    weights: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Weights of sequences divided by their mean over sequences that have a token.

    verl 0.9.1, as above with "sequence": a mean over sequences, so that over tokens
    (`jaxppo.normalised_weights`) it is not 1 unless lengths are equal.
    """
    rows = jaxppo.masked_mean(weights, mask, axis=-1)
    return _divided(weights, jaxppo.masked_mean(rows, jnp.any(mask, -1)), mask)


def _divided(
    weights: jax.Array, factor: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Metrics]:
    factor = jnp.where(factor > 1e-8, factor, 1)
    weights = jax.lax.stop_gradient(jnp.where(mask, weights / factor, 0))
    return weights, _named("is_", {"batch_norm_factor": _one(factor)})


def rejection(
    option: str,
    statistic: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike | None = None,
    high: ScalarLike,
) -> tuple[jax.Array, Metrics]:
    """The tokens of the mask whose statistic lies in [low, high].

    verl 0.9.1, `compute_rollout_rejection_mask`; `option`, such as "token_k2", names
    its metrics only. With x = log_ratio(old, rollout, mask), the statistic of
    "token_k1" is -x, of k2 kl_k2(x), of k3 kl_k3(-x); of "seq_sum_", "seq_mean_" and
    "seq_max_" `masked_sum`, `masked_mean` and `masked_max` of it, with axis=-1 and
    keepdims=True. `low` is for k1 only. Fault: k1 is log(pi_rollout / pi_old), but its
    bounds are written as those of pi_old / pi_rollout: they are the wrong way round
    unless one is the other's inverse.
    """
    mask = mask.astype(bool)
    floor = -math.inf if low is None else low
    keep = jaxppo.rejection_mask(statistic, mask, low=floor, high=high)
    name = f"{PREFIX}rs_{option}"
    rejected = mask & ~keep
    metrics = _statistic_metrics(name, statistic, mask, low, high)
    metrics[f"{name}_masked_fraction"] = _mean(rejected, mask)
    rows = jnp.any(mask, -1)
    metrics[f"{name}_seq_masked_fraction"] = _mean(jnp.any(rejected, -1), rows)
    return keep, metrics | _rejected(keep, mask)


def combined(
    mask: jax.Array, *rejections: tuple[jax.Array, Metrics]
) -> tuple[jax.Array, Metrics]:
    """What several `rejection`s of one mask all keep, and the metrics of each.

    verl 0.9.1, `compute_rollout_rejection_mask` with a list of options.
    """
    keep, metrics = mask.astype(bool), {}
    for kept, more in rejections:
        keep, metrics = keep & kept, metrics | more
    return keep, metrics | _rejected(keep, mask)


def off_policy_metrics(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> Metrics:
    """Perplexities, KL estimates and chi-square of trainer and sampler.

    verl 0.9.1, `compute_offpolicy_metrics`. `jaxppo.correction_metrics` is the same
    family, over rows that have a token. Fault: `k3_kl` has no bound on its log-ratio.
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    held = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)
    total = jnp.clip(jaxppo.masked_sum(x, mask, axis=-1), -20, 20)
    old = -jaxppo.masked_mean(old_log_probs, mask, axis=-1)
    rollout = -jaxppo.masked_mean(rollout_log_probs, mask, axis=-1)
    gap = old - rollout
    metrics: Metrics = {
        "training_ppl": _rows(jnp.exp(old)),
        "training_log_ppl": _rows(old),
        "rollout_ppl": _rows(jnp.exp(rollout)),
        "rollout_log_ppl": _rows(rollout),
        "kl": jaxppo.token_mean(-x, mask),
        "k3_kl": jaxppo.token_mean(jaxppo.kl_k3(-x), mask),
        "log_ppl_diff": _rows(gap),
        "log_ppl_abs_diff": _rows(jnp.abs(gap)),
        "log_ppl_diff_max": jaxppo.Max(jnp.max(gap)),
        "log_ppl_diff_min": jaxppo.Min(jnp.min(gap)),
        "ppl_ratio": _rows(jnp.exp(gap)),
        "chi2_token": jaxppo.token_mean(jnp.exp(2 * held) - 1, mask),
        "chi2_seq": _rows(jnp.exp(2 * total) - 1),
    }
    return {f"rollout_corr/{name}": x for name, x in metrics.items()}


def _token_metrics(
    weights: jax.Array,
    raw: jax.Array,
    mask: jax.Array,
    low: ScalarLike,
    high: ScalarLike,
) -> Metrics:
    metrics: Metrics = {
        "ratio_fraction_high": _mean(raw > high, mask),
        "ratio_fraction_low": _mean(raw < low, mask),
        "max": jaxppo.Max(jaxppo.masked_max(weights, mask)),
        "min": jaxppo.Min(-jaxppo.masked_max(-weights, mask)),
    }
    return _named("is_", metrics) | _weight_metrics(weights, raw, mask, low, high)


def _sequence_metrics(
    weights: jax.Array,
    x: jax.Array,
    mask: jax.Array,
    low: ScalarLike,
    high: ScalarLike,
) -> Metrics:
    total = jaxppo.masked_mean(x, mask, axis=-1)  # the same at each token
    metrics: Metrics = {
        "ratio_fraction_high": _rows(total > jnp.log(high)),
        "ratio_fraction_low": _rows(total < jnp.log(low)),
        "max": jaxppo.Max(jnp.exp(jnp.max(total))),
        "min": jaxppo.Min(jnp.exp(jnp.min(total))),
    }
    more = _weight_metrics(weights, jnp.exp(x), mask, low, high)
    return _named("is_", metrics) | more


def _weight_metrics(
    weights: jax.Array,
    raw: jax.Array,
    mask: jax.Array,
    low: ScalarLike,
    high: ScalarLike,
) -> Metrics:
    rows = jaxppo.masked_mean(weights, mask, axis=-1)
    raw_rows = jaxppo.masked_mean(raw, mask, axis=-1)
    held = jnp.minimum(weights, high)
    mean = jaxppo.masked_mean(held, mask)
    square = jaxppo.masked_mean((held / (mean + 1e-8)) ** 2, mask)
    metrics: Metrics = {
        "mean": jaxppo.token_mean(weights, mask),
        "std": _one(jnp.sqrt(jaxppo.masked_variance(held, mask))),
        "eff_sample_size": _one(1 / square),
        "seq_mean": _rows(rows),
        "seq_std": _one(jnp.sqrt(jaxppo.masked_variance(rows, ddof=1))),
        "seq_max": jaxppo.Max(jnp.max(rows)),
        "seq_min": jaxppo.Min(jnp.min(rows)),
        "seq_max_deviation": jaxppo.Max(jnp.max(jnp.abs(rows - 1))),
        "seq_fraction_high": _rows(raw_rows > high),
        "seq_fraction_low": _rows(raw_rows < low),
    }
    return _named("is_", metrics)


def _statistic_metrics(
    name: str,
    statistic: jax.Array,
    mask: jax.Array,
    low: ScalarLike | None,
    high: ScalarLike,
) -> Metrics:
    per_token = jnp.broadcast_to(statistic, mask.shape)
    whole = statistic.shape != mask.shape  # one for each sequence
    rows, valid = jaxppo.masked_mean(per_token, mask, axis=-1), jnp.any(mask, -1)
    x, keep = (rows, valid) if whole else (per_token, mask)
    floor = 0.0 if low is None else low
    below = -math.inf if low is None else low
    held = jnp.clip(per_token, floor, high)
    metrics: Metrics = {
        "mean": jaxppo.token_mean(per_token, mask),
        "max": jaxppo.Max(jaxppo.masked_max(x, keep)),
        "min": jaxppo.Min(-jaxppo.masked_max(-x, keep)),
        "fraction_high": _mean(x > high, keep),
        "fraction_low": _mean(x < below, keep),
        "std": _one(jnp.sqrt(jaxppo.masked_variance(held, mask))),
        "seq_mean": jaxppo.token_mean(rows, valid),
        "seq_std": _one(jnp.sqrt(jaxppo.masked_variance(rows, valid, ddof=1))),
        "seq_max": jaxppo.Max(jaxppo.masked_max(rows, valid)),
        "seq_min": jaxppo.Min(-jaxppo.masked_max(-rows, valid)),
        "seq_max_deviation": jaxppo.Max(jaxppo.masked_max(jnp.abs(rows), valid)),
        "seq_fraction_high": _mean(rows > high, valid),
        "seq_fraction_low": _mean(rows < below, valid),
    }
    return {f"{name}_{metric}": x for metric, x in metrics.items()}


def _outside(
    raw: jax.Array, mask: jax.Array, low: ScalarLike, high: ScalarLike
) -> Metrics:
    return _named("is_", {"oob_ratio": _mean((raw < low) | (raw > high), mask)})


def _rejected(keep: jax.Array, mask: jax.Array) -> Metrics:
    rejected = mask.astype(bool) & ~keep
    metrics: Metrics = {
        "masked_fraction": _mean(rejected, mask),
        "seq_masked_fraction": _rows(jnp.any(rejected, -1)),
    }
    return _named("rs_", metrics)


def _named(kind: str, metrics: Metrics) -> Metrics:
    return {f"{PREFIX}{kind}{name}": x for name, x in metrics.items()}


def _mean(x: jax.Array, mask: jax.Array) -> jaxppo.Mean:
    return jaxppo.token_mean(x.astype(jnp.float32), mask)


def _rows(x: jax.Array) -> jaxppo.Mean:
    return jaxppo.token_mean(x.astype(jnp.float32) if x.dtype == bool else x)


def _one(x: jax.Array) -> jaxppo.Mean:
    return jaxppo.Mean(x, jnp.ones_like(x))
