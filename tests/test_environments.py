"""The examples' environments against gymnasium, and the adapters in every mode."""

import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from control import adapters, environments
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv

OURS = {"CartPole-v1": environments.cartpole, "Pendulum-v1": environments.pendulum}
WIDE = {"CartPole-v1": [2.6, 3.0, 0.23, 3.0], "Pendulum-v1": [12.0, 8.0]}
both_environments = pytest.mark.parametrize("name", OURS)

NO_GYMNAX = "gymnax does not install beside the newest JAX"


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def random_action(rng, name):
    """A random action for us (out of bounds too), and the same one for gymnasium."""
    if name == "CartPole-v1":
        action = rng.integers(2)
        return jnp.int32(action), action
    action = rng.uniform(-1.5, 1.5, 1).astype(np.float32)
    return jnp.asarray(action), 2 * action


def assert_same_step(ours, host, physics, action):
    """Compares our step with the host's from the same state."""
    host.unwrapped.state = np.asarray(physics, np.float64)
    host.unwrapped.steps_beyond_terminated = None
    obs, reward, terminated, truncated, _ = host.step(action)
    np.testing.assert_allclose(ours.final_obs, obs, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.reward, reward, rtol=1e-6, atol=1e-6)
    assert bool(ours.terminated) == terminated
    assert bool(ours.truncated) == (truncated and not terminated)


@both_environments
def test_a_step_from_anywhere_is_gymnasiums(name):
    rng, step = np.random.default_rng(0), jax.jit(OURS[name]().step)
    host, ends = gymnasium.make(name).unwrapped, 0
    for _ in range(300):
        physics = np.float32(rng.uniform(-1, 1, len(WIDE[name])) * WIDE[name])
        action, host_action = random_action(rng, name)
        state = environments.State(jnp.asarray(physics), jnp.int32(0))
        ours = step(jax.random.key(0), state, action)
        assert_same_step(ours, host, physics, host_action)
        ends += int(ours.terminated)
    assert 50 < ends < 250 if name == "CartPole-v1" else ends == 0


@pytest.mark.parametrize(
    ("name", "episodes", "balance"),
    [("CartPole-v1", 8, False), ("CartPole-v1", 1, True), ("Pendulum-v1", 2, False)],
)
def test_episodes_are_gymnasiums_to_the_end(name, episodes, balance):
    env, host = OURS[name](), gymnasium.make(name)
    rng, step = np.random.default_rng(1), jax.jit(env.step)
    state, obs = env.reset(jax.random.key(0))
    for episode in range(episodes):
        host.reset()
        ended, length = False, 0
        while not ended:
            action, host_action = random_action(rng, name)
            if balance:
                host_action = int(np.asarray(obs) @ [0.1, 0.2, 1.0, 0.5] > 0)
                action = jnp.int32(host_action)
            length += 1
            ours = step(jax.random.key(1000 * episode + length), state, action)
            assert_same_step(ours, host, state.physics, host_action)
            state, obs, ended = ours.state, ours.obs, ours.terminated | ours.truncated
        limit = {"CartPole-v1": 500, "Pendulum-v1": 200}[name]
        assert length == limit if name == "Pendulum-v1" or balance else length < limit
        assert state.time == 0


@both_environments
def test_resets_fill_gymnasiums_range(name):
    keys = jax.random.split(jax.random.key(0), 1000)
    state, obs = jax.vmap(OURS[name]().reset)(keys)
    high = {"CartPole-v1": [0.05] * 4, "Pendulum-v1": [np.pi, 1.0]}[name]
    assert (np.abs(state.physics) <= np.float32(high)).all()
    for end in (state.physics.min(0), state.physics.max(0)):
        np.testing.assert_allclose(np.abs(end), high, rtol=0.02)
    assert obs.shape == (1000, *OURS[name]().obs_shape)


def test_auto_reset_returns_both_observations_and_one_flag():
    def reset(key):
        return {"time": jnp.int32(0)}, jax.random.uniform(key, (2,))

    def step(key, state, action):
        del key
        time = state["time"] + 1
        obs = jnp.full((2,), 10.0) * time.astype(float)
        terminated, truncated = (time >= 2) & (action == 1), time >= 2
        return {"time": time}, obs, jnp.float32(7), terminated, truncated

    auto_step = environments.auto_reset(reset, step)
    first = auto_step(jax.random.key(0), {"time": jnp.int32(0)}, jnp.int32(1))
    assert not first.terminated and not first.truncated and first.state["time"] == 1
    np.testing.assert_array_equal(first.obs, first.final_obs)
    starts = []
    for key, falls in enumerate([False, True]):
        last = auto_step(jax.random.key(key), first.state, jnp.int32(falls))
        assert (bool(last.terminated), bool(last.truncated)) == (falls, not falls)
        np.testing.assert_array_equal(last.final_obs, [20.0, 20.0])
        assert (last.obs < 1).all() and last.state["time"] == 0 and last.reward == 7
        starts.append(last.obs)
    assert (starts[0] != starts[1]).all()  # another key, another start


@both_environments
@pytest.mark.parametrize("x64", [False, True])
def test_stays_float32(name, x64):
    env = OURS[name]()

    def start_and_step(key, action):
        state, obs = env.reset(key)
        return (state, obs), env.step(key, state, action)

    with jax.enable_x64(x64):
        action = jnp.asarray(1) if env.num_actions else jnp.ones((1,), float)
        assert action.dtype.itemsize == (8 if x64 else 4)
        key = jax.random.key(0)
        _, step = jax.jit(start_and_step)(key, action)
        dtypes = [str(field.dtype) for field in step[1:]]  # obs to final_obs
        assert dtypes == ["float32", "float32", "bool", "bool", "float32"]
        before, after = jax.eval_shape(start_and_step, key, action)
        assert before == (after.state, after.obs)  # shapes, dtypes and weak types
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(after))


@both_environments
def test_vmapped_scan_is_the_python_loop(name):
    env, num_envs, num_steps = OURS[name](15), 3, 40
    keys = jax.random.split(jax.random.key(1), (num_steps, num_envs))
    rng = np.random.default_rng(2)
    actions = [[random_action(rng, name)[0] for _ in range(num_envs)] for _ in keys]
    actions = jnp.array(actions)
    start, _ = jax.vmap(env.reset)(keys[0])

    @jax.jit
    def scan(state):
        def body(state, inputs):
            step = jax.vmap(env.step)(inputs[0], state, inputs[1])
            return step.state, step

        return jax.lax.scan(body, state, (keys, actions))[1]

    @jax.jit
    def step(t, i, state):
        return env.step(keys[t, i], state, actions[t, i])

    scanned = jax.device_get(scan(start))
    for i in range(num_envs):
        state, looped = jax.tree.map(lambda x, i=i: x[i], start), []
        for t in range(num_steps):
            looped.append(step(t, i, state))
            state = looped[-1].state
        looped = jax.tree.map(lambda *leaves: np.stack(leaves), *looped)
        for ours, want in zip(
            jax.tree.leaves(looped), jax.tree.leaves(scanned), strict=True
        ):
            np.testing.assert_allclose(ours, want[:, i], rtol=1e-5, atol=1e-6)
    assert scanned.truncated.any()
    assert scanned.terminated.any() == (name == "CartPole-v1")


class FiveValues:
    """An environment of gymnax 0.0.9, whose `done` is also true at a time limit."""

    default_params = None
    n = 2

    def action_space(self, params):
        return self

    def sample(self, key):
        return jnp.int32(0)

    def reset(self, key, params):
        return jnp.zeros(3), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.zeros(3), state, jnp.float32(0), jnp.bool_(False), {}


def test_gymnax_refuses_five_values_when_made():
    with pytest.raises(ValueError, match=r"FiveValues returns 5 values(.|\n)*limits"):
        adapters.from_gymnax(FiveValues())
    with pytest.raises(ValueError, match=r'pip install "gymnax>=1\.0\.1".*jax<0\.12'):
        adapters.from_gymnax(FiveValues())


def test_gymnax_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r"pip install \"jaxppo\[gymnax\]\""):
        adapters.from_gymnax("CartPole-v1")


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1"])
def test_gymnax_final_obs_survives_a_time_limit(name):
    env, _ = pytest.importorskip("gymnax", reason=NO_GYMNAX).make(name)
    short = adapters.from_gymnax(env, max_steps_in_episode=5)
    long, key = adapters.from_gymnax(env), jax.random.key(0)
    (state, obs), (long_state, long_obs) = short.reset(key), long.reset(key)
    for time in range(1, 6):
        ours = short.step(key, state, jnp.int32(1))
        uncut = long.step(key, long_state, jnp.int32(1))
        np.testing.assert_array_equal(obs, long_obs)
        np.testing.assert_array_equal(ours.final_obs, uncut.obs)
        assert bool(ours.truncated) == (time == 5) and not ours.terminated
        (state, obs), (long_state, long_obs) = ours[:2], uncut[:2]
    assert obs.shape == short.obs_shape and (obs != ours.final_obs).any()
    assert short.num_actions == long.num_actions == {"C": 2, "A": 3}[name[0]]


def test_gymnax_termination_wins_over_a_time_limit():
    pytest.importorskip("gymnax", reason=NO_GYMNAX)
    env, key = adapters.from_gymnax("CartPole-v1"), jax.random.key(0)

    def push_right(env):
        def body(state, _):
            step = env.step(key, state, jnp.int32(1))
            return step.state, (step.terminated, step.truncated)

        return jax.lax.scan(body, env.reset(key)[0], length=30)[1]

    falls, _ = push_right(env)
    time = int(falls.argmax())
    limited = adapters.from_gymnax("CartPole-v1", max_steps_in_episode=time + 1)
    terminated, truncated = push_right(limited)
    assert terminated[time] and not truncated[time]


def test_gymnax_scales_continuous_actions():
    pytest.importorskip("gymnax", reason=NO_GYMNAX)
    env, key = adapters.from_gymnax("Pendulum-v1"), jax.random.key(3)
    assert (env.obs_shape, env.num_actions, env.action_size) == ((3,), None, 1)
    state, (cos, sin, theta_dot) = env.reset(key)
    actions = jnp.array([[-0.5], [0.25], [3.0]])
    theirs = jax.vmap(env.step, (None, None, 0))(key, state, actions)
    physics = jnp.stack([jnp.arctan2(sin, cos), theta_dot])
    state = environments.State(physics, jnp.int32(0))
    step = jax.jit(jax.vmap(environments.pendulum().step, (None, None, 0)))
    ours = step(key, state, actions)
    np.testing.assert_allclose(theirs.final_obs, ours.final_obs, rtol=1e-5)
    np.testing.assert_allclose(theirs.reward, ours.reward, rtol=1e-5)
    car = adapters.from_gymnax("MountainCarContinuous-v0")  # charges what it clipped
    state, _ = car.reset(key)
    rewards = [car.step(key, state, jnp.array([size])).reward for size in (1.0, 3.0)]
    assert rewards[0] == rewards[1]


LIMIT = 12  # short enough for CartPole to meet it, and now and then to fall right there


def make_host():
    return gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)


def policy(obs):
    """Actions that look random but depend on the observation alone."""
    return {"action": (np.abs(obs).sum(-1) * 1e4).astype(int) % 2}


def single_transitions(seed, num_steps):
    """The plain loop over one environment, and how often both flags were set."""
    env, rows, both = make_host(), [], 0
    obs, _ = env.reset(seed=seed)
    for _ in range(num_steps):
        action = policy(obs)["action"]
        final_obs, reward, terminated, truncated, _ = env.step(int(action))
        both += terminated and truncated
        truncated = truncated and not terminated
        rows.append((obs, action, reward, terminated, truncated, final_obs))
        obs = env.reset()[0] if terminated or truncated else final_obs
    return [np.stack(column) for column in zip(*rows, strict=True)], both


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_gymnasium_vector_gives_the_single_transitions(mode, copy):
    envs = SyncVectorEnv([make_host] * 4, autoreset_mode=mode, copy=copy)
    # In gymnasium 1.3, this one's mode replaces the one in the first one's metadata.
    SyncVectorEnv([make_host], autoreset_mode=AutoresetMode.SAME_STEP)
    env = adapters.GymnasiumVector(envs, seed=3)
    halves = [adapters.collect(env, policy, 50) for _ in range(2)]
    data = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    fields = ("obs", "action", "reward", "terminated", "truncated", "final_obs")
    assert data.keys() == {*fields, "mask"} and data["reward"].dtype == np.float32
    both = 0
    for i in range(4):
        expected, at_once = single_transitions(3 + i, 100)
        valid = data["mask"][:, i]
        for name, want in zip(fields, expected, strict=True):
            np.testing.assert_array_equal(data[name][:, i][valid], want[: valid.sum()])
        both += at_once
    spent = mode == AutoresetMode.NEXT_STEP
    ended = data["terminated"] | data["truncated"]
    np.testing.assert_array_equal(~data["mask"][1:], ended[:-1] & spent)
    assert data["terminated"].any() and data["truncated"].any() and both > 0


def test_gymnasium_vector_takes_gymnasiums_own_cartpole():
    envs = CartPoleVectorEnv(num_envs=5, max_episode_steps=LIMIT)
    data = adapters.collect(adapters.GymnasiumVector(envs, seed=0), policy, 60)
    obs, action, final_obs = (
        data[name][data["mask"]] for name in ("obs", "action", "final_obs")
    )
    state = environments.State(jnp.asarray(obs), jnp.zeros(len(obs), jnp.int32))
    keys = jax.random.split(jax.random.key(0), len(obs))
    step = jax.jit(jax.vmap(environments.cartpole().step))
    ours = step(keys, state, jnp.asarray(action))
    np.testing.assert_allclose(ours.final_obs, final_obs, rtol=1e-5, atol=1e-6)
    assert 200 < len(obs) < 300 and (data["reward"][data["mask"]] == 1).all()
    assert not data["reward"][~data["mask"]].any()
