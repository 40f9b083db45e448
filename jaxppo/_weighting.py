"""Policy terms of the form: constant weight times log-probability."""

import jax

from . import _checks
from ._types import Mask, PerSequence, PerToken


def policy_gradient(
    log_probs: PerToken, advantages: PerSequence, mask: Mask | None = None
) -> PerToken:
    """REINFORCE per token: -A log pi (Williams, 1992).

    Args:
      log_probs: log pi of the sampled actions, nats, differentiated; any shape
        `(*batch, time)`.
      advantages: the same shape, or `(*batch, 1)`; constant.
      mask: log_probs' shape, bool or integer, nonzero counts.

    Returns:
      Losses of log_probs' shape, in float32 at least, 0 under the mask.

    Raises:
      TypeError: an array is not floating point, or the mask is.
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp, jaxppo
      >>> jaxppo.policy_gradient(jnp.array([-0.5, -2.0]), jnp.array([2.0, -1.0]))
      Array([ 1., -2.], dtype=float32)
    """
    log_probs, advantages = _checks.arrays(
        "policy_gradient",
        mask,
        per_sequence=("advantages",),
        log_probs=log_probs,
        advantages=advantages,
    )
    return -jax.lax.stop_gradient(advantages) * log_probs
