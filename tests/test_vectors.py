"""Environments on the host: every way to reset gives the plain loop's transitions."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from control import environments, hosts, policies, rollouts
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv

LIMIT = 12  # short enough for CartPole to meet it, and now and then to fall right there


def make_host():
    return gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)


def act(obs, memory, first):
    """Actions that look random, of obs alone; remembers how often it acted."""
    actions = jnp.asarray((np.abs(obs).sum(-1) * 1e4).astype(np.int32) % 2)
    memory = np.where(first, 0, memory) + 1
    return actions, jnp.asarray(memory, jnp.float32), memory


def joined(halves):
    return jax.tree.map(lambda *x: np.concatenate(x, 1), *halves)


def single_transitions(seed, num_steps):
    """The plain loop over one environment, and how often both flags were set."""
    env, rows, both = make_host(), [], 0
    (obs, _), time = env.reset(seed=seed), 0
    for _ in range(num_steps):
        action = int(act(obs, 0, True)[0])
        final_obs, reward, terminated, truncated, _ = env.step(action)
        both += terminated and truncated
        truncated = truncated and not terminated
        first, time = time == 0, time + 1
        rows.append(
            (obs, first, time, action, reward, terminated, truncated, final_obs)
        )
        ended = terminated or truncated
        obs, time = (env.reset()[0], 0) if ended else (final_obs, time)
    return [np.stack(column) for column in zip(*rows, strict=True)], both


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_every_mode_gives_the_single_transitions(mode, copy):
    envs = SyncVectorEnv([make_host] * 4, autoreset_mode=mode, copy=copy)
    # In gymnasium 1.3, this one's mode replaces the one in the first one's metadata.
    SyncVectorEnv([make_host], autoreset_mode=AutoresetMode.SAME_STEP)
    env = hosts.GymnasiumVector(envs, seed=3, memory=np.zeros(4, int))
    seen = joined([hosts.collect(env, act, 50) for _ in range(2)])
    assert {type(x) for x in jax.tree.leaves(seen)} == {np.ndarray}
    assert all(x.shape[:2] == (4, 100) for x in jax.tree.leaves(seen))
    kinds = [x.dtype for x in seen]
    assert kinds == ["f4", "?", "f4", "i4", "f4", "?", "?", "f4", "?"]
    both = 0
    for i in range(4):
        expected, at_once = single_transitions(3 + i, 100)
        valid = seen.mask[i]
        for ours, want in zip(seen[:-1], expected, strict=True):
            np.testing.assert_array_equal(ours[i][valid], want[: valid.sum()])
        both += at_once
    spent = mode == AutoresetMode.NEXT_STEP
    ended = seen.terminated | seen.truncated
    np.testing.assert_array_equal(~seen.mask[:, 1:], ended[:, :-1] & spent)
    assert not seen.first[~seen.mask].any()
    assert seen.terminated.any() and seen.truncated.any() and both > 0


def test_play_and_collect_agree_on_their_fields():
    """A rollout under jit has the host's fields, shapes and dtypes."""
    env = hosts.GymnasiumVector(SyncVectorEnv([make_host] * 2), seed=0)
    ours, policy = environments.cartpole(), policies.policy_for(env.spec)
    logits = jnp.zeros((2, 2))
    playing = rollouts.start(ours, 2, None, jax.random.key(0))
    actor = lambda obs, memory, first: (logits, memory)
    _, played = rollouts.play(ours, policy, actor, playing, jax.random.key(1), 5)
    noise = policy.noise(jax.random.key(0), (2,))
    act = lambda obs, memory, first: (policy.sample(logits, noise), logits, memory)
    collected = hosts.collect(env, act, 5)
    for a, b in zip(collected, played, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_what_is_not_finite_is_left_out():
    """The step that led there, and the one that begins there."""

    class Breaks(gymnasium.ObservationWrapper):
        steps = 0

        def observation(self, obs):
            self.steps += 1
            return np.where(self.steps == 3, np.float32(np.nan), obs)

    env = hosts.GymnasiumVector(SyncVectorEnv([lambda: Breaks(make_host())]), seed=0)
    masks = [env.step(np.zeros(1, int)).mask[0] for _ in range(4)]
    assert masks == [True, False, False, True]


def test_gymnasiums_own_cartpole():
    envs = CartPoleVectorEnv(num_envs=5, max_episode_steps=LIMIT)
    env = hosts.GymnasiumVector(envs, seed=0, memory=np.zeros(5, int))
    seen = hosts.collect(env, act, 60)
    assert_cartpoles(seen)
    np.testing.assert_array_equal(seen.reward, seen.mask)


def assert_cartpoles(seen):
    """Every step not masked is one of our cart, and goes on where the last one led."""
    obs, actions, final_obs = (
        x[seen.mask] for x in (seen.obs, seen.actions, seen.final_obs)
    )
    state = environments.State(jnp.asarray(obs), jnp.zeros(len(obs), jnp.int32))
    keys = jax.random.split(jax.random.key(0), len(obs))
    step = jax.jit(jax.vmap(environments.cartpole().step))
    ours = step(keys, state, jnp.asarray(actions))
    np.testing.assert_allclose(ours.obs, final_obs, rtol=1e-5, atol=1e-6)
    assert 200 < len(obs) < 300
    after, before = seen.obs[:, 1:], seen.final_obs[:, :-1]
    went_on = ~seen.first[:, 1:]
    np.testing.assert_array_equal(after[went_on], before[went_on])
    assert (np.abs(seen.obs[seen.first]) <= 0.05).all()
    ended = seen.terminated | seen.truncated
    np.testing.assert_array_equal(seen.first[:, 2:], ended[:, :-2])
    np.testing.assert_array_equal(~seen.mask[:, 1:], ended[:, :-1])
    assert seen.first[:, 0].all() and not seen.first[:, 1].any()


class Told(gymnasium.Env):
    """Observes what it was told, in float64."""

    def __init__(self, action_space, obs_space=None):
        self.action_space = action_space
        size = action_space.shape
        bounds = spaces.Box(-np.inf, np.inf, size, np.float64)
        self.observation_space = obs_space or bounds

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.observation_space.shape), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return np.asarray(action, np.float64), 0.5, False, False, {}


def told(space, obs_space=None):
    return SyncVectorEnv([lambda: Told(space, obs_space)] * 2)


@pytest.mark.parametrize(
    ("space", "actions", "want"),
    [
        (
            spaces.Box(np.float32([-2, 0]), np.float32([2, 0.1])),
            np.float32([[-9.0, 1.0], [0.5, 0.0]]),
            np.float32([[-2.0, 0.1], [1.0, 0.05]]),
        ),
        (
            spaces.Box(-0.4, 0.4, (2,), np.float64),
            np.float32([[1.0, -1.0], [9.0, -0.5]]),
            [[0.4, -0.4], [0.4, -0.2]],
        ),
        (spaces.Discrete(3), np.int32([2, 0]), [2, 0]),
        (spaces.Discrete(3, start=-1), np.int32([2, 0]), [1, -1]),
        (spaces.MultiDiscrete([2, 5]), np.int32([[1, 4], [0, 3]]), [[1, 4], [0, 3]]),
        (
            spaces.MultiDiscrete([2, 5], start=[10, 20]),
            np.int32([[1, 4], [0, 3]]),
            [[11, 24], [10, 23]],
        ),
    ],
)
def test_actions_are_in_the_environments_units(space, actions, want):
    env = hosts.GymnasiumVector(told(space))
    after = env.step(actions)
    np.testing.assert_allclose(env.obs, np.float32(want), rtol=1e-6)
    np.testing.assert_array_equal(after.final_obs, env.obs)
    dtypes = [env.obs.dtype, after.final_obs.dtype, after.reward.dtype]
    assert dtypes == ["float32"] * 3 and (after.reward == 0.5).all()


def test_to_env_comes_between_policy_and_environment():
    env = hosts.GymnasiumVector(told(spaces.Box(-2, 2, (1,))))
    policy = policies.policy_for(env.spec)  # draws before tanh, and keeps what it drew
    drawn = jnp.array([[0.5], [-3.0]])
    act = lambda obs, memory, first: (drawn, drawn, memory)
    seen = hosts.collect(env, act, 1, policy.to_env)
    np.testing.assert_array_equal(seen.actions[:, 0], drawn)
    np.testing.assert_allclose(seen.final_obs[:, 0], 2 * np.tanh(drawn), rtol=1e-6)


def test_spec_tells_what_a_policy_must_know():
    sizes = lambda space: hosts.spec(told(space))[2:5]
    assert sizes(spaces.Discrete(3)) == ((), 3, None)
    assert sizes(spaces.MultiDiscrete([2, 5])) == ((2,), (2, 5), None)
    assert sizes(spaces.Box(-2, 2, (4,))) == ((4,), None, 4)
    spec = hosts.GymnasiumVector(told(spaces.Discrete(3))).spec
    for call in (spec.reset, spec.step):
        with pytest.raises(TypeError, match=r"no pure reset and step.*hosts\.collect"):
            call(jax.random.key(0))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(0, np.inf, (2,)),
        spaces.Box(-1, 1, (2, 2)),
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        spaces.MultiBinary(3),
    ],
)
def test_spec_refuses_actions(space):
    with pytest.raises(ValueError, match=r"(?s)actions are .*nor a vector with bounds"):
        hosts.GymnasiumVector(told(space))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(16),
        spaces.Box(0, 255, (8, 8), np.uint8),
        spaces.Dict({"a": spaces.Discrete(2)}),
    ],
)
def test_spec_refuses_observations(space):
    with pytest.raises(ValueError, match=r"observations are .*not one array of floats"):
        hosts.spec(told(spaces.Discrete(2), space))


@pytest.fixture
def envpool():
    return pytest.importorskip("envpool", reason="envpool is not installed")


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_envpool_spends_a_step_on_a_reset(envpool):
    options = {"num_envs": 5, "seed": 0, "num_threads": 1, "max_episode_steps": LIMIT}
    envs = envpool.make_gymnasium("CartPole-v1", **options)
    env = hosts.EnvpoolVector(envs, np.zeros(5, int))
    assert env.spec[2:5] == ((4,), 2, None)
    seen = joined([hosts.collect(env, act, 30) for _ in range(2)])
    assert_cartpoles(seen)
    np.testing.assert_array_equal(seen.reward, seen.mask)
    assert seen.terminated.any() and seen.truncated.any()
    for i in range(5):  # the counts of its memory end at the limit
        time = seen.outputs[i]
        assert (time[seen.truncated[i]] == LIMIT).all()
        assert (time[seen.terminated[i]] < LIMIT).all()
    with pytest.raises(ValueError, match=r"a batch of 2 of 5 environments"):
        envs = envpool.make_gymnasium("CartPole-v1", batch_size=2, **options)
        hosts.EnvpoolVector(envs)


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_envpool_takes_continuous_actions(envpool):
    env = hosts.EnvpoolVector(envpool.make_gymnasium("Pendulum-v1", num_envs=3, seed=0))
    cos, sin, speed = env.obs.T
    actions = np.float32([[-0.5], [0.25], [3.0]])
    after = env.step(actions)
    physics = jnp.stack([jnp.arctan2(sin, cos), speed], 1)
    states = environments.State(physics, jnp.zeros(3, jnp.int32))
    keys = jax.random.split(jax.random.key(0), 3)
    ours = jax.vmap(environments.pendulum().step)(keys, states, jnp.asarray(actions))
    np.testing.assert_allclose(after.final_obs, ours.obs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.reward, ours.reward, rtol=1e-4)
