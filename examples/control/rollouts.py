"""Playing: what a policy sees, does and gets, as arrays `(num_envs, num_steps, ...)`.

An environment of two pure functions plays under jit, where everything random is drawn
before the first step: a generator's call inside a loop of small steps costs more than
the step. One on the host (`hosts.py`) fills the same `Rollout`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .environments import Environment
from .networks import Memory
from .policies import Policy

Actor = Callable[[jax.Array, Memory, jax.Array], tuple[jax.Array, Memory]]
"""obs, memory, first -> outputs, memory; all of a leading axis of environments."""


class Rollout(NamedTuple):
    """Steps of several environments side by side."""

    obs: jax.Array  # what was acted on
    first: jax.Array  # bool: it was the first of its episode
    outputs: jax.Array  # of the actor, -inf at actions that were not legal
    actions: jax.Array
    reward: jax.Array
    terminated: jax.Array  # bool: nothing is left to earn
    truncated: jax.Array  # bool: a time limit cut the episode; never with `terminated`
    final_obs: jax.Array  # where the step led, before any reset
    mask: jax.Array  # bool: False where nothing was done, or something broke


class Playing(NamedTuple):
    """Environments between two rollouts."""

    env_state: Any  # None on a host, as is obs
    obs: Any  # (num_envs, *obs_shape)
    first: jax.Array  # (num_envs,)
    memory: Memory  # of the actor


class Episodes(NamedTuple):
    """What episodes have come to."""

    returns: jax.Array
    lengths: jax.Array  # float32


def start(env: Environment, num_envs: int, memory: Memory, key: jax.Array) -> Playing:
    """Fresh episodes."""
    env_state, obs = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    return Playing(env_state, obs, jnp.ones(num_envs, bool), memory)


def play(
    env: Environment,
    policy: Policy,
    actor: Actor,
    playing: Playing,
    key: jax.Array,
    num_steps: int,
) -> tuple[Playing, Rollout]:
    """Steps all environments, starting a new episode wherever one ends or breaks."""
    shape = num_steps, len(playing.first)
    reset_key, noise_key, env_key = jax.random.split(key, 3)
    fresh = jax.vmap(jax.vmap(env.reset))(jax.random.split(reset_key, shape))
    noise = policy.noise(noise_key, shape)

    def step(playing: Playing, drawn: Any) -> tuple[Playing, Rollout]:
        fresh, noise, keys = drawn
        seen, env_state, memory = _step(env, policy, actor, playing, noise, keys)
        ended = seen.terminated | seen.truncated
        env_state, obs = where(ended, fresh, (env_state, seen.final_obs))
        return Playing(env_state, obs, ended, memory), seen

    keys = jax.random.split(env_key, shape)
    playing, seen = jax.lax.scan(step, playing, (fresh, noise, keys))
    return playing, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), seen)


def _step(
    env: Environment,
    policy: Policy,
    actor: Actor,
    playing: Playing,
    noise: Any,
    keys: jax.Array,
) -> tuple[Rollout, Any, Memory]:
    """A step of all environments, without resets; their states and memories after."""
    obs = playing.obs
    outputs, memory = actor(obs, playing.memory, playing.first)
    outputs = legal_only(env, obs, outputs)
    actions = policy.sample(outputs, noise)
    after = jax.vmap(env.step)(keys, playing.env_state, policy.to_env(actions))
    bad = broken(obs, after.reward, after.terminated, after.obs)
    seen = Rollout(
        obs=obs,
        first=playing.first,
        outputs=outputs,
        actions=actions,
        reward=after.reward,
        terminated=after.terminated,
        truncated=(after.truncated | bad) & ~after.terminated,
        final_obs=after.obs,
        mask=~bad,
    )
    return seen, after.state, memory


def broken(
    obs: jax.Array, reward: jax.Array, terminated: jax.Array, final_obs: jax.Array
) -> jax.Array:
    """Where an environment gave NaN or inf; what lies behind an end may be anything."""

    def finite(x: jax.Array) -> jax.Array:
        return jnp.all(jnp.isfinite(x), range(reward.ndim, x.ndim))

    return ~(finite(reward) & finite(obs) & (finite(final_obs) | terminated))


def mended(rollout: Rollout) -> Rollout:
    """With zeros where the mask leaves a step out.

    A gradient of 0 times an activation of NaN is NaN: leaving out is not enough.
    """

    def zeroed(x: jax.Array) -> jax.Array:
        keep = jnp.expand_dims(rollout.mask, range(rollout.mask.ndim, x.ndim))
        return jnp.where(keep, x, jnp.zeros_like(x))

    flags = "first", "terminated", "truncated"
    return jax.tree.map(zeroed, rollout)._replace(
        **{name: getattr(rollout, name) for name in flags}
    )


def legal_only(env: Environment, obs: jax.Array, outputs: jax.Array) -> jax.Array:
    """Logits, -inf at the actions that the rules forbid."""
    if env.legal is None:
        return outputs
    return jnp.where(jax.vmap(env.legal)(obs), outputs, -jnp.inf)


def episodes(
    rollout: Rollout, under_way: Episodes
) -> tuple[Episodes, Episodes, jax.Array]:
    """What they come to at each step and after the last, and where one ended."""
    ended = rollout.terminated | rollout.truncated
    time = jnp.arange(ended.shape[1])
    ends = jax.lax.cummax(jnp.where(ended, time, -1), axis=1)
    last = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)), constant_values=-1)

    def since(x: jax.Array, before: jax.Array) -> jax.Array:
        """Sums since the last end, or since before the rollout."""
        total = jnp.cumsum(jnp.where(rollout.mask, x, 0), 1)
        at_last = jnp.take_along_axis(total, jnp.maximum(last, 0), 1)
        return total + jnp.where(last < 0, before[:, None], -at_last)

    here = Episodes(
        since(rollout.reward, under_way.returns),
        since(jnp.ones_like(rollout.reward), under_way.lengths),
    )
    after = jax.tree.map(lambda x: jnp.where(ended[:, -1], 0, x[:, -1]), here)
    return here, after, ended & rollout.mask


def evaluate(
    env: Environment,
    policy: Policy,
    actor: Actor,
    num_envs: int,
    memory: Memory,
    key: jax.Array,
    max_steps: int,
) -> jax.Array:
    """Returns of fresh episodes under the sampled policy, one of each environment.

    An episode that breaks ends there, with what it came to.
    """
    start_key, key = jax.random.split(key)
    playing = start(env, num_envs, memory, start_key)

    def step(carry: Any) -> Any:
        time, playing, returns, ended = carry
        noise_key, env_key = jax.random.split(jax.random.fold_in(key, time))
        noise = policy.noise(noise_key, (num_envs,))
        keys = jax.random.split(env_key, num_envs)
        seen, env_state, memory = _step(env, policy, actor, playing, noise, keys)
        ended = ended | ~seen.mask
        returns = returns + jnp.where(ended, 0, seen.reward)
        ended = ended | seen.terminated | seen.truncated
        playing = Playing(env_state, seen.final_obs, jnp.zeros_like(ended), memory)
        return time + 1, playing, returns, ended

    def going_on(carry: Any) -> jax.Array:
        time, _, _, ended = carry
        return (time < max_steps) & ~jnp.all(ended)

    carry = jnp.int32(0), playing, jnp.zeros(num_envs), jnp.zeros(num_envs, bool)
    return jax.lax.while_loop(going_on, step, carry)[2]


def where(condition: jax.Array, new: Any, old: Any) -> Any:
    """A choice for each environment, of a tree of arrays."""

    def one(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(condition, range(1, new.ndim)), new, old)

    return jax.tree.map(one, new, old)
