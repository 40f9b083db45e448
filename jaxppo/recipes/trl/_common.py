"""What the policy losses share: the two-sided clip, and what is logged of it."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo

# Sequences weigh the same, and those without a token count.
row_mean = jaxppo.all_rows(jaxppo.sequence_mean)


def two_sided(
    log_ratio: jax.Array,
    advantages: jax.Array,
    *,
    clip_eps: ScalarLike,
    clip_eps_high: ScalarLike | None,
    delta: ScalarLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """-min(min(r, delta) A, clip(r, 1 - eps, 1 + high) A), and 1 where it is clipped.

    One clip does it, for every delta: below min(1 + high, delta) where A > 0, below
    max(1 + high, delta) where A < 0. The fractions, below and above, are of min(r,
    delta).
    """
    high = clip_eps if clip_eps_high is None else clip_eps_high
    per_token = jaxppo.clipped_surrogate(
        log_ratio,
        advantages,
        clip_eps=clip_eps,
        clip_eps_high=jnp.minimum(high, delta - 1),
        dual_clip=jnp.maximum(delta, 1 + high),
    )
    lower = jaxppo.clip_fraction_lower(log_ratio, advantages, clip_eps=clip_eps)
    upper = jaxppo.clip_fraction_upper(log_ratio, advantages, clip_eps=high)
    return per_token, lower, jnp.where(jnp.greater(delta, 1 + high), upper, 0)


def clip_ratios(
    lower: jax.Array, upper: jax.Array, mask: jax.Array
) -> dict[str, jaxppo.Metric]:
    """Means over tokens, and the extrema of the means of rows with a token."""
    rows = jnp.any(mask, -1)
    lowest = -jaxppo.masked_max(-jaxppo.masked_mean(lower, mask, axis=-1), rows)
    highest = jaxppo.masked_max(jaxppo.masked_mean(upper, mask, axis=-1), rows)
    metrics: dict[str, jaxppo.Metric] = {
        "clip_ratio/low_mean": jaxppo.token_mean(lower, mask),
        "clip_ratio/low_min": jaxppo.Min(lowest),
        "clip_ratio/high_mean": jaxppo.token_mean(upper, mask),
        "clip_ratio/high_max": jaxppo.Max(highest),
        "clip_ratio/region_mean": jaxppo.token_mean(lower + upper, mask),
    }
    return jax.lax.stop_gradient(metrics)
