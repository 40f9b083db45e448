"""From rewards of samples to advantages of tokens."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def approx_kl(
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    *,
    estimator: Callable[[jax.Array], jax.Array] = jaxppo.kl_k1,
) -> jax.Array:
    """An estimate of KL(pi || ref) per token, held in [-10, 10]: k1, k2 or k3.

    AReaL 1.0.4, data.py `KLEstimator`; for the rewards. Its k3 has an infinite slope
    where exp(-x) overflows, this one 0.
    """
    x = jaxppo.log_ratio(log_probs, ref_log_probs, mask)
    return jaxppo.bounded_kl(x, estimator=estimator)


def shaped_rewards(
    rewards: jax.Array,
    *,
    bias: float | jax.Array = 0.0,
    scale: float | jax.Array = 1.0,
    reward_clip: float | jax.Array = 20.0,
) -> jax.Array:
    """(r + bias) scale, held in [-20, 20].

    AReaL 1.0.4, actor.py `_compute_advantages`. After it comes `reward_norm`, none by
    default: `leave_one_out`, or `jaxppo.group_advantages(..., eps=1e-5)` for GRPO.
    """
    return jnp.clip((rewards + bias) * scale, -reward_clip, reward_clip)


def token_rewards(
    rewards: jax.Array,
    kl: jax.Array,
    mask: jax.Array,
    *,
    kl_coef: float | jax.Array = 0.1,
) -> jax.Array:
    """-coef KL at each token, plus the sample's reward at its last one.

    AReaL 1.0.4, actor.py `_compute_advantages`; rewards are `(batch,)`, kl is
    `approx_kl(rollout_log_probs, ref_log_probs, mask)`. Fault: with a coefficient (its
    default) but no reference AReaL takes log ref = 0, and pays -0.1 log pi per token:
    for being improbable. Pass zeros for kl instead. Fault: it puts the reward on the
    last token that is not padding, where `gae` forgets it if the mask leaves that token
    out. Here it is on the mask's last.
    """
    mask = mask.astype(bool)
    after = jnp.cumsum(mask[:, ::-1], -1, dtype=jnp.int32)[:, ::-1]
    last = mask & (after == 1)
    score = jnp.where(last, rewards[:, None], 0).astype(kl.dtype)
    return jnp.where(mask, score - kl_coef * kl, 0)


def gae(
    token_rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: ScalarLike = 1.0,
    lambda_: ScalarLike = 1.0,
    bootstrap_value: jax.Array | None = None,
) -> jaxppo.Advantages:
    """GAE that skips masked tokens; not normalised.

    AReaL 1.0.4, actor.py `_compute_advantages`. `bootstrap_value`, `(batch,)`, is the
    value of the last column for answers cut off at full length, else 0. Without a
    critic (GRPO) the values are 0, and advantages the rewards to come.
    """
    return jaxppo.gae(
        token_rewards,
        values,
        gamma,
        lambda_=lambda_,
        bootstrap_value=bootstrap_value,
        mask=mask,
    )


def batch_normalised(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """(A - mean) / (std + 1e-5) over all tokens, ddof 1; 0 under the mask.

    AReaL 1.0.4, data.py `Normalization`: mean and std of level "batch", the defaults.
    AReaL adds up in float64, over all devices.
    """
    return jaxppo.whiten(advantages, mask, ddof=1, eps=1e-5)


def group_normalised(
    advantages: jax.Array, mask: jax.Array, *, group_size: int
) -> jax.Array:
    """(A - mean) / (std + 1e-5) over the tokens of each group, ddof 1.

    AReaL 1.0.4, data.py `Normalization`: mean and std of level "group". Long answers
    weigh more in both. A group of one row keeps its scale (std is taken for 1). Fault:
    rows left over by `group_size` are divided by 0 + 1e-5; they are refused here.
    """
    centred = _centred(advantages, mask, group_size)
    if group_size == 1:
        return centred / (1 + 1e-5)
    whiten = functools.partial(jaxppo.whiten, ddof=1, eps=1e-5)
    grouped = jax.vmap(whiten)(*_groups(advantages, mask, group_size))
    return grouped.reshape(mask.shape)


def group_centred(
    advantages: jax.Array, mask: jax.Array, *, group_size: int
) -> jax.Array:
    """(A - the group's mean) / (std + 1e-5) over all tokens, ddof 1.

    AReaL 1.0.4, data.py `Normalization`: mean of level "group", std of level "batch",
    of what is left of A when its group's mean is subtracted. Fault: rows left over by
    `group_size` keep their mean; they are refused here.
    """
    centred = _centred(advantages, mask, group_size)
    variance = jaxppo.masked_variance(centred, mask, ddof=1)
    return centred / (jnp.sqrt(variance) + 1e-5)


def leave_one_out(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """RLOO's: less the mean of the others of the group; a group of one as it is.

    AReaL 1.0.4, data.py `Normalization` of the rewards: mean of level "group" with
    `mean_leave1out`, no std. Fault: as in `group_centred`.
    """
    return jaxppo.leave_one_out_advantages(
        rewards, group_size=group_size, singleton=1.0
    )


def _groups(
    x: jax.Array, mask: jax.Array, group_size: int
) -> tuple[jax.Array, jax.Array]:
    """The rows of a group, one after the other."""
    shape = (mask.shape[0] // group_size, group_size * mask.shape[1])
    return jnp.broadcast_to(x, mask.shape).reshape(shape), mask.reshape(shape)


def _centred(x: jax.Array, mask: jax.Array, group_size: int) -> jax.Array:
    grouped = jax.vmap(jaxppo.centred)(*_groups(x, mask, group_size))
    return grouped.reshape(mask.shape)
