"""The examples' environments against gymnasium's, playing, and JAX libraries' adapters.

Those on the host are in test_vectors.py.
"""

import importlib.util
import sys
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from control import adapters, environments, policies, rollouts
from control.environments import Environment, State, Step

OURS = {
    "CartPole-v1": environments.cartpole,
    "Pendulum-v1": environments.pendulum,
    "Acrobot-v1": environments.acrobot,
    "MountainCar-v0": environments.mountain_car,
}
# Beyond what an episode can reach: speeds over their bounds, walls, angles over pi.
# (Not beyond MountainCar's flag: who comes back from there is none of ours.)
LOW = {
    "CartPole-v1": [-2.6, -3.0, -0.23, -3.0],
    "Pendulum-v1": [-12.0, -9.0],
    "Acrobot-v1": [-5.0, -5.0, -15.0, -32.0],
    "MountainCar-v0": [-1.4, -0.1],
}
HIGH = {name: [-x for x in low] for name, low in LOW.items()}
HIGH["MountainCar-v0"] = [0.48, 0.1]
START = {
    "CartPole-v1": ([-0.05] * 4, [0.05] * 4),
    "Pendulum-v1": ([-np.pi, -1.0], [np.pi, 1.0]),
    "Acrobot-v1": ([-0.1] * 4, [0.1] * 4),
    "MountainCar-v0": ([-0.6, 0.0], [-0.4, 0.0]),
}
LIMIT = {"CartPole-v1": 500, "Pendulum-v1": 200, "Acrobot-v1": 500}
LIMIT["MountainCar-v0"] = 200
all_environments = pytest.mark.parametrize("name", OURS)


def random_action(rng, name):
    """A random action for us (out of bounds too), and the same one for gymnasium."""
    num_actions = OURS[name]().num_actions
    if num_actions is not None:
        action = rng.integers(num_actions)
        return np.int32(action), action
    action = rng.uniform(-1.5, 1.5, 1).astype(np.float32)
    return action, 2 * action


def assert_same_step(ours, host, physics, action):
    """Compares our step with the host's from the same state."""
    host.unwrapped.state = np.asarray(physics, np.float64)
    host.unwrapped.steps_beyond_terminated = None
    obs, reward, terminated, truncated, _ = host.step(action)
    close = 1e-3 if len(obs) == 6 else 1e-6  # Acrobot errs more: 28 rad/s, and chaos
    np.testing.assert_allclose(ours.obs, obs, rtol=1e-5, atol=close)
    np.testing.assert_allclose(ours.reward, reward, rtol=1e-5)
    assert bool(ours.terminated) == terminated
    assert bool(ours.truncated) == truncated


@all_environments
def test_a_step_from_anywhere_is_gymnasiums(name):
    rng, host = np.random.default_rng(0), gymnasium.make(name).unwrapped
    physics = rng.uniform(LOW[name], HIGH[name], (400, len(LOW[name])))
    physics = physics.astype(np.float32)
    pairs = [random_action(rng, name) for _ in physics]
    actions, host_actions = zip(*pairs, strict=True)
    states = State(jnp.asarray(physics), jnp.zeros(400, jnp.int32))
    keys = jax.random.split(jax.random.key(0), 400)
    steps = jax.jit(jax.vmap(OURS[name]().step))(keys, states, jnp.stack(actions))
    steps = jax.device_get(steps)
    for i, host_action in enumerate(host_actions):
        ours = jax.tree.map(lambda x: x[i], steps)
        assert_same_step(ours, host, physics[i], host_action)
    ends = steps.terminated.mean()
    assert 0.01 < ends < 0.8 if name != "Pendulum-v1" else ends == 0
    assert (steps.state.time == 1).all()


SKILLED = {
    "CartPole-v1": lambda obs: int(obs @ [0.1, 0.2, 1.0, 0.5] > 0),
    "Acrobot-v1": lambda obs: 2 * int(obs[4] < 0),  # against the first link's swing
    "MountainCar-v0": lambda obs: 2 * int(obs[1] >= 0),  # along with the car's
}


@pytest.mark.parametrize(
    ("name", "skilled", "to_the_limit"),
    [
        ("CartPole-v1", False, False),
        ("CartPole-v1", True, True),
        ("Pendulum-v1", False, True),
        ("Acrobot-v1", False, True),
        ("Acrobot-v1", True, False),
        ("MountainCar-v0", False, True),
        ("MountainCar-v0", True, False),
    ],
)
def test_episodes_are_gymnasiums_to_the_end(name, skilled, to_the_limit):
    env, host = OURS[name](), gymnasium.make(name)
    rng, step = np.random.default_rng(1), jax.jit(env.step)
    state, obs = env.reset(jax.random.key(0))
    host.reset()
    ended, length = False, 0
    while not ended:
        action, host_action = random_action(rng, name)
        if skilled:
            host_action = SKILLED[name](np.asarray(obs))
            action = np.int32(host_action)
        ours = step(jax.random.key(length), state, action)
        assert_same_step(ours, host, state.physics, host_action)
        state, obs, ended = ours.state, ours.obs, ours.terminated | ours.truncated
        length += 1
    assert bool(ours.truncated) == to_the_limit
    assert length == LIMIT[name] if to_the_limit else length < LIMIT[name]


@all_environments
def test_resets_fill_gymnasiums_range(name):
    keys = jax.random.split(jax.random.key(0), 1000)
    state, obs = jax.device_get(jax.vmap(OURS[name]().reset)(keys))
    low, high = np.float32(START[name])
    assert (low <= state.physics).all() and (state.physics <= high).all()
    close = 0.01 * np.max(high - low)
    np.testing.assert_allclose(state.physics.min(0), low, atol=close)
    np.testing.assert_allclose(state.physics.max(0), high, atol=close)
    assert obs.shape == (1000, *OURS[name]().obs_shape) and not state.time.any()
    host = gymnasium.make(name).unwrapped
    seen = np.array([host.reset(seed=seed)[0] for seed in range(200)])
    np.testing.assert_allclose(obs.min(0), seen.min(0), atol=0.04)
    np.testing.assert_allclose(obs.max(0), seen.max(0), atol=0.04)


def assert_stays(env):
    """A step's state and observation have the reset's shapes, dtypes and weak types."""

    def start_and_step(key, action):
        state, obs = env.reset(key)
        return (state, obs), env.step(key, state, action)

    if env.num_actions is None:
        action = jnp.zeros(env.action_size, float)
    else:
        action = jnp.asarray(1)
    before, after = jax.eval_shape(start_and_step, jax.random.key(0), action)
    assert jax.tree.leaves(before) == jax.tree.leaves((after.state, after.obs))
    assert jax.tree.structure(before[0]) == jax.tree.structure(after.state)
    assert [str(x.dtype) for x in after[1:]] == ["float32", "float32", "bool", "bool"]
    assert [x.shape for x in after[1:]] == [env.obs_shape, (), (), ()]
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(after))
    return action


@all_environments
@pytest.mark.parametrize("x64", [False, True])
def test_stays_float32(name, x64):
    with jax.enable_x64(x64):
        assert assert_stays(OURS[name]()).dtype.itemsize == (8 if x64 else 4)


def play(env, num_envs, num_steps, actor=None, memory=None, calls=1):
    """What `calls` rollouts after each other saw, as one of numpy."""
    policy = policies.policy_for(env)

    def nothing_known(obs, memory, first):
        del obs
        return jnp.zeros((*first.shape, policy.num_outputs)), memory

    @jax.jit
    def on(playing, key):
        act = actor or nothing_known
        return rollouts.play(env, policy, act, playing, key, num_steps)

    playing = rollouts.start(env, num_envs, memory, jax.random.key(0))
    seen = []
    for call in range(calls):
        playing, rollout = on(playing, jax.random.key(1 + call))
        seen.append(jax.device_get(rollout))
    return playing, jax.tree.map(lambda *x: np.concatenate(x, 1), *seen)


@all_environments
def test_play_starts_anew_where_an_episode_ended(name):
    limit = 12
    _, seen = play(OURS[name](limit), 4, 2 * limit, calls=2)
    ended = seen.terminated | seen.truncated
    np.testing.assert_array_equal(seen.first[:, 1:], ended[:, :-1])
    assert seen.first[:, 0].all()
    went_on = ~ended[:, :-1]
    after, before = seen.obs[:, 1:], seen.final_obs[:, :-1]
    np.testing.assert_array_equal(after[went_on], before[went_on])

    starts = seen.obs[seen.first]
    assert len(np.unique(starts, axis=0)) == len(starts) >= 16
    keys = jax.random.split(jax.random.key(0), 1000)
    resets = jax.device_get(jax.vmap(OURS[name]().reset)(keys)[1])
    assert (starts >= resets.min(0) - 0.01).all()
    assert (starts <= resets.max(0) + 0.01).all()

    steps, time = np.arange(4 * limit), np.zeros(ended.shape, int)
    for i, first in enumerate(seen.first):
        time[i] = steps - np.maximum.accumulate(np.where(first, steps, 0)) + 1
    np.testing.assert_array_equal(ended, (time == limit) | seen.terminated)
    np.testing.assert_array_equal(seen.truncated, ended & ~seen.terminated)
    assert seen.terminated.any() == (name == "CartPole-v1") and seen.truncated.any()


def test_play_keeps_the_last_observation_and_sets_one_flag():
    def reset(key):
        return {"time": jnp.int32(0)}, jax.random.uniform(key, (2,))

    def step(key, state, action):
        del key
        time = state["time"] + 1
        obs = jnp.full((2,), 10.0) * time.astype(jnp.float32)
        terminated, truncated = (time >= 2) & (action == 1), time >= 2
        return Step({"time": time}, obs, jnp.float32(7), terminated, truncated)

    def actor(obs, memory, first):  # counts the steps; the second environment falls
        memory = jnp.where(first, 0, memory) + 1
        return jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]]), memory

    env = Environment(reset, step, obs_shape=(2,), num_actions=2)
    memory = jnp.full(2, 5, jnp.int32)  # of before the first episode: forgotten
    playing, seen = play(env, 2, 5, actor, memory)
    np.testing.assert_array_equal(seen.actions, [[0] * 5, [1] * 5])
    end = [False, True, False, True, False]
    np.testing.assert_array_equal(seen.terminated, [[False] * 5, end])
    np.testing.assert_array_equal(seen.truncated, [end, [False] * 5])
    np.testing.assert_array_equal(seen.final_obs[..., 0], [[10, 20, 10, 20, 10]] * 2)
    np.testing.assert_array_equal(seen.obs[:, 1::2], np.full((2, 2, 2), 10.0))
    assert (seen.obs[:, ::2] < 1).all() and len(np.unique(seen.obs[:, ::2])) == 12
    assert (seen.reward == 7).all() and seen.mask.all()
    np.testing.assert_array_equal(playing.env_state["time"], [1, 1])
    np.testing.assert_array_equal(playing.memory, [1, 1])
    np.testing.assert_array_equal(playing.obs, seen.final_obs[:, -1])
    assert not playing.first.any()


def test_what_is_not_finite_is_left_out():
    """A step that begins at NaN or leads there; what lies behind an end may be NaN."""

    def reset(key):
        del key
        return jnp.int32(0), jnp.zeros(2)

    def step(key, state, action):
        del key, action
        time = state + 1
        obs = jnp.where(time == 3, jnp.nan, jnp.full(2, time, jnp.float32))
        return Step(time, obs, jnp.float32(1), jnp.bool_(False), jnp.bool_(False))

    env = Environment(reset, step, obs_shape=(2,), num_actions=2)
    _, seen = play(env, 1, 7)
    np.testing.assert_array_equal(seen.mask[0], [True, True, False] * 2 + [True])
    np.testing.assert_array_equal(seen.first[0], [True, False, False] * 2 + [True])
    np.testing.assert_array_equal(seen.truncated[0], [False, False, True] * 2 + [False])
    assert np.isnan(seen.final_obs[0, 2]).all() and np.isfinite(seen.obs).all()
    whole = rollouts.mended(jax.tree.map(jnp.asarray, seen))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(whole))
    np.testing.assert_array_equal(whole.final_obs[0, 1], [2, 2])

    x = jnp.array([1.0, jnp.nan, jnp.inf, 1, 1])
    obs, no = jnp.zeros((5, 2)).at[3, 1].set(-jnp.inf), jnp.zeros(5, bool)
    final = jnp.zeros((5, 2)).at[4, 0].set(jnp.nan)
    found = [rollouts.broken(obs, x, ended, final) for ended in (no, ~no)]
    np.testing.assert_array_equal(found[0], [False, True, True, True, True])
    np.testing.assert_array_equal(found[1], [False, True, True, True, False])


def test_gymnax_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r"pip install \"jaxppo\[gymnax\]\""):
        adapters.from_gymnax("CartPole-v1")


class AsGymnax:
    """An environment by gymnax's API, of whatever observation and actions."""

    default_params = None

    def __init__(self, obs=None, actions=None):
        self.obs = jnp.zeros(3) if obs is None else obs
        self.actions = actions or Space(n=2)

    def action_space(self, params):
        return self.actions

    def reset(self, key, params):
        return self.obs, jnp.int32(0)

    def step_env(self, key, state, action, params):
        return self.obs, state, jnp.float32(0), jnp.bool_(False), {}

    def is_truncated(self, state, params):
        return jnp.bool_(False)


class Space:
    def __init__(self, **fields):
        vars(self).update(fields)


class Older(AsGymnax):
    """An environment of gymnax 0.0.9, whose `done` is also true at a time limit."""

    def __getattribute__(self, name):
        if name == "is_truncated":
            raise AttributeError(name)
        return super().__getattribute__(name)


def test_gymnax_refuses_what_it_cannot_tell():
    with pytest.raises(ValueError, match=r"Older has no is_truncated.*time limit"):
        adapters.from_gymnax(Older())
    with pytest.raises(ValueError, match=r'pip install "gymnax>=1\.0\.1".*jax<0\.12'):
        adapters.from_gymnax(Older())
    for obs in (jnp.zeros((2, 3), int), {"a": jnp.zeros(3)}, (jnp.zeros(3),) * 2):
        with pytest.raises(ValueError, match=r"AsGymnax observes .* not one array of"):
            adapters.from_gymnax(AsGymnax(obs))
    with pytest.raises(ValueError, match=r"observes int32\[2, 3\], .*one-hot"):
        adapters.from_gymnax(AsGymnax(jnp.zeros((2, 3), jnp.int32)))
    for space in (
        Space(low=-1.0, high=1.0, shape=(2, 2)),
        Space(low=-1.0, high=jnp.array([1.0, jnp.inf]), shape=(2,)),
        Space(low=-jnp.inf, high=jnp.inf, shape=(2,)),
        Space(spaces=()),
    ):
        with pytest.raises(ValueError, match=r"AsGymnax has actions .*nor a vector"):
            adapters.from_gymnax(AsGymnax(actions=space))
    seen = adapters.from_gymnax(AsGymnax(jnp.zeros((2, 3, 4), bool)))
    assert seen.obs_shape == (2, 3, 4)
    assert_stays(seen)


@pytest.fixture
def gymnax():
    reason = "gymnax does not install beside the newest JAX"
    return pytest.importorskip("gymnax", reason=reason)


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1"])
def test_gymnax_a_time_limit_changes_nothing_but_its_flag(gymnax, name):
    env, _ = gymnax.make(name)
    short = adapters.from_gymnax(env, max_steps_in_episode=5)
    long, key = adapters.from_gymnax(env), jax.random.key(0)
    (state, obs), (long_state, long_obs) = short.reset(key), long.reset(key)
    for time in range(1, 8):
        np.testing.assert_array_equal(obs, long_obs)
        ours = short.step(key, state, jnp.int32(1))
        uncut = long.step(key, long_state, jnp.int32(1))
        assert bool(ours.truncated) == (time >= 5) and not ours.terminated
        assert not uncut.truncated
        (state, obs), (long_state, long_obs) = ours[:2], uncut[:2]
    assert obs.shape == short.obs_shape
    assert short.num_actions == long.num_actions == {"C": 2, "A": 3}[name[0]]


def test_gymnax_termination_wins_over_a_time_limit(gymnax):
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


def test_gymnax_scales_continuous_actions(gymnax):
    env, key = adapters.from_gymnax("Pendulum-v1"), jax.random.key(3)
    assert (env.obs_shape, env.num_actions, env.action_size) == ((3,), None, 1)
    state, (cos, sin, theta_dot) = env.reset(key)
    actions = jnp.array([[-0.5], [0.25], [3.0]])
    theirs = jax.vmap(env.step, (None, None, 0))(key, state, actions)
    physics = jnp.stack([jnp.arctan2(sin, cos), theta_dot])
    step = jax.jit(jax.vmap(environments.pendulum().step, (None, None, 0)))
    ours = step(key, State(physics, jnp.int32(0)), actions)
    np.testing.assert_allclose(theirs.obs, ours.obs, rtol=1e-5)
    np.testing.assert_allclose(theirs.reward, ours.reward, rtol=1e-5)
    car = adapters.from_gymnax("MountainCarContinuous-v0")  # charges what it clipped
    state, _ = car.reset(key)
    rewards = [car.step(key, state, jnp.array([size])).reward for size in (1.0, 3.0)]
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize(
    "name",
    [
        "Breakout-MinAtar",
        "PointRobot-misc",  # actions within 0.1
        "SpaceInvaders-MinAtar",  # a state of weak types
        "UmbrellaChain-bsuite",  # rewards of integers
    ],
)
def test_gymnax_steps_are_its_own_before_its_resets(gymnax, name):
    """Played by us, then step by step by its `step`, which keeps what it replaced."""
    theirs, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=7)
    env = adapters.from_gymnax(name, max_steps_in_episode=7)
    assert_stays(env)
    space = theirs.action_space(params)
    assert env.obs_shape == theirs.observation_space(params).shape
    step = jax.jit(theirs.step)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for seed in range(3):
            key = jax.random.key(seed)
            state, ended, time = env.reset(key)[0], False, 0
            while not ended:
                time += 1
                key, draw_key = jax.random.split(key)
                action = unit = space.sample(draw_key)
                if env.num_actions is None:
                    unit = 2 * (action - space.low) / (space.high - space.low) - 1
                want = step(key, state, action, params)
                ours = jax.jit(env.step)(jax.random.split(key)[0], state, unit)
                final_obs = want[5]["final_observation"]
                np.testing.assert_allclose(ours.obs, final_obs, atol=1e-6)
                assert ours.reward == want[2] and ours.terminated == want[3]
                assert ours.truncated == (want[4] & ~want[3])
                state, ended = ours.state, ours.terminated | ours.truncated
            assert time == 7 or (time < 7 and ours.terminated)


def test_gymnax_breakout_plays(gymnax):
    env = adapters.from_gymnax("Breakout-MinAtar")
    assert env.obs_shape == (10, 10, 4) and env.num_actions == 3
    _, seen = play(env, 8, 100)
    assert seen.obs.shape == (8, 100, 10, 10, 4) and seen.obs.dtype == np.float32
    assert all(np.isfinite(x).all() for x in (seen.obs, seen.final_obs, seen.reward))
    assert seen.terminated.any() and seen.reward.any()
    paddles = seen.obs[..., 0].sum((2, 3))  # one in every state, also in the last
    assert (paddles == 1).all() and (seen.final_obs[..., 0].sum((2, 3)) == 1).all()


@pytest.mark.parametrize("name", ["FourRooms-misc", "FrozenLake-misc"])
def test_gymnax_refuses_integers(gymnax, name):
    with pytest.raises(ValueError, match=r"observes int32.*not one array of floats"):
        adapters.from_gymnax(name)


class BraxState(NamedTuple):
    """As brax's and Playground's, what is physics apart."""

    obs: Any
    reward: jax.Array
    done: jax.Array
    info: dict[str, jax.Array]


class Walk:
    """As brax's and Playground's: walks by its action, falls beyond 2.5."""

    action_size = 2

    def __init__(self, observe=lambda x: x):
        self.observe = observe

    def reset(self, rng):
        info = {"rng": rng, "at": jax.random.uniform(rng, (2,))}
        return BraxState(self.observe(info["at"]), *jnp.zeros(2), info)

    def step(self, state, action):
        state.info["at"] += action
        state.info["rng"] = jax.random.split(state.info["rng"])[0]
        at = state.info["at"]
        done = (jnp.abs(at).max() > 2.5).astype(jnp.float32)
        return BraxState(self.observe(at), at.sum(), done, state.info)


def test_brax_steps_clips_and_cuts():
    env = adapters.from_brax(Walk(), episode_length=2)
    assert (env.obs_shape, env.num_actions, env.action_size) == ((2,), None, 2)
    assert_stays(env)
    start, obs = env.reset(jax.random.key(0))
    one = env.step(jax.random.key(1), start, jnp.array([0.5, -9.0]))
    np.testing.assert_allclose(one.obs, obs + jnp.array([0.5, -1.0]), rtol=1e-6)
    np.testing.assert_array_equal(start[0].info["at"], obs)  # as it was
    np.testing.assert_allclose(one.reward, one.obs.sum(), rtol=1e-6)
    assert not one.terminated and not one.truncated
    two = env.step(jax.random.key(1), one.state, jnp.array([1.0, -1.0]))
    np.testing.assert_allclose(two.obs, one.obs + jnp.array([1.0, -1.0]), rtol=1e-6)
    assert two.truncated and not two.terminated
    falls = env.step(jax.random.key(1), one.state, jnp.array([1.0, 0.0]))
    falls = env.step(jax.random.key(1), falls.state, jnp.array([1.0, 0.0]))
    assert falls.terminated and not falls.truncated and falls.obs[0] > 2.5


def test_brax_starts_from_as_many_as_asked():
    keys = jax.random.split(jax.random.key(0), 40)
    for num_starts, distinct in ((None, 40), (3, 3)):
        env = adapters.from_brax(Walk(), num_starts=num_starts)
        assert_stays(env)
        states, obs = jax.vmap(env.reset)(keys)
        assert len(np.unique(obs, axis=0)) == distinct
        after = jax.vmap(env.step)(keys, states, jnp.full((40, 2), 0.25))
        np.testing.assert_allclose(after.obs, obs + 0.25, rtol=1e-6)


def test_brax_observes_one_of_several():
    both = lambda x: {"state": x, "privileged_state": jnp.tile(x, 2)}
    assert adapters.from_brax(Walk(both)).obs_shape == (2,)
    env = adapters.from_brax(Walk(both), obs_key="privileged_state")
    assert env.obs_shape == (4,)
    assert_stays(env)
    with pytest.raises(ValueError, match=r"Walk observes \['priv.*none is 'pixels'"):
        adapters.from_brax(Walk(both), obs_key="pixels")
    with pytest.raises(ValueError, match=r"Walk observes int32\[2\], not one array"):
        adapters.from_brax(Walk(lambda x: x.astype(jnp.int32)))


class Wrapper:
    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)


class FakeEpisodeWrapper(Wrapper):
    pass


def test_brax_refuses_wrappers_that_reset():
    assert adapters.from_brax(Wrapper(Walk())).obs_shape == (2,)
    for wrapped in (FakeEpisodeWrapper(Walk()), Wrapper(FakeEpisodeWrapper(Walk()))):
        with pytest.raises(
            ValueError, match=r"training \(FakeEpisodeWrapper\): .*lost"
        ):
            adapters.from_brax(wrapped)


needs_brax = pytest.mark.skipif(
    importlib.util.find_spec("brax") is None, reason="brax is not installed"
)
needs_playground = pytest.mark.skipif(
    importlib.util.find_spec("mujoco_playground") is None,
    reason="MuJoCo Playground is not installed",
)


def assert_plays_as_itself(theirs, num_steps=6):
    """Played to a time limit by us, then step by step by its own functions."""
    env = adapters.from_brax(theirs, num_steps)
    assert_stays(env)
    _, seen = play(env, 2, 2 * num_steps)
    ended = seen.terminated | seen.truncated
    assert seen.truncated[:, num_steps - 1].all() and seen.first.sum() == 4
    np.testing.assert_array_equal(seen.first[:, 1:], ended[:, :-1])
    actions = np.tanh(seen.actions[:, :num_steps])
    keys = jax.random.split(jax.random.key(0), 2)  # as `rollouts.start` draws them
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = jax.jit(jax.vmap(theirs.reset))(keys)
        step = jax.jit(jax.vmap(theirs.step))
        for time in range(num_steps):
            np.testing.assert_allclose(seen.obs[:, time], state.obs, atol=1e-4)
            state = step(state, actions[:, time])
            np.testing.assert_allclose(seen.final_obs[:, time], state.obs, atol=1e-4)
            np.testing.assert_allclose(seen.reward[:, time], state.reward, atol=1e-4)
    return seen


@needs_brax
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["fast", "inverted_pendulum"])
def test_brax_is_itself(name):
    from brax import envs

    theirs = envs.get_environment(name, backend="spring")
    assert_plays_as_itself(theirs)
    for wrapped in (envs.create(name), envs.training.EpisodeWrapper(theirs, 9, 1)):
        with pytest.raises(ValueError, match="is wrapped for training"):
            adapters.from_brax(wrapped)


@needs_brax
@pytest.mark.filterwarnings("ignore")
def test_brax_terminates():
    from brax import envs

    env = adapters.from_brax(
        envs.get_environment("inverted_pendulum", backend="spring")
    )
    _, seen = play(env, 4, 60)
    assert seen.terminated.any() and not seen.truncated.any()
    fallen = np.abs(seen.final_obs[..., 1]) > 0.2
    np.testing.assert_array_equal(seen.terminated, fallen)
    assert (np.abs(seen.obs[..., 1]) <= 0.2).all()


@needs_playground
@pytest.mark.filterwarnings("ignore")
def test_playground_is_itself():
    from mujoco_playground import registry, wrapper

    theirs = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    assert_plays_as_itself(theirs, 3)
    with pytest.raises(ValueError, match="is wrapped for training"):
        adapters.from_brax(wrapper.wrap_for_brax_training(theirs))
