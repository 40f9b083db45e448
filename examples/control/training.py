"""PPO for control: one loop, its details by options, whole under jit.

    one = trainer(environments.cartpole(), PPO())
    run = jax.jit(one.init)(jax.random.key(0))
    run, metrics = jax.jit(one.update)(run)  # plays, then learns from what it saw
    returns = jax.jit(one.evaluate)(run, jax.random.key(1))

All are pure functions of one seed: `vmap` them over keys, and over hyper-parameters by
calling `trainer` inside of it. An environment on the host brings its own rollouts:
`act` is what a policy does at a step, `learn` the second half of `update`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

import jaxppo
from jaxppo import recipes

from . import losses, normalization, policies, rollouts, sharding
from .environments import Environment
from .networks import Memory, Network
from .normalization import Statistics
from .rollouts import Playing, Rollout

Annealed = Literal["learning_rate", "clip_eps", "entropy_coef"]
Metrics = dict[str, jaxppo.Metric]


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
    gamma: float = 0.99
    """Discount of the reward per step."""
    gae_lambda: float = 0.95
    """How far advantages look ahead: 0 one step, 1 to the end."""
    truncation: Literal["bootstrap", "terminal", "mask"] = "bootstrap"
    """A time limit leaves the value of where it cut, or nothing; or masks the step."""
    normalise: Literal["minibatch", "batch", "none"] = "minibatch"
    """Over what advantages are brought to mean 0 and deviation 1."""
    ddof: int = 0
    """Subtracted from the count in that deviation: 0 as in JAX, 1 as in torch."""

    clip_eps: float = 0.2
    """How far the ratio may move from 1."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the critic's loss."""
    value_loss: losses.ValueLoss = "squared"
    """Clipped as in CleanRL, bounded as in SB3, clamped as in RLlib, or Huber's."""
    value_clip: float = 0.2
    """How far a value may move, or the largest squared error, or Huber's delta."""
    kl_target: float | None = None
    """Add a penalty on KL(old || new), its weight adapted to keep the KL near this."""
    rpo_alpha: float = 0.0
    """Half the range of the noise on a normal's mean in updates (RPO)."""
    system: losses.SystemName = "jaxppo"
    """Whose loss to minimise; `losses.as_in` sets what else it does differently."""

    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    anneal: tuple[Annealed, ...] = ("learning_rate",)
    """What is brought down to 0, linearly."""
    learning_rate_kl: float | None = None
    """Keep the KL of an update between half and twice this by the learning rate."""
    max_grad_norm: float = 0.5
    """Bound of the gradient's norm."""
    joint_clip: bool = False
    """One norm for actor and critic, instead of one each."""
    adam_eps: float = 1e-5
    """Added to Adam's denominator."""
    minibatch_target_kl: float | None = None
    """End an update before a minibatch that has moved further (SB3's, times 1.5)."""
    epoch_target_kl: float | None = None
    """End an update after a pass that has moved further (CleanRL's)."""

    continuous: policies.Continuous = "tanh_normal"
    """The distribution of continuous actions."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    memory: int = 0
    """Width of a GRU after them; 0 for none. Minibatches are then whole sequences."""
    head_gain: float = 0.01
    """Of the actor's last layer at the start: small is near uniform."""
    normalise_obs: bool = False
    """Scale observations by the mean and deviation of those seen so far."""
    normalise_rewards: bool = False
    """Scale rewards by the deviation of their discounted sum."""
    microbatch: int = 256
    """Rows whose gradient is taken at once: as many as a core's cache holds."""

    @property
    def num_updates(self) -> int:
        """Updates that make up the training."""
        return max(1, self.total_steps // (self.num_envs * self.num_steps))

    @property
    def num_gradients(self) -> int:
        """Optimiser steps that make up the training."""
        return self.num_updates * self.num_epochs * self.num_minibatches


class Networks(NamedTuple):
    """They share nothing, so that neither's gradient disturbs the other."""

    actor: Network
    critic: Network


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
    learner = _learner(env, policy, networks, o)

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
        critic = networks(run.train.params).critic
        obs, final_obs = scaled(run, rollout.obs), scaled(run, rollout.final_obs)
        values, memories = critic.along(obs, run.critic_memory, rollout.first)
        next_values, _ = critic(final_obs, memories, jnp.zeros_like(rollout.first))
        values, next_values = values[..., 0], next_values[..., 0]
        rewards, seen = _counted(run.seen, rollout, o)
        estimates, mask = _advantages(rollout, rewards, values, next_values, o)
        log_probs, _ = policy.log_prob(rollout.outputs, rollout.actions)
        rows: losses.Rows = {
            "obs": obs,
            "actions": rollout.actions,
            "outputs": rollout.outputs,
            "log_probs": log_probs,
            "values": values,
            "advantages": _batch_advantages(estimates.advantages, mask, o),
            "returns": estimates.returns,
            "first": rollout.first,
        }
        rows |= {} if mask is None else {"mask": mask}
        if o.rpo_alpha:
            rows["seed"] = jax.random.bits(key, log_probs.shape)
        if o.memory:  # a row is a sequence, and what was remembered before it
            rows["memory"] = run.playing.memory, run.critic_memory
        else:
            rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        train, metrics = learner.update(run.train, rows, key)
        if o.learning_rate_kl is not None:
            train, metrics = _learning_rate_adapted(train, metrics, o.learning_rate_kl)

        here, under_way, ended = rollouts.episodes(rollout, run.under_way)
        metrics["episode_return"] = jaxppo.token_mean(here.returns, ended)
        metrics["episode_length"] = jaxppo.token_mean(here.lengths, ended)
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


def _learner(
    env: Environment,
    policy: policies.Policy,
    networks: Callable[[Any], Networks],
    o: PPO,
) -> jaxppo.Learner:
    """What an update is: the loss, the optimiser, epochs and minibatches."""
    ours = o.system == "jaxppo"
    system = None if ours else losses.SYSTEMS[o.system]
    loss_of = losses.ours(o.value_loss) if system is None else system.loss

    def loss_fn(params, rows, *, kl_coef=None, step=None, **annealed):
        net = networks(params)
        actor_memory, critic_memory = rows.get("memory", (None, None))
        outputs, _ = net.actor.along(rows["obs"], actor_memory, rows["first"])
        values, _ = net.critic.along(rows["obs"], critic_memory, rows["first"])
        if env.legal is not None:
            outputs = jnp.where(jnp.isneginf(rows["outputs"]), -jnp.inf, outputs)
        if step is not None:
            outputs = _with_noise(outputs, rows["seed"], step, o.rpo_alpha)
        now = losses.Now(
            *policy.log_prob(outputs, rows["actions"]),
            values[..., 0],
            policy.kl(rows["outputs"], outputs),
        )
        coefs = {"clip_eps": o.clip_eps, "entropy_coef": o.entropy_coef} | annealed
        coefs |= {"value_coef": o.value_coef, "value_clip": o.value_clip}
        return loss_of(now, rows, losses.Coefs(**coefs, kl_coef=kl_coef))

    def prepared(rows):
        rows = sharding.of_rows(rows)
        if not ours or o.normalise != "minibatch":
            return rows
        advantages = jaxppo.whiten(rows["advantages"], rows.get("mask"), ddof=o.ddof)
        return rows | {"advantages": advantages}

    schedules: dict[str, Any] = {
        name: optax.linear_schedule(getattr(o, name), 0.0, o.num_gradients)
        for name in o.anneal
        if name != "learning_rate"
    }
    adaptive = {}
    if o.kl_target is not None:
        control = system.kl_control if system else None
        adaptive["kl_coef"] = (
            control(o.kl_target)
            if control
            else recipes.ppo_penalty_coef(target=o.kl_target)
        )
    if o.rpo_alpha:
        schedules["step"] = lambda step: step
    size = (o.num_envs if o.memory else o.num_envs * o.num_steps) // o.num_minibatches
    cut = ours and not o.memory and size % o.microbatch == 0
    return jaxppo.learner(
        loss_fn,
        optimizer(o),
        num_epochs=o.num_epochs,
        num_minibatches=o.num_minibatches,
        num_microbatches=size // o.microbatch if cut else 1,
        prepare=prepared,
        schedules=schedules,
        adaptive=adaptive,
        minibatch_target_kl=o.minibatch_target_kl,
        epoch_target_kl=o.epoch_target_kl,
    )


def _with_noise(
    outputs: jax.Array, seeds: jax.Array, step: jax.Array, alpha: float
) -> jax.Array:
    """Means moved by noise of U(-alpha, alpha), new for every row at every step."""
    mean, spread = jnp.split(outputs, 2, -1)

    def draw(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return jax.random.uniform(key, mean.shape[-1:], mean.dtype, -1.0, 1.0)

    noise = jax.vmap(draw)(seeds.ravel()).reshape(mean.shape)
    return jnp.concatenate([mean + alpha * noise, spread], -1)


def _advantages(
    rollout: Rollout,
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    o: PPO,
) -> tuple[jaxppo.Advantages, jax.Array | None]:
    """Advantages, and which steps to learn from."""
    final, mask = rollout.terminated, rollout.mask
    if o.truncation == "terminal":
        final = final | rollout.truncated
    # A time limit is no end: what follows it is worth V(final_obs), and the advantage
    # looks no further (lambda = 0).
    estimates = jaxppo.gae(
        rewards,
        values,
        o.gamma * (1 - final.astype(jnp.float32)),
        lambda_=jnp.where(rollout.truncated, 0, o.gae_lambda),
        next_values=next_values,
        mask=mask,
    )
    if o.truncation == "mask":
        mask = ~rollout.truncated if mask is None else mask & ~rollout.truncated
    return estimates, mask


def _batch_advantages(
    advantages: jax.Array, mask: jax.Array | None, o: PPO
) -> jax.Array:
    if o.system != "jaxppo":
        return losses.SYSTEMS[o.system].advantages(advantages, mask)
    if o.normalise == "batch":
        return jaxppo.whiten(advantages, mask, ddof=o.ddof)
    return advantages


def _counted(seen: Seen, rollout: Rollout, o: PPO) -> tuple[jax.Array, Seen]:
    """Rewards, scaled if so asked, and what was seen with this rollout counted."""
    rewards = rollout.reward
    if o.normalise_rewards:
        ended = rollout.terminated | rollout.truncated
        sums, so_far = normalization.discounted(rewards, ended, seen.so_far, o.gamma)
        counted = normalization.updated(seen.discounted, sums, rollout.mask)
        rewards = normalization.rewards_scaled(rewards, counted)
        seen = seen._replace(discounted=counted, so_far=so_far)
    if o.normalise_obs:
        counted = normalization.updated(seen.obs, rollout.obs, rollout.mask)
        seen = seen._replace(obs=counted)
    return rewards, seen


def _learning_rate_adapted(
    train: jaxppo.TrainState, metrics: Metrics, target: float
) -> tuple[jaxppo.TrainState, Metrics]:
    """By 1.5 up or down, as in rsl_rl, brax and sbx, but once an update."""
    kl = metrics["approx_kl"].value
    rate = optax.tree_utils.tree_get(train.opt_state, "learning_rate")
    factor = jnp.where(kl > 2 * target, 1 / 1.5, jnp.where(kl < target / 2, 1.5, 1.0))
    rate = jnp.clip(rate * factor, 1e-5, 1e-2)
    opt_state = optax.tree_utils.tree_set(train.opt_state, learning_rate=rate)
    metrics["learning_rate"] = jaxppo.Mean(rate, jnp.ones(()))
    return dataclasses.replace(train, opt_state=opt_state), metrics


def optimizer(o: PPO) -> optax.GradientTransformation:
    """Adam, annealed, with the gradients of actor and critic clipped separately."""
    clip = optax.clip_by_global_norm(o.max_grad_norm)
    if not o.joint_clip:
        labels = {name: name for name in Networks._fields}
        clip = optax.partition(dict.fromkeys(labels, clip), labels)
    if o.learning_rate_kl is not None:
        adam = optax.inject_hyperparams(optax.adam)
        return optax.chain(clip, adam(o.learning_rate, eps=o.adam_eps))
    rate: Any = o.learning_rate
    if "learning_rate" in o.anneal:
        rate = optax.linear_schedule(rate, 0.0, o.num_gradients)
    return optax.chain(clip, optax.adam(rate, eps=o.adam_eps))
