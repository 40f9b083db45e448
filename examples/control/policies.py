"""Actor and critic in Flax NNX, and what to do with the actor's outputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import jaxppo

from .environments import Environment


class Policy(NamedTuple):
    """How an actor's outputs become actions."""

    num_outputs: int
    sample: Callable[[jax.Array, jax.Array], jax.Array]  # key, outputs -> actions
    log_prob: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    # outputs, actions -> (log_probs, entropy)
    to_env: Callable[[jax.Array], jax.Array] = lambda action: action


def policy_for(env: Environment) -> Policy:
    """Categorical for discrete actions, a tanh-squashed normal for continuous ones."""
    if env.num_actions is not None:
        return Policy(env.num_actions, jax.random.categorical, jaxppo.categorical)

    size = env.action_size
    assert size is not None

    def split(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        return outputs[..., :size], jnp.clip(outputs[..., size:], -5, 2)

    def sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
        mean, log_std = split(outputs)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + jnp.exp(log_std) * noise

    def log_prob(outputs: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jaxppo.tanh_normal(*split(outputs), actions)

    # The action kept is the one before tanh, which tanh would lose at its ends.
    return Policy(2 * size, sample, log_prob, jnp.tanh)


def mlp(sizes: list[int], last_gain: float, rngs: nnx.Rngs) -> nnx.Sequential:
    """Dense layers with tanh between them, orthogonal as in PPO's usual recipe."""
    gains = [2**0.5] * (len(sizes) - 2) + [last_gain]
    layers: list[Callable] = []
    for i, gain in enumerate(gains):
        layers.append(
            nnx.Linear(
                sizes[i],
                sizes[i + 1],
                kernel_init=nnx.initializers.orthogonal(gain),
                rngs=rngs,
            )
        )
        layers.append(nnx.tanh)
    return nnx.Sequential(*layers[:-1])


class ActorCritic(nnx.Module):
    """Two separate networks: neither's gradient disturbs the other."""

    def __init__(
        self, obs_size: int, outputs: int, hidden: tuple[int, ...], rngs: nnx.Rngs
    ):
        """Small last layer for the actor, so that it starts near uniform."""
        self.actor = mlp([obs_size, *hidden, outputs], 0.01, rngs)
        self.critic = mlp([obs_size, *hidden, 1], 1.0, rngs)

    def values(self, obs: jax.Array) -> jax.Array:
        """The critic's value of each observation."""
        return self.critic(obs)[..., 0]
