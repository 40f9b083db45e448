"""Environments in pure JAX, each a pair of functions: `reset` and `step`.

One call runs one environment; `jax.vmap` runs many, `jax.lax.scan` runs them long:

    env = cartpole()
    state, obs = jax.vmap(env.reset)(jax.random.split(key, 8))
    step = jax.vmap(env.step)(jax.random.split(key, 8), state, actions)

`step` starts the next episode by itself. It returns two observations: `obs` is the one
to act on next, `final_obs` the one the step led to. They differ where an episode ended:
what followed there is worth 0 if it `terminated`, V(final_obs) if it was `truncated`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Step(NamedTuple):
    """What one step of one environment returns."""

    state: Any  # for the next step
    obs: jax.Array  # to act on next: a new episode's first, where one ended
    reward: jax.Array  # float32
    terminated: jax.Array  # bool: the episode ended, nothing is left to earn
    truncated: jax.Array  # bool: a time limit cut it short; never with `terminated`
    final_obs: jax.Array  # where the step led, before any reset


class Environment(NamedTuple):
    """An environment: two pure functions and the shapes a policy needs.

    Either `num_actions` is set, and an action is an integer below it, or `action_size`
    is, and an action is an `(action_size,)` array in [-1, 1], which `step` clips and
    scales to the environment's own units.
    """

    reset: Callable[[jax.Array], tuple[Any, jax.Array]]  # key -> (state, obs)
    step: Callable[[jax.Array, Any, jax.Array], Step]  # key, state, action -> Step
    obs_shape: tuple[int, ...]  # of a float32 observation
    num_actions: int | None = None
    action_size: int | None = None


class State(NamedTuple):
    """The state of the environments below."""

    physics: jax.Array  # float32 positions and velocities
    time: jax.Array  # int32 steps since the reset


def auto_reset(
    reset: Callable[[jax.Array], tuple[Any, jax.Array]],
    step: Callable[[jax.Array, Any, jax.Array], tuple[Any, ...]],
) -> Callable[[jax.Array, Any, jax.Array], Step]:
    """A step that starts a new episode where one ended.

    Args:
        reset: `key -> (state, obs)`.
        step: `key, state, action -> (state, obs, reward, terminated, truncated)`,
            which knows nothing of resets.

    Returns:
        `key, state, action -> Step`. Where both flags are set, `terminated` wins.
    """

    def auto_reset_step(key: jax.Array, state: Any, action: jax.Array) -> Step:
        step_key, reset_key = jax.random.split(key)
        state, final_obs, reward, terminated, truncated = step(step_key, state, action)
        ended = terminated | truncated
        state, obs = jax.tree.map(
            lambda new, old: jnp.where(ended, new, old),
            reset(reset_key),
            (state, final_obs),
        )
        truncated = truncated & ~terminated
        return Step(state, obs, reward, terminated, truncated, final_obs)

    return auto_reset_step


def cartpole(max_steps: int = 500) -> Environment:
    """Gymnasium's CartPole-v1: keep a pole upright by pushing its cart left or right.

    Observes (position, velocity, angle, angular velocity). Every step earns 1.
    Terminates when the cart leaves +-2.4 m or the pole +-12 degrees; truncates after
    `max_steps`.
    """
    gravity, push, dt = 9.8, 10.0, 0.02
    pole_mass, total_mass, half_length = 0.1, 1.1, 0.5

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        physics = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
        return State(physics, jnp.int32(0)), physics

    def step(key: jax.Array, state: State, action: jax.Array) -> tuple[Any, ...]:
        del key  # nothing is random but the start
        x, x_dot, theta, theta_dot = state.physics
        sin, cos = jnp.sin(theta), jnp.cos(theta)
        force = jnp.where(action == 1, push, -push)
        pull = (force + pole_mass * half_length * theta_dot**2 * sin) / total_mass
        theta_acc = (gravity * sin - cos * pull) / (
            half_length * (4 / 3 - pole_mass * cos**2 / total_mass)
        )
        x_acc = pull - pole_mass * half_length * theta_acc * cos / total_mass

        x, theta = x + dt * x_dot, theta + dt * theta_dot  # Euler: old velocities
        x_dot, theta_dot = x_dot + dt * x_acc, theta_dot + dt * theta_acc
        physics = jnp.stack([x, x_dot, theta, theta_dot])
        terminated = (jnp.abs(x) > 2.4) | (jnp.abs(theta) > math.radians(12))
        time = state.time + 1
        reward = jnp.float32(1)
        return State(physics, time), physics, reward, terminated, time >= max_steps

    return Environment(reset, auto_reset(reset, step), obs_shape=(4,), num_actions=2)


def pendulum(max_steps: int = 200) -> Environment:
    """Gymnasium's Pendulum-v1: swing a pendulum up with too weak a motor.

    Observes (cos, sin, angular velocity). An action in [-1, 1] is a torque in [-2, 2]
    N m. A step costs angle**2 + 0.1 * velocity**2 + 0.001 * torque**2, with the angle 0
    upright. Never terminates; truncates after `max_steps`.
    """
    gravity, dt, max_torque, max_speed = 10.0, 0.05, 2.0, 8.0

    def observe(physics: jax.Array) -> jax.Array:
        theta, theta_dot = physics
        return jnp.stack([jnp.cos(theta), jnp.sin(theta), theta_dot])

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        unit = jax.random.uniform(key, (2,), jnp.float32, -1.0, 1.0)
        physics = unit * jnp.array([math.pi, 1.0], jnp.float32)
        return State(physics, jnp.int32(0)), observe(physics)

    def step(key: jax.Array, state: State, action: jax.Array) -> tuple[Any, ...]:
        del key  # nothing is random but the start
        theta, theta_dot = state.physics
        torque = max_torque * jnp.clip(action[0].astype(jnp.float32), -1.0, 1.0)
        angle = (theta + math.pi) % (2 * math.pi) - math.pi
        reward = -(angle**2 + 0.1 * theta_dot**2 + 0.001 * torque**2)

        theta_dot = theta_dot + (1.5 * gravity * jnp.sin(theta) + 3 * torque) * dt
        theta_dot = jnp.clip(theta_dot, -max_speed, max_speed)
        physics = jnp.stack([theta + theta_dot * dt, theta_dot])
        time = state.time + 1
        never = jnp.zeros((), bool)
        return State(physics, time), observe(physics), reward, never, time >= max_steps

    return Environment(reset, auto_reset(reset, step), obs_shape=(3,), action_size=1)
