"""Advantages, of `utils/functionals.py`."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

import jaxppo


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: ScalarLike = 1.0,
    lambda_: ScalarLike = 0.95,
) -> jaxppo.Advantages:
    """GAE over all places, masked ones included; rewards there are 0.

    ROLL 8eb27cc2, utils/functionals.py `compute_gae_advantage_return` within
    `compute_advantage`. Fault: the critic's values of padding and of tool tokens enter
    the advantages of the tokens before them (its pull request 447). Use
    `jaxppo.gae(..., mask=mask)` instead, which skips them.
    """
    out = jaxppo.gae(jnp.where(mask, rewards, 0), values, gamma, lambda_=lambda_)
    return jaxppo.Advantages(jnp.where(mask, out.advantages, 0), out.returns)


def reinforce_advantages(
    rewards: jax.Array, mask: jax.Array, *, gamma: ScalarLike = 1.0
) -> jaxppo.Advantages:
    """The discounted sum of the rewards to come, which are both advantage and return.

    ROLL 8eb27cc2, utils/functionals.py `compute_reinforce_return`; also its "grpo",
    whose rewards are normalised before (`group_advantages`). Masked places discount
    as they pass.
    """
    returns = jaxppo.discounted_returns(jnp.where(mask, rewards, 0), gamma)
    return jaxppo.Advantages(jnp.where(mask, returns, 0), returns)


def group_advantages(rewards: jax.Array, *, group_size: int) -> jax.Array:
    """(r - mean) / (std + 1e-6), ddof 1, within each group.

    ROLL 8eb27cc2, utils/functionals.py `reward_norm` with "group" for both types (none
    by default). A group of one is 0 here and NaN in ROLL.
    """
    return jaxppo.group_advantages(rewards, group_size=group_size)


def masked_whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-8), ddof 1; as it is with fewer than two tokens.

    ROLL 8eb27cc2, utils/functionals.py `masked_whiten` within `compute_advantage`: off
    by default.
    """
    variance = jaxppo.masked_variance(x, mask, ddof=1)
    white = jaxppo.centred(x, mask) * jax.lax.rsqrt(variance + 1e-8)
    several = jnp.sum(mask.astype(bool), dtype=jnp.int32) > 1
    return jnp.where(several, white, jnp.where(mask, x, 0))
