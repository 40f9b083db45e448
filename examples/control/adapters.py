"""Adapters: environments of other JAX libraries, each as an `Environment`.

Two things many interfaces merge are kept apart: an episode that terminated from one
that a time limit cut short, and where a step led from where the next episode starts.
Environments that step on the host are in `hosts.py`.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .environments import Environment, Step


@contextlib.contextmanager
def _implicit_promotion() -> Generator[None]:
    """Others promote dtypes implicitly, which a strict program forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@_implicit_promotion()
def from_gymnax(env: Any, **params: Any) -> Environment:
    """A gymnax environment as an `Environment`; needs gymnax>=1.0.1.

    Args:
        env: a name, such as "Acrobot-v1", or a gymnax environment.
        **params: fields of its `EnvParams` to change: `max_steps_in_episode=100`.

    Returns:
        The environment. A continuous action in [-1, 1] is scaled to the bounds of its
        action space.

    Raises:
        ImportError: gymnax, or something it imports, is not installed.
        ValueError: it does not tell a time limit from a termination, its observation is
            not one array of floats, or its actions are neither discrete nor a bounded
            vector.
    """
    env = _make_gymnax(env) if isinstance(env, str) else env
    _check_tells_time_limits(env)
    env_params = env.default_params
    env_params = env_params.replace(**params) if params else env_params
    name, space = f"from_gymnax: {type(env).__name__}", env.action_space(env_params)
    discrete = hasattr(space, "n")
    if not discrete:
        _check_bounded_vector(name, space)

    @_implicit_promotion()
    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        obs, state = env.reset(key, env_params)
        return _strong(state), obs.astype(jnp.float32)

    @_implicit_promotion()
    def step(key: jax.Array, state: Any, action: jax.Array) -> Step:
        if not discrete:
            unit = (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0
            action = space.low + unit * (space.high - space.low)
        # Not its `step`, which also resets: that is the caller's to do.
        obs, state, reward, terminated, _ = env.step_env(key, state, action, env_params)
        truncated = env.is_truncated(state, env_params) & ~terminated
        obs, reward = obs.astype(jnp.float32), reward.astype(jnp.float32)
        return Step(_strong(state), obs, reward, terminated, truncated)

    return Environment(
        reset,
        step,
        obs_shape=_obs_shape(name, lambda key: env.reset(key, env_params)[0]),
        num_actions=space.n if discrete else None,
        action_size=None if discrete else space.shape[0],
    )


@_implicit_promotion()
def from_brax(
    env: Any,
    episode_length: int = 1000,
    obs_key: str = "state",
    num_starts: int | None = None,
) -> Environment:
    """A brax or MuJoCo Playground environment as an `Environment`.

        from_brax(brax.envs.get_environment("hopper"))
        from_brax(mujoco_playground.registry.load("CheetahRun"), num_starts=256)

    Args:
        env: one environment, not wrapped for training: such wrappers put the next
            episode's start in place of the last observation.
        episode_length: steps after which to truncate; the libraries leave that to
            their wrappers.
        obs_key: what to observe, where an observation is a dictionary.
        num_starts: draw so many starts now, and let a reset choose one of them. Some
            of Playground's resets are many steps of physics, and `rollouts.play` resets
            once a step. (The libraries' wrappers keep one start an environment.) Their
            own randomness is in the start, and comes again with it.

    Returns:
        The environment. Its actions are in [-1, 1], as the libraries have them.

    Raises:
        ValueError: it is wrapped for training, or its observation is not one array of
            floats.
    """
    name = f"from_brax: {type(env).__name__}"
    _check_not_wrapped(name, env)

    def observe(env_state: Any) -> Any:
        if not isinstance(env_state.obs, Mapping):
            return env_state.obs
        if obs_key not in env_state.obs:
            raise ValueError(
                f"{name} observes {sorted(env_state.obs)}, and none is {obs_key!r}. "
                "Fix: choose one of them by obs_key"
            )
        return env_state.obs[obs_key]

    @_implicit_promotion()
    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        env_state = _strong(env.reset(key))
        return (env_state, jnp.int32(0)), observe(env_state).astype(jnp.float32)

    @_implicit_promotion()
    def step(key: jax.Array, state: Any, action: jax.Array) -> Step:
        del key  # where a step is random, the key is in their state
        before, time = state
        before = jax.tree.map(lambda x: x, before)  # they write into its dictionaries
        after = _strong(env.step(before, jnp.clip(action, -1.0, 1.0)))
        terminated, time = after.done.astype(bool), time + 1
        return Step(
            (after, time),
            observe(after).astype(jnp.float32),
            after.reward.astype(jnp.float32),
            terminated,
            (time >= episode_length) & ~terminated,
        )

    obs_shape = _obs_shape(name, lambda key: observe(env.reset(key)))
    starts = reset if num_starts is None else _one_of(num_starts, reset)
    return Environment(starts, step, obs_shape, action_size=env.action_size)


def _one_of(number: int, reset: Callable[[jax.Array], Any]) -> Any:
    keys = jax.random.split(jax.random.key(0), number)
    drawn = jax.jit(jax.vmap(reset))(keys)

    def choose(key: jax.Array) -> Any:
        index = jax.random.randint(key, (), 0, number)
        return jax.tree.map(lambda x: x[index], drawn)

    return choose


def _strong(tree: Any) -> Any:
    """Without weak types, which a step may drop: `scan` and `jit` want them to stay."""

    def strong(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.astype(x.dtype)

    return jax.tree.map(strong, tree)


def _obs_shape(name: str, first_obs: Callable[[jax.Array], Any]) -> tuple[int, ...]:
    obs = jax.eval_shape(first_obs, jax.random.key(0))
    if isinstance(obs, jax.ShapeDtypeStruct):
        if jnp.issubdtype(obs.dtype, jnp.floating) or obs.dtype == bool:
            return obs.shape
        obs = f"{obs.dtype}{list(obs.shape)}"
    raise ValueError(
        f"{name} observes {obs}, not one array of floats. Only its author knows what "
        "an integer stands for: an index, a count, a pixel. Fix: a subclass that "
        "returns floats, one-hot if it is an index"
    )


def _make_gymnax(name: str) -> Any:
    try:
        import gymnax
    except ImportError as error:
        raise ImportError(
            f"from_gymnax({name!r}) could not import gymnax ({error}). "
            'Fix: pip install "jaxppo[gymnax]"'
        ) from error
    return gymnax.make(name)[0]


def _check_tells_time_limits(env: Any) -> None:
    if not hasattr(env, "is_truncated"):
        raise ValueError(
            f"from_gymnax: {type(env).__name__} has no is_truncated, which gymnax has "
            "since 1.0.1. The older API merges time limits with terminations in one "
            "`done`, so a value function would learn that nothing follows a time "
            'limit. Fix: pip install "gymnax>=1.0.1", which needs jax<0.12'
        )


def _check_bounded_vector(name: str, space: Any) -> None:
    box = hasattr(space, "low") and len(space.shape) == 1
    if not box or not np.isfinite(space.low + space.high).all():
        raise ValueError(
            f"{name} has actions {space}: neither discrete nor a vector with bounds to "
            "scale [-1, 1] to"
        )


def _check_not_wrapped(name: str, env: Any) -> None:
    while hasattr(env, "env"):
        kind = type(env).__name__
        if any(word in kind for word in ("AutoReset", "Episode", "Vmap")):
            raise ValueError(
                f"{name} is wrapped for training ({kind}): at an end it returns the "
                "next episode's start, and the last observation is lost. Fix: pass "
                "the environment alone, as brax.envs.get_environment(name) or "
                "mujoco_playground.registry.load(name) return it"
            )
        env = env.env
