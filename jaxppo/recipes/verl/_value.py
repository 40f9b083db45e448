"""The critic's loss."""

import jax
from jaxtyping import ScalarLike

import jaxppo


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip_eps: ScalarLike = 0.5,
    aggregate: jaxppo.Aggregator = jaxppo.token_mean,
) -> tuple[jaxppo.Mean, dict[str, jaxppo.Metric]]:
    """Half the larger of two squared errors: of v, and of v held near v_old.

    verl 0.9.1, `compute_value_loss`; `critic.cliprange_value` is 0.5.
    """
    loss = jaxppo.clipped_value(values, old_values, returns, mask, clip_eps=clip_eps)
    clipped = loss > jaxppo.squared_value(values, returns, mask)
    clipped = clipped.astype(loss.dtype)
    return aggregate(loss, mask), {
        "critic/vf_clipfrac": jaxppo.token_mean(clipped, mask)
    }
