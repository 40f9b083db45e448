"""PPO on environments in pure JAX: rollout, advantages and update, all under jit."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxppo

from .environments import Environment
from .policies import ActorCritic, policy_for


@dataclasses.dataclass(frozen=True)
class PPO:
    """PPO's hyper-parameters."""

    total_steps: int = 150_000
    """Environment steps to train for, over all environments of a seed."""
    num_envs: int = 16
    """Environments stepped side by side."""
    num_steps: int = 128
    """Steps of each environment between updates."""
    num_epochs: int = 4
    """Passes over what was collected."""
    num_minibatches: int = 4
    """Optimiser steps per pass."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    anneal: bool = True
    """Bring the learning rate down to 0, linearly."""
    max_grad_norm: float = 0.5
    """Bound of the gradient's norm, for actor and critic each."""
    gamma: float = 0.99
    """Discount of the reward per step."""
    gae_lambda: float = 0.95
    """How far advantages look ahead: 0 one step, 1 to the end."""
    clip_eps: float = 0.2
    """How far the ratio may move from 1."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the critic's loss."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""

    @property
    def num_updates(self) -> int:
        """Updates that make up the training."""
        return max(1, self.total_steps // (self.num_envs * self.num_steps))


class Run(NamedTuple):
    """All that training carries; save it, and the rest of the run is determined."""

    train: jaxppo.TrainState
    env_state: Any  # of each environment
    obs: jax.Array  # (num_envs, *obs_shape)
    returns: jax.Array  # (num_envs,) of the episodes under way
    key: jax.Array


class Trainer(NamedTuple):
    """Three pure functions of one seed: `vmap` them over keys to train many."""

    init: Callable[[jax.Array], Run]  # key -> Run
    update: Callable[[Run], tuple[Run, dict[str, jaxppo.Metric]]]
    evaluate: Callable[[Any, jax.Array], jax.Array]  # params, keys -> returns


def trainer(env: Environment, config: PPO) -> Trainer:
    """PPO for one environment and one set of hyper-parameters."""
    policy = policy_for(env)
    (obs_size,) = env.obs_shape

    def network(key: jax.Array) -> ActorCritic:
        rngs = nnx.Rngs(key)
        return ActorCritic(obs_size, policy.num_outputs, config.hidden, rngs)

    graph = nnx.graphdef(nnx.eval_shape(lambda: network(jax.random.key(0))))

    def loss_fn(params, batch):
        net = nnx.merge(graph, params)
        log_probs, entropy = policy.log_prob(net.actor(batch["obs"]), batch["actions"])
        return jaxppo.ppo_loss(
            log_probs,
            batch["log_probs"],
            # Per minibatch, as CleanRL does; whiten before with microbatches.
            jaxppo.whiten(batch["advantages"]),
            values=net.values(batch["obs"]),
            returns=batch["returns"],
            entropy=entropy,
            clip_eps=config.clip_eps,
            value_coef=config.value_coef,
            entropy_coef=config.entropy_coef,
        )

    learner = jaxppo.learner(
        loss_fn,
        optimizer(config),
        num_epochs=config.num_epochs,
        num_minibatches=config.num_minibatches,
    )

    def init(key: jax.Array) -> Run:
        net_key, env_key, key = jax.random.split(key, 3)
        params = nnx.state(network(net_key))
        env_keys = jax.random.split(env_key, config.num_envs)
        env_state, obs = jax.vmap(env.reset)(env_keys)
        returns = jnp.zeros(config.num_envs)
        return Run(learner.init(params), env_state, obs, returns, key)

    def act(params, obs: jax.Array, key: jax.Array):
        outputs = nnx.merge(graph, params).actor(obs)
        actions = policy.sample(key, outputs)
        return actions, policy.log_prob(outputs, actions)[0]

    def collect(run: Run, key: jax.Array):
        """`num_steps` of each environment, as (num_envs, num_steps) arrays."""

        def step(carry, key):
            env_state, obs, returns = carry
            act_key, env_key = jax.random.split(key)
            actions, log_probs = act(run.train.params, obs, act_key)
            env_keys = jax.random.split(env_key, config.num_envs)
            after = jax.vmap(env.step)(env_keys, env_state, policy.to_env(actions))
            ended = after.terminated | after.truncated
            returns = returns + after.reward
            seen = {
                "obs": obs,
                "actions": actions,
                "log_probs": log_probs,
                "reward": after.reward,
                "terminated": after.terminated,
                "truncated": after.truncated,
                "final_obs": after.final_obs,
                "ended": ended,
                "episode_return": returns,
            }
            return (after.state, after.obs, jnp.where(ended, 0, returns)), seen

        carry = (run.env_state, run.obs, run.returns)
        keys = jax.random.split(key, config.num_steps)
        carry, seen = jax.lax.scan(step, carry, keys)
        return carry, jax.tree.map(lambda x: x.swapaxes(0, 1), seen)

    def update(run: Run) -> tuple[Run, dict[str, jaxppo.Metric]]:
        collect_key, learn_key, key = jax.random.split(run.key, 3)
        (env_state, obs, returns), seen = collect(run, collect_key)
        net = nnx.merge(graph, run.train.params)
        values = net.values(seen["obs"])
        # A time limit is no end: what follows it is worth V(final_obs), and the
        # advantage looks no further (lambda = 0).
        estimates = jaxppo.gae(
            seen["reward"],
            values,
            config.gamma * (1 - seen["terminated"].astype(jnp.float32)),
            lambda_=jnp.where(seen["truncated"], 0, config.gae_lambda),
            next_values=net.values(seen["final_obs"]),
        )
        rows = {
            "obs": seen["obs"],
            "actions": seen["actions"],
            "log_probs": seen["log_probs"],
            "advantages": estimates.advantages,
            "returns": estimates.returns,
        }
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        train, metrics = learner.update(run.train, rows, learn_key)
        metrics["episode_return"] = jaxppo.token_mean(
            seen["episode_return"], seen["ended"]
        )
        explained = jaxppo.explained_variance(values, estimates.returns)
        metrics["explained_variance"] = jaxppo.Mean(explained, jnp.ones(()))
        return Run(train, env_state, obs, returns, key), metrics

    def evaluate(params, key: jax.Array, episodes: int = 100, max_steps: int = 1000):
        """Returns of fresh episodes under the sampled policy."""
        reset_key, key = jax.random.split(key)
        env_state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))

        def step(carry):
            time, env_state, obs, returns, ended = carry
            act_key, env_key = jax.random.split(jax.random.fold_in(key, time))
            actions, _ = act(params, obs, act_key)
            env_keys = jax.random.split(env_key, episodes)
            after = jax.vmap(env.step)(env_keys, env_state, policy.to_env(actions))
            returns = returns + jnp.where(ended, 0, after.reward)
            ended = ended | after.terminated | after.truncated
            return time + 1, after.state, after.obs, returns, ended

        def going_on(carry):
            time, *_, ended = carry
            return (time < max_steps) & ~jnp.all(ended)

        start = (
            jnp.int32(0),
            env_state,
            obs,
            jnp.zeros(episodes),
            jnp.zeros(episodes, bool),
        )
        return jax.lax.while_loop(going_on, step, start)[3]

    return Trainer(init, update, evaluate)


def optimizer(config: PPO) -> optax.GradientTransformation:
    """Adam, annealed, with the gradients of actor and critic clipped separately."""
    num_gradients = config.num_updates * config.num_epochs * config.num_minibatches
    schedule = optax.linear_schedule(config.learning_rate, 0.0, num_gradients)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(
        optax.partition({"actor": clip, "critic": clip}, actor_or_critic),
        optax.adam(schedule if config.anneal else config.learning_rate, eps=1e-5),
    )


def actor_or_critic(params: Any) -> Any:
    """The network each parameter belongs to, to clip their gradients separately."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)
