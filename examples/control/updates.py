"""An update: advantages of what was played, the loss, and the optimiser."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxppo
from jaxppo import recipes

from . import losses, policies, sharding
from .environments import Environment
from .networks import Networks
from .options import PPO
from .rollouts import Rollout

Metrics = dict[str, jaxppo.Metric]


def learner(
    env: Environment,
    policy: policies.Policy,
    networks: Callable[[Any], Networks],
    o: PPO,
) -> jaxppo.Learner:
    """What an update is: the loss, the optimiser, epochs and minibatches."""
    ours = o.system == "jaxppo"
    system = None if ours else losses.SYSTEMS[o.system]
    loss_of = losses.ours(o.value_loss) if system is None else system.loss
    value_clip = o.value_clip
    if value_clip is None:
        value_clip = losses.VALUE_CLIPS.get(o.value_loss, 0.2)

    def loss_fn(params, rows, *, kl_coef=None, step=None, **annealed):
        net = networks(params)
        actor_memory, critic_memory = rows.get("memory", (None, None))
        outputs, _ = net.actor.along(rows["obs"], actor_memory, rows["first"])
        values, _ = net.critic.along(rows["obs"], critic_memory, rows["first"])
        if env.legal is not None:
            outputs = jnp.where(jnp.isneginf(rows["outputs"]), -jnp.inf, outputs)
        if step is not None:
            outputs = with_noise(outputs, rows["seed"], step, o.rpo_alpha)
        now = losses.Now(
            *policy.log_prob(outputs, rows["actions"]),
            values[..., 0],
            policy.kl(rows["outputs"], outputs),
        )
        coefs = {"clip_eps": o.clip_eps, "entropy_coef": o.entropy_coef} | annealed
        coefs |= {"value_coef": o.value_coef, "value_clip": value_clip}
        coefs = losses.Coefs(**coefs, kl_coef=kl_coef)
        loss, metrics = loss_of(now, rows, coefs)
        return loss, metrics if ours else metrics | losses.diagnostics(now, rows, coefs)

    def prepared(rows):
        rows = sharding.of_rows(rows)
        if not ours or o.normalise != "minibatch":
            return rows
        advantages = jaxppo.whiten(rows["advantages"], rows.get("mask"), ddof=o.ddof)
        return rows | {"advantages": advantages}

    control = recipes.ppo_penalty_coef if system is None else system.kl_control
    adaptive = {}
    if o.kl_target is not None and control is not None:
        adaptive["kl_coef"] = control(target=o.kl_target)
    schedules: dict[str, Any] = {
        name: schedule(o, name) for name in o.anneal if name in COEFS
    }
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


COEFS = ("clip_eps", "entropy_coef")  # what is annealed but for the learning rate


def schedule(o: PPO, name: str) -> optax.Schedule:
    """An option, brought down to 0 over the optimiser's steps."""
    return optax.linear_schedule(getattr(o, name), 0.0, o.num_gradients)


def refuse(env: Environment, o: PPO) -> None:
    """Errors for options that would be passed over in silence."""
    if o.rpo_alpha and (env.action_size is None or o.continuous == "beta"):
        raise ValueError(
            f"rpo_alpha={o.rpo_alpha}: its noise is on a normal's mean. "
            'Fix: continuous="normal", or rpo_alpha=0'
        )
    if o.system == "jaxppo":
        return
    if o.kl_target is not None and losses.SYSTEMS[o.system].kl_control is None:
        raise ValueError(
            f"kl_target={o.kl_target}: the loss of {o.system} has no KL penalty. "
            'Fix: system="jaxppo" or "rllib", or minibatch_target_kl'
        )
    usual = PPO()
    for name in ("value_loss", "value_clip", "normalise", "ddof"):
        if getattr(o, name) != getattr(usual, name):
            raise ValueError(
                f"{name}={getattr(o, name)!r}: the loss of {o.system} has its own. "
                f'Fix: leave it out, or system="jaxppo"'
            )


def with_noise(
    outputs: jax.Array, seeds: jax.Array, step: jax.Array, alpha: float
) -> jax.Array:
    """Means moved by noise of U(-alpha, alpha), new for every row at every step."""
    mean, spread = jnp.split(outputs, 2, -1)

    def draw(seed: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return jax.random.uniform(key, mean.shape[-1:], mean.dtype, -1.0, 1.0)

    noise = jax.vmap(draw)(seeds.ravel()).reshape(mean.shape)
    return jnp.concatenate([mean + alpha * noise, spread], -1)


def advantages(
    rollout: Rollout,
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    o: PPO,
) -> tuple[jaxppo.Advantages, jax.Array]:
    """Advantages, and which steps to learn from."""
    final, mask = rollout.terminated, rollout.mask
    if o.truncation == "terminal":
        final = final | rollout.truncated
    # A time limit is no end: what follows it is worth V(final_obs), and the advantage
    # looks no further (lambda = 0).
    # A step that is left out is no end either: the one before it looks no further.
    followed = jnp.pad(mask[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    estimates = jaxppo.gae(
        rewards,
        values,
        o.gamma * (1 - final.astype(jnp.float32)),
        lambda_=jnp.where(followed & ~rollout.truncated, o.gae_lambda, 0),
        next_values=next_values,
        mask=mask,
    )
    if o.truncation == "mask":
        mask = mask & ~rollout.truncated
    return estimates, mask


def batch_advantages(advantages: jax.Array, mask: jax.Array, o: PPO) -> jax.Array:
    """Those of a whole batch, as the loss is to get them."""
    if o.system != "jaxppo":
        return losses.SYSTEMS[o.system].advantages(advantages, mask)
    if o.normalise == "batch":
        return jaxppo.whiten(advantages, mask, ddof=o.ddof)
    return advantages


def learning_rate_adapted(
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
    annealed = "learning_rate" in o.anneal
    rate = schedule(o, "learning_rate") if annealed else o.learning_rate
    return optax.chain(clip, optax.adam(rate, eps=o.adam_eps))
