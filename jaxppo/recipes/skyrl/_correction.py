"""Weights and masks of the policy losses that correct for the sampler.

All are of pi_old / pi_rollout, the log-ratio held within 20 nats. A mask is given to
the losses as a weight, alone or times others:
`weights=jnp.where(keep, weights, 0)`; what is rejected stays in the denominator.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

Masked = tuple[jax.Array, dict[str, jaxppo.Metric]]


def token_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    cap: ScalarLike = 2.0,
) -> Masked:
    """Each token's ratio, at most `cap`.

    SkyRL a9564572, off_policy_correction_utils.py `compute_tis_ratio`, "token".
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)
    capped = jaxppo.token_mean((jnp.exp(x) > cap).astype(x.dtype), mask)
    weights = jaxppo.truncated_weights(x, cap=cap)
    return weights, _logged({"tis_token_clip_high_ratio": capped})


def sequence_weights(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    cap: ScalarLike = 5.0,
) -> Masked:
    """The product of a sequence's ratios, at most `cap`, as `(batch, 1)`.

    SkyRL a9564572, off_policy_correction_utils.py `compute_tis_ratio`, "sequence".
    """
    x = _total(old_log_probs, rollout_log_probs, mask)
    capped = jaxppo.token_mean((jnp.exp(x) > cap).astype(x.dtype))
    weights = jaxppo.truncated_weights(x, cap=cap)
    return weights, _logged({"tis_seq_clip_high_ratio": capped})


def token_mask(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike,
    high: ScalarLike,
) -> Masked:
    """The tokens whose ratio lies in [low, high].

    SkyRL a9564572, off_policy_correction_utils.py `compute_token_mask`; off by default.
    """
    ratio = jnp.exp(jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask))
    keep = jaxppo.rejection_mask(ratio, mask, low=low, high=high)
    rejected = jaxppo.token_mean((~keep).astype(ratio.dtype), mask)
    return keep, _logged({"token_mask_ratio": rejected})


def outlier_mask(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = -math.inf,
    high: ScalarLike = math.inf,
) -> Masked:
    """The sequences all of whose tokens' ratios lie in [low, high].

    SkyRL a9564572, off_policy_correction_utils.py `compute_outlier_token_mask`; off by
    default. It comes first, and what it rejects is not in the statistics of the others.
    """
    mask = mask.astype(bool)
    ratio = jnp.exp(jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask))
    over = jnp.any(mask & (ratio > high), -1, keepdims=True)
    under = jnp.any(mask & (ratio < low), -1, keepdims=True)
    return _without(mask, "outlier_seq", over, under)


def sequence_mask(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.99,
    high: ScalarLike = 1.01,
) -> Masked:
    """The sequences whose ratios' geometric mean lies in [low, high].

    SkyRL a9564572, off_policy_correction_utils.py `compute_sequence_mask`, "geometric".
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    x = jnp.clip(jaxppo.masked_mean(x, mask, axis=-1, keepdims=True), -20, 20)
    over, under = jnp.exp(x) > high, jnp.exp(x) < low
    return _without(mask, "geo_sequence_mask", over, under)


def trajectory_mask(
    old_log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.5,
    high: ScalarLike = 2.0,
) -> Masked:
    """The sequences whose ratios' product lies in [low, high].

    SkyRL a9564572, off_policy_correction_utils.py `compute_sequence_mask`, "product".
    """
    x = _total(old_log_probs, rollout_log_probs, mask)
    over, under = jnp.exp(x) > high, jnp.exp(x) < low
    return _without(mask, "product_sequence_mask", over, under)


def ratio_metrics(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> dict[str, jaxppo.Metric]:
    """Mean and extremes of the tokens' ratios, logged where a correction is on.

    SkyRL a9564572, off_policy_correction_utils.py `compute_off_policy_correction`.
    Fault: in its minimum, and its standard deviation (left out here), a token under the
    mask is a ratio of 0. Here they do not count.
    """
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask)
    return _logged(
        {
            "is_ratio_mean": jaxppo.token_mean(jnp.exp(x), mask),
            "is_ratio_max": jaxppo.ratio_max(x, mask),
            "is_ratio_min": jaxppo.ratio_min(x, mask),
        }
    )


def _total(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    x = jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask, max_abs=math.inf)
    return jnp.clip(jaxppo.masked_sum(x, mask, axis=-1, keepdims=True), -20, 20)


def _without(mask: jax.Array, name: str, over: jax.Array, under: jax.Array) -> Masked:
    """The mask without these sequences, and their shares of all."""
    parts = {"masked": over | under, "over_high": over, "under_low": under}
    return mask.astype(bool) & ~(over | under), {
        f"{name}_{part}_ratio": jaxppo.token_mean(x.astype(jnp.float32))
        for part, x in parts.items()
    }


def _logged(metrics: dict[str, jaxppo.Metric]) -> dict[str, jaxppo.Metric]:
    return jax.lax.stop_gradient(metrics)
