"""Environments in pure JAX, each a pair of functions: `reset` and `step`.

One call runs one environment; `jax.vmap` runs many, `jax.lax.scan` runs them long:

    env = cartpole()
    state, obs = jax.vmap(env.reset)(jax.random.split(key, 8))
    after = jax.vmap(env.step)(jax.random.split(key, 8), state, actions)

`step` knows nothing of resets: `after.obs` is where the step led, also at the end of an
episode, and what is left to earn there is 0 if it `terminated`, its value if it was
`truncated`. Who plays on starts anew where either is true, as `rollouts.play` does.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Step(NamedTuple):
    """What one step of one environment returns."""

    state: Any  # for the next step
    obs: jax.Array  # where the step led
    reward: jax.Array  # float32
    terminated: jax.Array  # bool: the episode ended, nothing is left to earn
    truncated: jax.Array  # bool: a time limit cut it short


class Environment(NamedTuple):
    """An environment: two pure functions and the shapes a policy needs.

    Either `num_actions` is set, and an action is an integer below it (or several, each
    below its own), or `action_size` is, and an action is an `(action_size,)` array in
    [-1, 1], which `step` clips and scales to the environment's own units.
    """

    reset: Callable[[jax.Array], tuple[Any, jax.Array]]  # key -> (state, obs)
    step: Callable[[jax.Array, Any, jax.Array], Step]  # key, state, action -> Step
    obs_shape: tuple[int, ...]  # of a float32 observation
    num_actions: int | tuple[int, ...] | None = None
    action_size: int | None = None
    legal: Callable[[jax.Array], jax.Array] | None = None  # obs -> which actions may be


class State(NamedTuple):
    """The state of the environments below."""

    physics: jax.Array  # float32 positions and velocities
    time: jax.Array  # int32 steps since the reset


def wrapped(angle: jax.Array) -> jax.Array:
    """The angle, in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def cartpole(max_steps: int = 500) -> Environment:
    """Gymnasium's CartPole-v1: keep a pole upright by pushing its cart left or right.

    Observes (position, velocity, angle, angular velocity). Every step earns 1.
    Terminates when the cart leaves +-2.4 m or the pole +-12 degrees; truncates after
    `max_steps`.
    """
    gravity, push, dt = 9.8, 10.0, 0.02
    pole_mass, total_mass, half_length = 0.1, 1.1, 0.5

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        obs = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
        return State(obs, jnp.int32(0)), obs

    def step(key: jax.Array, state: State, action: jax.Array) -> Step:
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
        obs = jnp.stack([x, x_dot, theta, theta_dot])
        terminated = (jnp.abs(x) > 2.4) | (jnp.abs(theta) > math.radians(12))
        state = State(obs, state.time + 1)
        return Step(state, obs, jnp.float32(1), terminated, state.time >= max_steps)

    return Environment(reset, step, obs_shape=(4,), num_actions=2)


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

    def step(key: jax.Array, state: State, action: jax.Array) -> Step:
        del key
        theta, theta_dot = state.physics
        torque = max_torque * jnp.clip(action[0].astype(jnp.float32), -1.0, 1.0)
        reward = -(wrapped(theta) ** 2 + 0.1 * theta_dot**2 + 0.001 * torque**2)

        theta_dot = theta_dot + (1.5 * gravity * jnp.sin(theta) + 3 * torque) * dt
        theta_dot = jnp.clip(theta_dot, -max_speed, max_speed)
        physics = jnp.stack([theta + theta_dot * dt, theta_dot])
        state, never = State(physics, state.time + 1), jnp.zeros((), bool)
        return Step(state, observe(physics), reward, never, state.time >= max_steps)

    return Environment(reset, step, obs_shape=(3,), action_size=1)


def acrobot(max_steps: int = 500) -> Environment:
    """Gymnasium's Acrobot-v1: swing two links up by a motor at the joint between them.

    Observes cos and sin of both angles and both velocities. Actions are torques of -1,
    0 and 1 N m. Every step costs 1 until the tip is a link above the first joint, where
    the episode terminates; truncates after `max_steps`.
    """
    gravity, dt, max_speeds = 9.8, 0.2, (4 * math.pi, 9 * math.pi)
    # Links of 1 kg, 1 m and 1 kg m^2, each with its mass at the middle.

    def rates(torque: jax.Array, now: tuple) -> tuple:
        theta1, theta2, theta1_dot, theta2_dot = now
        sin, cos = jnp.sin(theta2), jnp.cos(theta2)
        d1, d2 = 3.5 + cos, 1.25 + 0.5 * cos
        phi2 = 0.5 * gravity * jnp.sin(theta1 + theta2)
        phi1 = (
            -0.5 * theta2_dot**2 * sin
            - theta2_dot * theta1_dot * sin
            + 1.5 * gravity * jnp.sin(theta1)
            + phi2
        )
        theta2_acc = (torque + d2 / d1 * phi1 - 0.5 * theta1_dot**2 * sin - phi2) / (
            1.25 - d2**2 / d1
        )
        theta1_acc = -(d2 * theta2_acc + phi1) / d1
        return theta1_dot, theta2_dot, theta1_acc, theta2_acc

    def ahead(now: tuple, rate: tuple, time: float) -> tuple:
        return tuple(x + time * dx for x, dx in zip(now, rate, strict=True))

    def observe(physics: jax.Array) -> jax.Array:
        a, b, *speeds = physics
        return jnp.stack([jnp.cos(a), jnp.sin(a), jnp.cos(b), jnp.sin(b), *speeds])

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        physics = jax.random.uniform(key, (4,), jnp.float32, -0.1, 0.1)
        return State(physics, jnp.int32(0)), observe(physics)

    def step(key: jax.Array, state: State, action: jax.Array) -> Step:
        del key
        now, torque = tuple(state.physics), action.astype(jnp.float32) - 1
        k1 = rates(torque, now)  # Runge-Kutta of order 4
        k2 = rates(torque, ahead(now, k1, dt / 2))
        k3 = rates(torque, ahead(now, k2, dt / 2))
        k4 = rates(torque, ahead(now, k3, dt))
        for k, weight in ((k1, 1), (k2, 2), (k3, 2), (k4, 1)):
            now = ahead(now, k, weight * dt / 6)
        a, b, *speeds = now
        speeds = (jnp.clip(x, -m, m) for x, m in zip(speeds, max_speeds, strict=True))
        physics = jnp.stack([wrapped(a), wrapped(b), *speeds])
        state = State(physics, state.time + 1)
        terminated = -jnp.cos(a) - jnp.cos(a + b) > 1
        reward = jnp.where(terminated, jnp.float32(0), jnp.float32(-1))
        truncated = state.time >= max_steps
        return Step(state, observe(physics), reward, terminated, truncated)

    return Environment(reset, step, obs_shape=(6,), num_actions=3)


def mountain_car(max_steps: int = 200) -> Environment:
    """Gymnasium's MountainCar-v0: rock a weak car out of a valley.

    Observes (position, velocity). Actions push left, not, right. Every step costs 1,
    until the flag at 0.5 terminates the episode; truncates after `max_steps`. Nobody
    who never reached the flag can tell one action from another by the rewards.
    """
    force, gravity, max_speed = 0.001, 0.0025, 0.07
    left, right, flag = -1.2, 0.6, 0.5

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        position = jax.random.uniform(key, (), jnp.float32, -0.6, -0.4)
        physics = jnp.stack([position, jnp.zeros_like(position)])
        return State(physics, jnp.int32(0)), physics

    def step(key: jax.Array, state: State, action: jax.Array) -> Step:
        del key
        position, velocity = state.physics
        push = (action.astype(jnp.float32) - 1) * force
        velocity = velocity + push - gravity * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -max_speed, max_speed)
        position = jnp.clip(position + velocity, left, right)
        velocity = jnp.where((position == left) & (velocity < 0), 0.0, velocity)
        physics = jnp.stack([position, velocity])
        terminated = (position >= flag) & (velocity >= 0)
        state = State(physics, state.time + 1)
        truncated = state.time >= max_steps
        return Step(state, physics, jnp.float32(-1), terminated, truncated)

    return Environment(reset, step, obs_shape=(2,), num_actions=3)
