"""Environments that step on the host, outside of jit, in numpy.

    env = GymnasiumVector(gymnasium.make_vec("Hopper-v5", 8), seed=0)
    policy = policies.policy_for(env.spec)
    rollout = collect(env, act, 256, policy.to_env)

`act` is `obs, memory, first -> actions, outputs, memory`; `collect` goes on from where
it last stopped, and what it returns has the fields of `rollouts.play`'s, in numpy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from .environments import Environment
from .rollouts import Rollout

Act = Callable[[np.ndarray, Any, np.ndarray], tuple[Any, Any, Any]]
"""obs, memory, first -> actions, outputs, memory; all of several environments."""


class VectorStep(NamedTuple):
    """What one step of all environments led to: numpy arrays, environments first."""

    reward: np.ndarray  # float32
    terminated: np.ndarray  # bool: the episode ended, nothing is left to earn
    truncated: np.ndarray  # bool: a time limit cut it; never with `terminated`
    final_obs: np.ndarray  # where the step led, before any reset
    mask: np.ndarray  # bool: False where it was only a reset, or not finite: left out


class Vector(Protocol):
    """Environments side by side, and how far their playing has come."""

    num_envs: int
    obs: np.ndarray  # to act on next
    first: np.ndarray  # bool: it is the first of its episode
    memory: Any  # of who acts

    def step(self, actions: np.ndarray) -> VectorStep:
        """Steps every environment, and starts the next episode where one ended."""
        ...


class GymnasiumVector:
    """A gymnasium `VectorEnv` of any autoreset mode, as a `Vector`.

    Gymnasium has three ways to start the next episode: NEXT_STEP (its default) spends a
    step on it, which ignores the action and earns nothing; SAME_STEP hides the last
    observation in `infos`; DISABLED leaves it to the caller. Here `step` always returns
    `final_obs`, and a `mask` that is False on the steps NEXT_STEP spent and on those
    that began, or led, to NaN or inf.

    Continuous actions are in [-1, 1], clipped and scaled to the space's bounds;
    discrete ones count from 0.
    """

    def __init__(
        self, envs: VectorEnv, seed: int | None = None, memory: Any = None
    ) -> None:
        # Before gymnasium 1.4 all vectors of an environment class share their metadata,
        # which tells the mode of the one made last; the attribute is each one's own.
        mode = getattr(envs.unwrapped, "autoreset_mode", None)
        self.mode = (mode or envs.metadata["autoreset_mode"]).name
        self.envs, self.num_envs = envs, envs.num_envs
        self.spec, self._in_units = spec(envs), _in_units_of(envs.single_action_space)
        self.obs = np.array(envs.reset(seed=seed)[0], np.float32)
        self.first = np.ones(self.num_envs, bool)
        self.memory = memory
        self._spent = np.zeros(self.num_envs, bool)  # the next step will only reset

    def step(self, actions: np.ndarray) -> VectorStep:
        """Steps every environment, and starts the next episode where one ended."""
        obs, reward, terminated, truncated, infos = self.envs.step(
            self._in_units(actions)
        )
        # A copy: vectors with copy=False reuse theirs.
        obs = final_obs = np.array(obs, np.float32)
        ended, mask = terminated | truncated, ~self._spent
        if self.mode == "NEXT_STEP":
            self.first, self._spent = self._spent, ended
        else:
            self.first = ended
            if ended.any():
                obs, final_obs = self._after_ends(obs, ended, infos)
        truncated = truncated & ~terminated
        reward = reward.astype(np.float32)
        led_to = _finite(final_obs) | terminated
        mask &= _finite(self.obs) & _finite(reward) & led_to
        self.obs = obs
        return VectorStep(reward, terminated, truncated, final_obs, mask)

    def _after_ends(
        self, obs: np.ndarray, ended: np.ndarray, infos: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """What to act on next, and where the step led."""
        if self.mode == "DISABLED":
            fresh = self.envs.reset(options={"reset_mask": ended})[0]
            return np.array(fresh, np.float32), obs
        final_obs = obs.copy()
        final_obs[ended] = np.stack(list(infos["final_obs"][ended]))
        return obs, final_obs


class EnvpoolVector(GymnasiumVector):
    """An envpool of the gymnasium API (envpool>=1.2.5), as a `Vector`.

        EnvpoolVector(envpool.make_gymnasium("Pong-v5", num_envs=8, seed=0))

    It resets as NEXT_STEP does, and is seeded where it is made. Where an episode both
    terminates and meets its time limit, envpool tells of the limit alone.
    """

    def __init__(self, envs: Any, memory: Any = None) -> None:
        config = envs.config  # which envpool's alone have
        if config["batch_size"] != config["num_envs"]:
            raise ValueError(
                f"EnvpoolVector: a batch of {config['batch_size']} of "
                f"{config['num_envs']} environments is whichever are ready first. "
                "Fix: leave out batch_size"
            )
        super().__init__(envs, memory=memory)


def collect(
    env: Vector,
    act: Act,
    num_steps: int,
    to_env: Callable[[Any], Any] = lambda actions: actions,
) -> Rollout:
    """Plays `num_steps` steps, going on from where the last call stopped.

    Args:
        env: the environments; its `obs`, `first` and `memory` are those to go on from.
        act: what the policy does: actions, what it drew them from, what it remembers.
        num_steps: T.
        to_env: makes of the policy's actions those of the environment.

    Returns:
        Numpy arrays `(num_envs, num_steps, ...)`.
    """
    rows: list[Any] = []
    for _ in range(num_steps):
        obs, first = env.obs, env.first
        actions, outputs, env.memory = act(obs, env.memory, first)
        actions, outputs = jax.device_get((actions, outputs))
        after = env.step(np.asarray(to_env(actions)))
        seen = {"obs": obs, "first": first, "outputs": outputs, "actions": actions}
        rows.append(seen | after._asdict())
    columns: dict[str, Any] = {
        name: np.stack([row[name] for row in rows], 1) for name in rows[0]
    }
    return Rollout(**columns)


def spec(envs: VectorEnv) -> Environment:
    """What a policy must know of an environment on the host: the shapes.

    Args:
        envs: several of it, as gymnasium or envpool makes them.

    Returns:
        The shapes; its `reset` and `step` only raise, being no pure functions here.

    Raises:
        ValueError: it observes anything but one array of floats, or its actions are
            neither discrete nor a bounded vector.
    """

    def refuse(*_: Any) -> Any:
        raise TypeError(
            "An environment on the host has no pure reset and step. "
            "Fix: play it by hosts.collect"
        )

    obs, actions = envs.single_observation_space, envs.single_action_space
    if not isinstance(obs, spaces.Box) or np.dtype(obs.dtype).kind not in "fb":
        raise ValueError(
            f"spec: observations are {obs}, not one array of floats. Fix: a wrapper of "
            "gymnasium's, such as FlattenObservation or TransformObservation"
        )
    num_actions = action_size = None
    match actions:
        case spaces.Discrete():
            num_actions = int(actions.n)
        case spaces.MultiDiscrete(nvec=np.ndarray(ndim=1)):
            num_actions = tuple(int(n) for n in actions.nvec)
        case spaces.Box(shape=(size,)) if actions.is_bounded():
            action_size = size
        case _:
            raise ValueError(
                f"spec: actions are {actions}: neither discrete nor a vector with "
                "bounds to scale [-1, 1] to. Fix: a wrapper of gymnasium's, such as "
                "TransformAction"
            )
    return Environment(refuse, refuse, obs.shape, num_actions, action_size)


def _finite(x: np.ndarray) -> np.ndarray:
    """Which environments' numbers are all numbers."""
    return np.asarray(np.isfinite(x).all(axis=tuple(range(1, x.ndim))))


def _in_units_of(space: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Our actions, in the environment's own units."""
    if not isinstance(space, spaces.Box):
        return lambda actions: (actions + space.start).astype(space.dtype)
    middle = (np.float64(space.low) + np.float64(space.high)) / 2
    half = space.high - middle

    def scaled(actions: np.ndarray) -> np.ndarray:
        return (middle + half * np.clip(actions, -1, 1)).astype(space.dtype)

    return scaled
