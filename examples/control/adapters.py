"""Adapters: a gymnax environment as an `Environment`, a gymnasium one on the host.

Both keep apart what many interfaces merge: an episode that terminated from one that a
time limit cut short, and the observation a step led to from the one after the reset.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .environments import Environment, Step

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv


@contextlib.contextmanager
def _implicit_promotion() -> Generator[None]:
    """Gymnax promotes dtypes implicitly, which a strict program forbids."""
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
        ValueError: its `step` does not tell a time limit from a termination.
    """
    env = _make_gymnax(env) if isinstance(env, str) else env
    env_params = env.default_params
    env_params = env_params.replace(**params) if params else env_params
    actions = env.action_space(env_params)
    discrete = hasattr(actions, "n")

    @_implicit_promotion()
    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        obs, state = env.reset(key, env_params)
        return state, obs.astype(jnp.float32)

    @_implicit_promotion()
    def step(key: jax.Array, state: Any, action: jax.Array) -> Step:
        if not discrete:
            unit = (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0
            action = actions.low + unit * (actions.high - actions.low)
        values = env.step(key, state, action, env_params)
        _check_six_values(env, values)
        obs, state, reward, terminated, truncated, info = values
        return Step(
            state,
            obs.astype(jnp.float32),
            reward.astype(jnp.float32),
            terminated,
            truncated & ~terminated,  # gymnax may set both
            info["final_observation"].astype(jnp.float32),
        )

    def first_obs(key: jax.Array) -> jax.Array:
        state, obs = reset(key)
        step(key, state, actions.sample(key))  # raises here rather than in training
        return obs

    return Environment(
        reset,
        step,
        obs_shape=jax.eval_shape(first_obs, jax.random.key(0)).shape,
        num_actions=actions.n if discrete else None,
        action_size=None if discrete else actions.shape[0],
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


def _check_six_values(env: Any, values: tuple[Any, ...]) -> None:
    if len(values) != 6:
        raise ValueError(
            f"from_gymnax: step of {type(env).__name__} returns {len(values)} values, "
            "not the six of gymnax>=1.0.1 (obs, state, reward, terminated, truncated, "
            "info). The older five merge time limits with terminations in one `done`, "
            "so a value function would learn that nothing follows a time limit. "
            'Fix: pip install "gymnax>=1.0.1", which needs jax<0.12'
        )


class VectorStep(NamedTuple):
    """What one step of all environments returns: numpy arrays, environments first."""

    obs: np.ndarray  # to act on next
    reward: np.ndarray  # float32
    terminated: np.ndarray  # bool: the episode ended, nothing is left to earn
    truncated: np.ndarray  # bool: a time limit cut it; never with `terminated`
    final_obs: np.ndarray  # where the step led, before any reset
    mask: np.ndarray  # bool: False where the step was only a reset; do not train on it


class GymnasiumVector:
    """A gymnasium `VectorEnv` of any autoreset mode, as one `step` for the host.

    Gymnasium has three ways to start the next episode: NEXT_STEP (its default) spends a
    step on it, which ignores the action and earns nothing; SAME_STEP hides the last
    observation in `infos`; DISABLED leaves it to the caller. Here `step` always returns
    `final_obs`, and a `mask` that is False on the steps NEXT_STEP spent.

    Actions are in gymnasium's units; `gymnasium.wrappers.vector.RescaleAction(envs, -1,
    1)` scales them.
    """

    obs: np.ndarray  # to act on next

    def __init__(self, envs: "VectorEnv", seed: int | None = None) -> None:
        # Before gymnasium 1.4 all vectors of an environment class share their metadata,
        # which tells the mode of the one made last; the attribute is each one's own.
        mode = getattr(envs.unwrapped, "autoreset_mode", None)
        self.envs = envs
        self.mode = (mode or envs.metadata["autoreset_mode"]).name
        self.obs = np.array(envs.reset(seed=seed)[0])
        self._spent = np.zeros(envs.num_envs, bool)  # the next step will only reset

    def step(self, action: np.ndarray) -> VectorStep:
        """Steps every environment, and starts the next episode where one ended."""
        obs, reward, terminated, truncated, infos = self.envs.step(np.asarray(action))
        obs = final_obs = np.array(obs)  # a copy: vectors with copy=False reuse theirs
        ended, mask = terminated | truncated, ~self._spent
        if self.mode == "NEXT_STEP":
            self._spent = ended
        elif ended.any():
            final_obs = obs.copy()
            if self.mode == "SAME_STEP":
                final_obs[ended] = np.stack(list(infos["final_obs"][ended]))
            else:
                obs = np.array(self.envs.reset(options={"reset_mask": ended})[0])
        self.obs = obs
        truncated = truncated & ~terminated
        reward = reward.astype(np.float32)
        return VectorStep(obs, reward, terminated, truncated, final_obs, mask)


def collect(
    env: GymnasiumVector,
    policy: Callable[[np.ndarray], dict[str, Any]],
    num_steps: int,
) -> dict[str, np.ndarray]:
    """Plays `num_steps` steps, going on from where the last call stopped.

    Args:
        env: the environments.
        policy: `obs -> {"action": ..., ...}`; whatever else it returns is kept too,
            such as the log-probabilities and the values.
        num_steps: T.

    Returns:
        Arrays `(T, N, ...)`: what the policy returned, `obs` (what it acted on), and
        the other fields of `VectorStep`.
    """
    rows = []
    for _ in range(num_steps):
        row = {**policy(env.obs), "obs": env.obs}
        rows.append({**env.step(row["action"])._asdict(), **row})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
