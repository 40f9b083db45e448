"""Correction for the sampler, of `utils/train_infer_corrections.py`.

The level is the log-ratio's: `jaxppo.log_ratio(old_log_probs, rollout_log_probs, mask,
max_abs=math.inf)` for "token", `sequence_log_ratio` for "geometric",
`trajectory_log_ratio` for "sequence", `segment_log_ratio` for "segment". ROLL's filters
are `jaxppo.rejection_mask` of exp(that), or of `probability_difference`, with the
mask it returns as the mask of the loss; "token-mean" ignores it (`ppo_token_mean`).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def is_weights(
    log_ratio: jax.Array, mask: jax.Array, *, cap: ScalarLike = 1.2
) -> tuple[jax.Array, dict[str, jaxppo.Metric]]:
    """exp(log_ratio) held below `cap`, constant, to multiply a policy loss by.

    ROLL 8eb27cc2, train_infer_corrections.py `compute_train_infer_correction`. ROLL
    counts the weights it holds under the mask, too; here only of tokens.
    """
    held = (jnp.exp(log_ratio) > cap).astype(log_ratio.dtype)
    metrics: dict[str, jaxppo.Metric] = {
        "actor/is_weight_clipfrac": jaxppo.token_mean(held, mask)
    }
    return jaxppo.truncated_weights(log_ratio, cap=cap), jax.lax.stop_gradient(metrics)


def probability_difference(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> jax.Array:
    """pi_old - pi_rollout of each token; its mean or sum over a sequence are levels.

    ROLL 8eb27cc2, train_infer_corrections.py `_compute_all_granularity`. Signed, so
    that a mean near 0 is no agreement: `jaxppo.binary_tv` is its absolute value.
    """
    old = jnp.exp(jnp.where(mask, old_log_probs, 0))
    return jax.lax.stop_gradient(old - jnp.exp(jnp.where(mask, rollout_log_probs, 0)))


def train_infer_metrics(
    old_log_probs: jax.Array, rollout_log_probs: jax.Array, mask: jax.Array
) -> dict[str, jaxppo.Metric]:
    """The ratio and the difference at each of four levels, means over sequences.

    ROLL 8eb27cc2, train_infer_corrections.py `compute_train_infer_correction`.
    """
    pair = old_log_probs, rollout_log_probs, mask
    logs = {
        "token": jaxppo.log_ratio(*pair, max_abs=math.inf),
        "geometric": jaxppo.sequence_log_ratio(*pair, max_abs=math.inf),
        "sequence": jaxppo.trajectory_log_ratio(*pair, max_abs=math.inf),
        "segment": jaxppo.segment_log_ratio(*pair, max_abs=math.inf),
    }
    gap = probability_difference(*pair)
    sums = jaxppo.masked_sum(gap, mask, axis=-1, keepdims=True)
    means = jaxppo.masked_mean(gap, mask, axis=-1, keepdims=True)
    zero = jnp.zeros_like(gap)
    runs = jaxppo.segment_log_ratio(gap, zero, mask)  # the mean of each run
    gaps = {"token": gap, "geometric": means, "sequence": sums, "segment": runs}
    metrics: dict[str, jaxppo.Metric] = {
        f"actor/train_infer_ratio_{level}_mean": jaxppo.sequence_mean(jnp.exp(x), mask)
        for level, x in logs.items()
    }
    for level, x in gaps.items():
        metrics[f"actor/train_infer_diff_{level}_mean"] = jaxppo.sequence_mean(
            jnp.broadcast_to(x, mask.shape), mask
        )
    return jax.lax.stop_gradient(metrics)
