"""Running mean and variance, to scale observations and rewards by.

Those of observations stay as they are from the first step of a rollout to the last
minibatch of its update, so that the policy that learns sees what the one that acted
saw: the ratio of the first minibatch is 1. What a rollout showed is counted after that.
Rewards are scaled once, when an update begins, with their own rollout counted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxppo


class Statistics(NamedTuple):
    """Of what was seen so far, element by element."""

    mean: jax.Array
    variance: jax.Array
    count: jax.Array


def nothing(shape: tuple[int, ...] = ()) -> Statistics:
    """Of nothing: scaling by it changes nothing."""
    return Statistics(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))


def updated(old: Statistics, x: jax.Array, mask: jax.Array | None = None) -> Statistics:
    """With more of it, along all leading axes (Chan et al., 1979)."""
    axes = tuple(range(x.ndim - old.mean.ndim))
    counted = jnp.ones(x.shape[: len(axes)], bool) if mask is None else mask
    where = jnp.expand_dims(counted, range(len(axes), x.ndim))
    new = jnp.sum(counted.astype(x.dtype))
    mean = jnp.sum(jnp.where(where, x, 0), axes) / jnp.maximum(new, 1)
    squares = jnp.sum(jnp.where(where, (x - mean) ** 2, 0), axes)
    count = old.count + new
    share = new / jnp.maximum(count, 1)
    between = old.count * share * (mean - old.mean) ** 2
    variance = (old.count * old.variance + squares + between) / jnp.maximum(count, 1)
    return Statistics(
        old.mean + share * (mean - old.mean),
        jnp.where(count > 0, variance, old.variance),
        count,
    )


def scaled(x: jax.Array, of: Statistics) -> jax.Array:
    """Of mean 0 and variance 1, within +-10, as in Baselines' VecNormalize."""
    return by_deviation(x - of.mean, of)


def by_deviation(x: jax.Array, of: Statistics) -> jax.Array:
    """Over the deviation, within +-10. Rewards get this alone: their sign stays."""
    return jnp.clip(x * jax.lax.rsqrt(of.variance + 1e-8), -10.0, 10.0)


def discounted(
    rewards: jax.Array, ended: jax.Array, so_far: jax.Array, gamma: float
) -> tuple[jax.Array, jax.Array]:
    """The discounted sum of past rewards at each step, and after the last.

    Args:
        rewards: `(num_envs, num_steps)`.
        ended: where an episode ended.
        so_far: after the last rollout, `(num_envs,)`.
        gamma: what a reward loses a step.
    """
    backwards = lambda x: jnp.flip(x, -1)
    going_on = jnp.concatenate([jnp.ones_like(ended[:, :1]), ~ended[:, :-1]], -1)
    sums = jaxppo.discounted_returns(
        backwards(rewards),
        backwards(gamma * going_on.astype(rewards.dtype)),
        bootstrap_value=so_far,
    )
    sums = backwards(sums)
    return sums, jnp.where(ended[:, -1], 0, sums[:, -1])
