"""PPO for control: one loop, its details by options, whole under jit.

    one = trainer(environments.cartpole(), PPO())
    run = jax.jit(one.init)(jax.random.key(0))
    run, metrics = jax.jit(one.update)(run)  # plays, then learns from what it saw
    returns = jax.jit(one.evaluate)(run, jax.random.key(1))

All are pure functions of one seed: `vmap` them over keys, and over hyper-parameters by
calling `trainer` inside of it. An environment on the host brings its own rollouts:
`act` is what a policy does at a step, `learn` the second half of `update`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree

import jaxppo

from . import losses, normalization, policies, rollouts, updates
from .environments import Environment
from .networks import Memory, Network, Networks
from .normalization import Statistics
from .options import PPO
from .rollouts import Playing, Rollout
from .updates import Metrics


class Seen(NamedTuple):
    """What was counted of all that was seen, up to the last update."""

    obs: Statistics
    discounted: Statistics  # sums of past rewards
    so_far: jax.Array  # (num_envs,) those sums


class Run(NamedTuple):
    """All that training carries; save it, and the rest of the run is determined."""

    train: jaxppo.TrainState
    playing: Playing
    critic_memory: Memory
    under_way: rollouts.Episodes
    seen: Seen
    key: jax.Array


class Trainer(NamedTuple):
    """Pure functions of one seed."""

    init: Callable[..., Run]  # key, on_host=False -> Run
    update: Callable[[Run], tuple[Run, Metrics]]
    learn: Callable[[Run, Rollout, jax.Array], tuple[Run, Metrics]]  # ..., key -> ...
    act: Callable[..., tuple[jax.Array, jax.Array, Memory]]
    # run, obs, memory, first, key -> actions, outputs, memory
    evaluate: Callable[..., jax.Array]  # run, key, episodes, max_steps -> returns
    watch: Callable[..., Rollout]  # run, key, steps -> of one environment


def trainer(env: Environment, o: PPO) -> Trainer:
    """PPO for one environment and one set of hyper-parameters."""
    policy = policies.policy_for(env, o.continuous)
    draw, networks = _networks(env, policy, o)
    updates.refuse(env, o)
    learner = updates.learner(env, policy, networks, o)

    def init(key: jax.Array, on_host: bool = False) -> Run:
        """Fresh networks and episodes; those on a host are not part of it."""
        net_key, env_key, key = jax.random.split(key, 3)
        params, net = draw(net_key)
        memory = net.actor.start(o.num_envs)
        playing = Playing(None, None, jnp.ones(o.num_envs, bool), memory)
        if not on_host:
            playing = rollouts.start(env, o.num_envs, memory, env_key)
        zeros = jnp.zeros(o.num_envs)
        return Run(
            learner.init(params),
            playing,
            net.critic.start(o.num_envs),
            rollouts.Episodes(zeros, jnp.zeros_like(zeros)),
            Seen(
                normalization.nothing(env.obs_shape),
                normalization.nothing(),
                jnp.zeros_like(zeros),
            ),
            key,
        )

    def scaled(run: Run, obs: jax.Array) -> jax.Array:
        return normalization.scaled(obs, run.seen.obs) if o.normalise_obs else obs

    def actor(run: Run) -> rollouts.Actor:
        net = networks(run.train.params).actor
        return lambda obs, memory, first: net(scaled(run, obs), memory, first)

    def act(run: Run, obs: jax.Array, memory: Memory, first: jax.Array, key: jax.Array):
        obs = jnp.where(jnp.isfinite(obs), obs, 0)  # it would be remembered
        outputs, memory = actor(run)(obs, memory, first)
        outputs = rollouts.legal_only(env, obs, outputs)
        noise = policy.noise(key, first.shape)
        return policy.sample(outputs, noise), outputs, memory

    def update(run: Run) -> tuple[Run, Metrics]:
        play_key, learn_key, key = jax.random.split(run.key, 3)
        playing, rollout = rollouts.play(
            env, policy, actor(run), run.playing, play_key, o.num_steps
        )
        run, metrics = learn(run, rollout, learn_key)
        return run._replace(playing=playing, key=key), metrics

    def learn(run: Run, rollout: Rollout, key: jax.Array) -> tuple[Run, Metrics]:
        rollout = rollouts.mended(rollout)
        critic = networks(run.train.params).critic
        obs, final_obs = scaled(run, rollout.obs), scaled(run, rollout.final_obs)
        values, memories = critic.along(obs, run.critic_memory, rollout.first)
        next_values, _ = critic(final_obs, memories, jnp.zeros_like(rollout.first))
        values, next_values = values[..., 0], next_values[..., 0]
        rewards, seen = _counted(run.seen, rollout, o)
        estimates, mask = updates.advantages(rollout, rewards, values, next_values, o)
        log_probs, _ = policy.log_prob(rollout.outputs, rollout.actions)
        rows: losses.Rows = {
            "obs": obs,
            "actions": rollout.actions,
            "outputs": rollout.outputs,
            "log_probs": log_probs,
            "values": values,
            "advantages": updates.batch_advantages(estimates.advantages, mask, o),
            "returns": estimates.returns,
            "first": rollout.first,
            "mask": mask,
        }
        if o.rpo_alpha:
            seed_key, key = jax.random.split(key)
            rows["seed"] = jax.random.bits(seed_key, log_probs.shape)
        if o.memory:  # a row is a sequence, and what was remembered before it
            rows["memory"] = run.playing.memory, run.critic_memory
        else:
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        train, metrics = learner.update(run.train, rows, key)
        for name in o.anneal:  # what it was at the start of the update
            now = updates.schedule(o, name)(run.train.step)
            metrics[name] = jaxppo.Mean(jnp.asarray(now), jnp.ones(()))
        if o.learning_rate_kl is not None:
            train, metrics = updates.learning_rate_adapted(
                train, metrics, o.learning_rate_kl
            )

        here, under_way, ended = rollouts.episodes(rollout, run.under_way)
        metrics["episode_return"] = jaxppo.token_mean(here.returns, ended)
        metrics["episode_length"] = jaxppo.token_mean(here.lengths, ended)
        left_out = 1 - rollout.mask.astype(jnp.float32)
        metrics["left_out"] = jaxppo.token_mean(left_out)
        explained = jaxppo.explained_variance(values, estimates.returns, mask)
        metrics["explained_variance"] = jaxppo.Mean(explained, jnp.ones(()))
        memory = None if memories is None else memories[:, -1]
        return run._replace(
            train=train, critic_memory=memory, under_way=under_way, seen=seen
        ), metrics

    def evaluate(
        run: Run, key: jax.Array, episodes: int = 100, max_steps: int = 1000
    ) -> jax.Array:
        """Returns of fresh episodes under the sampled policy."""
        memory = networks(run.train.params).actor.start(episodes)
        return rollouts.evaluate(
            env, policy, actor(run), episodes, memory, key, max_steps
        )

    def watch(run: Run, key: jax.Array, steps: int = 500) -> Rollout:
        """Steps of one environment, from a fresh episode on."""
        start_key, key = jax.random.split(key)
        memory = networks(run.train.params).actor.start(1)
        playing = rollouts.start(env, 1, memory, start_key)
        return rollouts.play(env, policy, actor(run), playing, key, steps)[1]

    return Trainer(init, update, learn, act, evaluate, watch)


def _networks(env: Environment, policy: policies.Policy, o: PPO):
    """`draw(key)` makes parameters and networks, `networks(params)` networks of them.

    The parameters of each network are one vector: a step of the optimiser is then a few
    operations instead of a few for each layer.
    """

    def fresh(key: jax.Array) -> Networks:
        rngs = nnx.Rngs(key)
        sizes: Any = dict(hidden=o.hidden, memory=o.memory, rngs=rngs)
        outputs: Any = dict(head_gain=o.head_gain, num_free=policy.num_free)
        actor = Network(env.obs_shape, policy.num_outputs, **outputs, **sizes)
        return Networks(actor, Network(env.obs_shape, 1, **sizes))

    abstract = nnx.eval_shape(lambda: fresh(jax.random.key(0)))
    graphs, shapes = zip(*map(nnx.split, abstract), strict=True)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    unravel = [ravel_pytree(x)[1] for x in zeros]

    def draw(key: jax.Array) -> tuple[dict[str, jax.Array], Networks]:
        net = fresh(key)
        vectors = [ravel_pytree(nnx.state(x))[0] for x in net]
        return dict(zip(Networks._fields, vectors, strict=True)), net

    def networks(params: dict[str, jax.Array]) -> Networks:
        vectors = [params[name] for name in Networks._fields]
        parts = zip(graphs, unravel, vectors, strict=True)
        actor, critic = (nnx.merge(graph, back(x)) for graph, back, x in parts)
        return Networks(actor, critic)

    return draw, networks


def _counted(seen: Seen, rollout: Rollout, o: PPO) -> tuple[jax.Array, Seen]:
    """Rewards, scaled if so asked, and what was seen with this rollout counted."""
    rewards = rollout.reward
    if o.normalise_rewards:
        ended = rollout.terminated | rollout.truncated
        sums, so_far = normalization.discounted(rewards, ended, seen.so_far, o.gamma)
        counted = normalization.updated(seen.discounted, sums, rollout.mask)
        rewards = normalization.by_deviation(rewards, counted)
        seen = seen._replace(discounted=counted, so_far=so_far)
    if o.normalise_obs:
        counted = normalization.updated(seen.obs, rollout.obs, rollout.mask)
        seen = seen._replace(obs=counted)
    return rewards, seen
