"""What the methods report: how far the policy has moved, and what holds it."""

import jax
from jaxtyping import ScalarLike

import jaxppo


def moved(log_ratio: jax.Array, mask: jax.Array | None) -> dict[str, jaxppo.Metric]:
    """How far the policy has moved from the one that sampled, by `log_ratio`'s tokens.

    `jaxppo.learner` may stop at this `approx_kl`, which a log-ratio of sequences (its
    mean, or sum) does not give.
    """
    x = log_ratio
    per_token = {
        "approx_kl": jaxppo.approx_kl_k3(x),
        "approx_kl_k1": jaxppo.approx_kl_k1(x),
        "bound_fraction": jaxppo.bound_fraction(x),
    }
    extrema = {"ratio_max": jaxppo.ratio_max(x, mask)}
    extrema |= {"ratio_min": jaxppo.ratio_min(x, mask)}
    return report(mask, **per_token) | extrema


def clipped(
    log_ratio: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None,
    low: ScalarLike,
    high: ScalarLike,
) -> dict[str, jaxppo.Metric]:
    """The same, and how often the ratio is out of [1 - low, 1 + high]."""
    return moved(log_ratio, mask) | outside(log_ratio, advantages, mask, low, high)


def outside(
    log_ratio: jax.Array,
    advantages: jax.Array,
    mask: jax.Array | None,
    low: ScalarLike,
    high: ScalarLike,
) -> dict[str, jaxppo.Metric]:
    """How often, alone: for a ratio that is not the tokens', of a sequence say."""
    x = log_ratio
    per_token = {
        "clip_fraction": jaxppo.clip_fraction(x, clip_eps=low, clip_eps_high=high),
        "clip_fraction_lower": jaxppo.clip_fraction_lower(x, advantages, clip_eps=low),
        "clip_fraction_upper": jaxppo.clip_fraction_upper(x, advantages, clip_eps=high),
    }
    return report(mask, **per_token)


def report(mask: jax.Array | None, **per_token: jax.Array) -> dict[str, jaxppo.Metric]:
    """Token means of more terms, without gradient."""
    return jax.lax.stop_gradient(
        {name: jaxppo.token_mean(x, mask) for name, x in per_token.items()}
    )
