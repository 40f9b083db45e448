"""The value loss."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = math.inf,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Half the larger of two squared errors, by sequence, over all rows.

    ROLL 8eb27cc2, base_worker.py `CriticWorker.loss_func`. Unclipped by default. Rows
    without a token count as 0, unlike in the policy's losses. Fault: without a clip
    ROLL's `critic/clipfrac` is the loss; here it is 0.
    """
    mean = jaxppo.all_rows(jaxppo.sequence_mean)
    loss = jaxppo.clipped_value(values, old_values, returns, mask, clip_eps=clip_eps)
    plain = jaxppo.squared_value(values, returns, mask)
    held = jaxppo.bounded_value(values, old_values, returns, mask, clip_eps=clip_eps)
    out = mean(loss, mask)
    metrics: dict[str, jaxppo.Metric] = {
        "critic/loss": out,
        "critic/value": mean(old_values, mask),
        "critic/vpred": mean(values, mask),
        "critic/clipfrac": mean((held > plain).astype(jnp.float32), mask),
        "critic/error": mean(2 * plain, mask),
    }
    return out, jax.lax.stop_gradient(metrics)
