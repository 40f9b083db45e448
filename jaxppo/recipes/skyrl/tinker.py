"""SkyRL's JAX losses for Tinker, revision a9564572: `skyrl/tinker/loss_fns.py`.

Sums over tokens, no guard on the ratio, bounds of the ratio itself. Fault of all three
with a ratio: what the mask leaves out is masked after `exp`, so that a large log-ratio
in padding gives a finite loss and a NaN gradient. Not here.
"""

import math

import jax
from jaxtyping import ScalarLike

import jaxppo


def cross_entropy(log_probs: jax.Array, mask: jax.Array) -> jaxppo.Mean:
    """-log pi.

    SkyRL a9564572, loss_fns.py `cross_entropy_loss`.
    """
    return jaxppo.token_sum(-log_probs, mask)


def importance_sampling(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
) -> jaxppo.Mean:
    """-r A.

    SkyRL a9564572, loss_fns.py `importance_sampling_loss`.
    """
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    return jaxppo.token_sum(jaxppo.unclipped_surrogate(x, advantages), mask)


def ppo(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.8,
    high: ScalarLike = 1.2,
) -> jaxppo.Mean:
    """-min(r A, clip(r, low, high) A).

    SkyRL a9564572, loss_fns.py `ppo_loss`.
    """
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.clipped_surrogate(
        x, advantages, clip_eps=1 - low, clip_eps_high=high - 1
    )
    return jaxppo.token_sum(loss, mask)


def cispo(
    log_probs: jax.Array,
    rollout_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    low: ScalarLike = 0.8,
    high: ScalarLike = 1.2,
) -> jaxppo.Mean:
    """-sg(clip(r, low, high)) A log pi.

    SkyRL a9564572, loss_fns.py `cispo_loss`.
    """
    x = jaxppo.log_ratio(log_probs, rollout_log_probs, mask, max_abs=math.inf)
    loss = jaxppo.cispo(log_probs, x, advantages, mask, low=low, high=high)
    return jaxppo.token_sum(loss, mask)
