"""Actor and critic in Flax NNX: two networks, so that neither disturbs the other."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

orthogonal = nnx.initializers.orthogonal

Memory = jax.Array | None
"""`(*batch, memory)`, of a network that has one."""


class Network(nnx.Module):
    """Dense layers, then a memory if it is to have one, then a linear head.

    Orthogonal matrices, as PPO is usually started with: of gain sqrt(2) but for the
    head's. `num_free` outputs, the last, are parameters of their own.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        num_outputs: int,
        *,
        hidden: tuple[int, ...],
        memory: int = 0,
        head_gain: float = 1.0,
        num_free: int = 0,
        activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
        rngs: nnx.Rngs,
    ):
        """Draw the parameters."""
        sizes = [math.prod(obs_shape), *hidden]
        dense = [
            nnx.Linear(a, b, kernel_init=orthogonal(2**0.5), rngs=rngs)
            for a, b in pairwise(sizes)
        ]
        self.dense = nnx.List(dense)
        self.memory = nnx.GRUCell(sizes[-1], memory, rngs=rngs) if memory else None
        self.head = nnx.Linear(
            memory or sizes[-1],
            num_outputs - num_free,
            kernel_init=orthogonal(head_gain),
            rngs=rngs,
        )
        self.free = nnx.Param(jnp.zeros(num_free)) if num_free else None
        self.obs_ndim, self.activation = len(obs_shape), activation

    def start(self, num_envs: int) -> Memory:
        """What it remembers before anything was seen."""
        if self.memory is None:
            return None
        return jnp.zeros((num_envs, self.memory.hidden_features))

    def __call__(
        self, obs: jax.Array, memory: Memory, first: jax.Array
    ) -> tuple[jax.Array, Memory]:
        """Outputs of a step, and what it remembers after.

        Args:
            obs: `(*batch, *obs_shape)`.
            memory: `(*batch, memory)`.
            first: `(*batch)` bool, where an episode starts: what was is forgotten.
        """
        x = self.encode(obs)
        if memory is not None:
            memory, x = self.remember(memory, x, first)
        return self.decode(x), memory

    def along(
        self, obs: jax.Array, memory: Memory, first: jax.Array
    ) -> tuple[jax.Array, Memory]:
        """Outputs and memories along `(batch, time, ...)`, from a first memory."""
        x = self.encode(obs)
        if memory is None:
            return self.decode(x), None
        time_first = lambda x: jnp.swapaxes(x, 0, 1)

        def step(memory: jax.Array, now: tuple[jax.Array, jax.Array]):
            memory, _ = self.remember(memory, *now)
            return memory, memory

        _, memories = jax.lax.scan(step, memory, (time_first(x), time_first(first)))
        memories = time_first(memories)
        return self.decode(memories), memories

    def encode(self, obs: jax.Array) -> jax.Array:
        """The dense layers."""
        x = obs.reshape(*obs.shape[: obs.ndim - self.obs_ndim], -1)
        for layer in self.dense:
            x = self.activation(layer(x))
        return x

    def remember(
        self, memory: jax.Array, x: jax.Array, first: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One step of the memory, which is also its output."""
        assert self.memory is not None
        return self.memory(jnp.where(first[..., None], 0, memory), x)

    def decode(self, x: jax.Array) -> jax.Array:
        """The head."""
        outputs = self.head(x)
        if self.free is None:
            return outputs
        free = jnp.broadcast_to(self.free[...], (*outputs.shape[:-1], self.free.size))
        return jnp.concatenate([outputs, free], -1)


class Networks(NamedTuple):
    """They share nothing, so that neither's gradient disturbs the other."""

    actor: Network
    critic: Network
