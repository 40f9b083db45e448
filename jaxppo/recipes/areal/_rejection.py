"""Weights for `ppo` that correct for the sampler: 0 for what is rejected.

All are pi_old / pi_rollout, without a bound; where its logarithm is infinite or NaN
the weight is 1. AReaL's default is not to correct at all, and `upper` 5 if it does.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def reject_tokens_by_ratio(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    upper: ScalarLike = 5.0,
    lower: ScalarLike = -math.inf,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's ratio, 0 where it is not in [lower, upper].

    AReaL 1.0.4, functional.py `apply_rejection_sampling`: level "token", action "mask",
    metric "ratio", its defaults.
    """
    x, drift = _drift(old_log_probs, rollout_log_probs, mask)
    inside = _inside(jnp.exp(x), mask, lower, upper)
    return _rejected(jnp.exp(x), drift, inside, mask)


def reject_tokens_by_kl(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    upper: ScalarLike = 5.0,
    lower: ScalarLike = -math.inf,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k3,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's ratio, 0 where an estimate of KL is not in [lower, upper].

    AReaL 1.0.4, functional.py `apply_rejection_sampling`: level "token", action "mask",
    metric "kl_k1", "kl_k2" or "kl_k3". Fault: k1 and k3 are of log pi_old - log
    pi_rollout, right on samples of pi_old, but these are the sampler's (and not the
    r - log r - 1 that its help describes). Use `jaxppo.approx_kl_k3` instead.
    """
    x, drift = _drift(old_log_probs, rollout_log_probs, mask)
    inside = _inside(estimator(drift), mask, lower, upper)
    return _rejected(jnp.exp(x), drift, inside, mask)


def reject_sequences_by_ratio(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    upper: ScalarLike = 5.0,
    lower: ScalarLike = -math.inf,
    over_time: Callable[..., jax.Array] = jaxppo.masked_mean,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each sequence's geometric mean, 0 where exp(over_time(x)) is not in bounds.

    AReaL 1.0.4, functional.py `apply_rejection_sampling`: level "sequence", action
    "mask", metric "ratio"; agg "mean", or "sum" or "max" (`over_time` is
    `jaxppo.masked_sum` or `jaxppo.masked_max`), of log-ratios. The weight is always the
    mean's.
    """
    x, drift = _drift(old_log_probs, rollout_log_probs, mask)
    inside = _inside(jnp.exp(_rows(over_time, x, mask)), mask, lower, upper)
    ratio = jnp.exp(_rows(jaxppo.masked_mean, x, mask))
    return _rejected(jnp.broadcast_to(ratio, x.shape), drift, inside, mask)


def reject_sequences_by_kl(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    upper: ScalarLike = 5.0,
    lower: ScalarLike = -math.inf,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k3,
    over_time: Callable[..., jax.Array] = jaxppo.masked_mean,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's ratio, 0 in sequences whose KL is not in [lower, upper].

    AReaL 1.0.4, functional.py `apply_rejection_sampling`: level "sequence", action
    "mask", metric "kl_k1", "kl_k2" or "kl_k3", over time the mean, the sum or the
    maximum. Fault: as in `reject_tokens_by_kl`.
    """
    x, drift = _drift(old_log_probs, rollout_log_probs, mask)
    inside = _inside(_rows(over_time, estimator(drift), mask), mask, lower, upper)
    return _rejected(jnp.exp(x), drift, inside, mask)


def clamp_tokens(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    upper: ScalarLike = 5.0,
    lower: ScalarLike = 0.0,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each token's ratio, held in [lower, upper].

    AReaL 1.0.4, functional.py `apply_rejection_sampling`: level "token", action
    "clamp".
    """
    x, drift = _drift(old_log_probs, rollout_log_probs, mask)
    held = jnp.clip(jnp.exp(x), lower, upper)
    return _clamped(held, jnp.exp(x), drift, mask)


def clamp_sequences_by_ratio(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    upper: ScalarLike = 5.0,
    lower: ScalarLike = 0.0,
    over_time: Callable[..., jax.Array] = jaxppo.masked_mean,
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """Each sequence's geometric mean, held where exp(over_time(x)) is out of bounds.

    AReaL 1.0.4, functional.py `apply_rejection_sampling`: level "sequence", action
    "clamp", metric "ratio". With the mean over time: held in [lower, upper].
    """
    x, drift = _drift(old_log_probs, rollout_log_probs, mask)
    ratio = jnp.exp(_rows(jaxppo.masked_mean, x, mask))
    ratio = jnp.broadcast_to(ratio, x.shape)
    inside = _inside(jnp.exp(_rows(over_time, x, mask)), mask, lower, upper)
    held = jnp.where(inside, ratio, jnp.clip(ratio, lower, upper))
    return _clamped(held, ratio, drift, mask)


def _drift(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """From the sampler to the trainer, constant: 0 where not finite; as it is."""
    old_log_probs = jax.lax.stop_gradient(old_log_probs)
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    return jnp.where(jnp.isfinite(x), x, 0), x


def _rows(
    over_time: Callable[..., jax.Array], x: jax.Array, mask: jax.Array
) -> jax.Array:
    """One number for each sequence, `(batch, 1)`."""
    return over_time(x, mask, axis=-1, keepdims=True)


def _inside(
    statistic: jax.Array, mask: jax.Array, lower: ScalarLike, upper: ScalarLike
) -> jax.Array:
    """The mask's tokens within bounds; NaN is not."""
    return mask.astype(bool) & (statistic >= lower) & (statistic <= upper)


def _rejected(
    ratio: jax.Array, drift: jax.Array, inside: jax.Array, mask: jax.Array
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    weights = jnp.where(inside, ratio, 0)
    return weights, _metrics(weights, drift, ~inside, mask)


def _clamped(
    held: jax.Array, ratio: jax.Array, drift: jax.Array, mask: jax.Array
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    weights = jnp.where(mask, held, 0)
    return weights, _metrics(weights, drift, held != ratio, mask)


def _metrics(
    weights: jax.Array, drift: jax.Array, filtered: jax.Array, mask: jax.Array
) -> dict[str, jaxppo.Metric]:
    kept = mask.astype(bool) & (weights > 0)
    return {
        "behave_imp_weight": jaxppo.token_mean(weights, kept),
        "behave_approx_kl": jaxppo.token_mean(drift, kept),
        "rs_filtered_fraction": jaxppo.token_mean(filtered.astype(drift.dtype), mask),
    }
