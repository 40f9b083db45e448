"""Learn a gymnasium environment that runs on the host, outside of jit.

    python examples/gymnasium_vector.py --help
    python examples/gymnasium_vector.py --env-name LunarLander-v3

The environments step in Python; policy and update are compiled. What the mask leaves
out (the steps gymnasium spends on resets) is not trained on.
"""

import dataclasses
import functools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from control import adapters, policies, training
from flax import nnx
from tqdm import tqdm

import jaxppo


@dataclasses.dataclass(frozen=True)
class Options(training.PPO):
    """PPO's hyper-parameters, and what to run."""

    env_name: str = "CartPole-v1"
    """A name that gymnasium knows, of discrete actions."""
    seed: int = 0
    """Of everything random."""


OPTIONS = Options(
    total_steps=60_000,
    num_envs=16,
    num_epochs=10,
    num_minibatches=8,
    learning_rate=1e-3,
    gamma=0.98,
    gae_lambda=0.9,
    entropy_coef=0.0,
)


def train(options: Options) -> list[float]:
    """Returns of the last hundred episodes played, in order."""
    envs = gymnasium.make_vec(options.env_name, options.num_envs, "sync")
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    env = adapters.GymnasiumVector(envs, seed=options.seed)
    actions = envs.single_action_space
    if not isinstance(actions, gymnasium.spaces.Discrete):
        raise SystemExit(
            f"{options.env_name} has actions {actions}, not discrete ones."
        )
    key = jax.random.key(options.seed)
    sizes = env.obs.shape[-1], int(actions.n)
    net = policies.ActorCritic(*sizes, options.hidden, nnx.Rngs(key))
    graph, params = nnx.split(net)

    def loss_fn(params, batch):
        net = nnx.merge(graph, params)
        log_probs, entropy = jaxppo.categorical(
            net.actor(batch["obs"]), batch["action"]
        )
        return jaxppo.ppo_loss(
            log_probs,
            batch["log_prob"],
            batch["advantages"],
            batch["mask"],
            values=net.values(batch["obs"]),
            returns=batch["returns"],
            entropy=entropy,
            clip_eps=options.clip_eps,
            value_coef=options.value_coef,
            entropy_coef=options.entropy_coef,
        )

    learner = jaxppo.learner(
        loss_fn,
        training.optimizer(options),
        num_epochs=options.num_epochs,
        num_minibatches=options.num_minibatches,
    )

    @jax.jit
    def act(params, obs, key):
        logits = nnx.merge(graph, params).actor(obs)
        action = jax.random.categorical(key, logits)
        return {"action": action, "log_prob": jaxppo.categorical(logits, action)[0]}

    def play(params, keys, obs):
        return jax.device_get(act(params, obs, next(keys)))

    @jax.jit
    def update(state, seen, key):
        seen = jax.tree.map(lambda x: x.swapaxes(0, 1), seen)  # time last
        net = nnx.merge(graph, state.params)
        estimates = jaxppo.gae(
            seen["reward"],
            net.values(seen["obs"]),
            options.gamma * (1 - seen["terminated"].astype(jnp.float32)),
            lambda_=jnp.where(seen["truncated"], 0, options.gae_lambda),
            next_values=net.values(seen["final_obs"]),
            mask=seen["mask"],
        )
        advantages = jaxppo.whiten(estimates.advantages, seen["mask"])
        seen |= {"advantages": advantages, "returns": estimates.returns}
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
        return learner.update(state, rows, key)

    state, returns = learner.init(params), []
    with tqdm(total=options.total_steps, unit=" steps", unit_scale=True) as bar:
        for _ in range(options.num_updates):
            keys = iter(jax.random.split(key, options.num_steps + 2))
            policy = functools.partial(play, state.params, keys)
            seen = adapters.collect(env, policy, options.num_steps)
            state, _ = update(state, seen, next(keys))
            jaxppo.check_progress(state)
            key = next(keys)
            returns = [float(x) for x in envs.return_queue]
            bar.set_postfix_str(f"return {np.mean(returns[-20:] or 0):.1f}")
            bar.update(options.num_envs * options.num_steps)
    print(f"mean return of the last 20 episodes: {np.mean(returns[-20:]):.1f}")
    return returns


if __name__ == "__main__":
    train(tyro.cli(Options, default=OPTIONS, description=__doc__.partition("\n")[0]))
