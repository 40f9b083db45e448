"""How an actor's outputs become actions: the distributions of PPO in control.

Drawing is split in two: `noise` of a whole rollout at once, which is one call of the
random number generator, and `sample`, which makes actions of it, step by step.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import jaxppo

from .environments import Environment

Continuous = Literal["tanh_normal", "normal", "beta"]


class Policy(NamedTuple):
    """A distribution over actions; `outputs` are what an actor says of each state."""

    num_outputs: int
    num_free: int  # of them, at the end: parameters that no state changes
    noise: Callable[[jax.Array, tuple[int, ...]], Any]  # key, shape -> noise
    sample: Callable[[jax.Array, Any], jax.Array]  # outputs, noise -> actions
    log_prob: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    # outputs, actions -> (log_probs, entropy)
    kl: Callable[[jax.Array, jax.Array], jax.Array]  # old outputs, outputs -> KL
    to_env: Callable[[jax.Array], jax.Array] = lambda actions: actions


def policy_for(env: Environment, continuous: Continuous = "tanh_normal") -> Policy:
    """Categorical for discrete actions, one for each if there are several."""
    if env.action_size is not None:
        return CONTINUOUS[continuous](env.action_size)
    assert env.num_actions is not None
    if isinstance(env.num_actions, int):
        return categorical(env.num_actions)
    return multi_discrete(env.num_actions)


def categorical(size: int) -> Policy:
    """One of `size` actions; outputs are logits, -inf where an action may not be."""
    return Policy(
        num_outputs=size,
        num_free=0,
        noise=lambda key, shape: jax.random.gumbel(key, (*shape, size)),
        sample=lambda logits, noise: jnp.argmax(logits + noise, -1),
        log_prob=jaxppo.categorical,
        kl=jaxppo.categorical_kl,
    )


def multi_discrete(sizes: tuple[int, ...]) -> Policy:
    """Several actions at once, independent of each other, each below its own size."""
    ends = list(accumulate(sizes, initial=0))

    def parts(logits: jax.Array) -> list[jax.Array]:
        return [logits[..., a:b] for a, b in pairwise(ends)]

    def sample(logits: jax.Array, noise: jax.Array) -> jax.Array:
        return jnp.stack([jnp.argmax(x, -1) for x in parts(logits + noise)], -1)

    def log_prob(logits: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = [
            jaxppo.categorical(x, actions[..., i]) for i, x in enumerate(parts(logits))
        ]
        log_probs, entropy = (sum(x[1:], x[0]) for x in zip(*each, strict=True))
        return log_probs, entropy

    def kl(old: jax.Array, new: jax.Array) -> jax.Array:
        each = map(jaxppo.categorical_kl, parts(old), parts(new))
        return jnp.sum(jnp.stack(list(each), -1), -1)

    noise = categorical(sum(sizes)).noise
    return Policy(sum(sizes), 0, noise, sample, log_prob, kl)


def _halves(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    first, second = jnp.split(outputs, 2, -1)
    return first, second


def normal(size: int) -> Policy:
    """Normal, of a spread that no state changes; the environment clips to its bounds.

    As in Baselines and CleanRL. What was clipped keeps the log-prob it was drawn with.
    """
    return _normal(size, _halves, jaxppo.diagonal_normal)._replace(num_free=size)


def tanh_normal(size: int) -> Policy:
    """Normal, of a spread that depends on the state, squashed into the bounds."""

    def split(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_std = _halves(outputs)
        return mean, jnp.clip(log_std, -5, 2)

    # The action kept is the one before tanh, which tanh would lose at its ends.
    return _normal(size, split, jaxppo.tanh_normal)._replace(to_env=jnp.tanh)


def _normal(
    size: int,
    split: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    log_prob: Callable[..., tuple[jax.Array, jax.Array]],
) -> Policy:
    """What the two have in common; `split` makes mean and log std of outputs."""

    def sample(outputs: jax.Array, noise: jax.Array) -> jax.Array:
        mean, log_std = split(outputs)
        return mean + jnp.exp(log_std) * noise

    return Policy(
        num_outputs=2 * size,
        num_free=0,
        noise=lambda key, shape: jax.random.normal(key, (*shape, size)),
        sample=sample,
        log_prob=lambda outputs, actions: log_prob(*split(outputs), actions),
        kl=lambda old, new: jaxppo.normal_kl(*split(old), *split(new)),
    )


def beta(size: int) -> Policy:
    """Beta on [0, 1], of one mode: both parameters above 1 (Chou et al., 2017)."""

    def split(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha, beta = _halves(1 + jax.nn.softplus(outputs))
        return alpha, beta

    def sample(outputs: jax.Array, keys: jax.Array) -> jax.Array:
        draw = jnp.vectorize(
            lambda key, a, b: jax.random.beta(key, a, b, (size,)),
            signature="(),(n),(n)->(n)",
        )
        # Within the ends, which float32 rounds to, and whose density is 0.
        return jnp.clip(draw(keys, *split(outputs)), 1e-6, 1 - 1e-6)

    return Policy(
        num_outputs=2 * size,
        num_free=0,
        noise=jax.random.split,
        sample=sample,
        log_prob=lambda outputs, actions: jaxppo.beta(*split(outputs), actions),
        kl=lambda old, new: jaxppo.beta_kl(*split(old), *split(new)),
        to_env=lambda actions: 2 * actions - 1,
    )


CONTINUOUS: dict[str, Callable[[int], Policy]] = {
    "tanh_normal": tanh_normal,
    "normal": normal,
    "beta": beta,
}
