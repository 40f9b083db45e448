"""Learn a gymnasium environment that runs on the host, outside of jit.

    python examples/gymnasium_vector.py --help
    python examples/gymnasium_vector.py --env-name Hopper-v5 --normalise-obs

The environments step in Python; acting and learning are compiled, and are those of the
other examples. What the mask leaves out (the steps gymnasium spends on resets) is not
trained on.
"""

import dataclasses

import gymnasium
import jax
import numpy as np
import tyro
from control import hosts, policies, training
from tqdm import tqdm

import jaxppo


@dataclasses.dataclass(frozen=True)
class Options(training.PPO):
    """PPO's hyper-parameters, and what to run."""

    env_name: str = "CartPole-v1"
    """A name that gymnasium knows."""
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


def train(options: Options) -> list[tuple[int, float]]:
    """Steps, and the mean return of the last 20 episodes up to there."""
    envs = gymnasium.make_vec(options.env_name, options.num_envs, "sync")
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    env = hosts.GymnasiumVector(envs, seed=options.seed)
    one = training.trainer(env.spec, options)
    to_env = policies.policy_for(env.spec, options.continuous).to_env
    act, learn = jax.jit(one.act), jax.jit(one.learn, donate_argnums=0)

    run = jax.jit(one.init, static_argnums=1)(jax.random.key(options.seed), True)
    env.memory, curve = run.playing.memory, []
    with tqdm(total=options.total_steps, unit=" steps", unit_scale=True) as bar:
        for update in range(1, options.num_updates + 1):
            learn_key, *keys = jax.random.split(run.key, options.num_steps + 2)
            keys, before = iter(keys), run

            def play(obs, memory, first, run=before, keys=keys):
                return act(run, obs, memory, first, next(keys))

            rollout = hosts.collect(env, play, options.num_steps, to_env)
            run, _ = learn(run, rollout, learn_key)
            playing = run.playing._replace(memory=env.memory)
            run = run._replace(playing=playing, key=next(keys))
            jaxppo.check_progress(run.train)
            steps = update * options.num_envs * options.num_steps
            last = list(envs.return_queue)[-20:]
            curve.append((steps, float(np.mean(last or np.nan))))
            bar.set_postfix_str(f"return {curve[-1][1]:.1f}")
            bar.update(steps - bar.n)
    print(f"mean return of the last 20 episodes: {curve[-1][1]:.1f}")
    return curve


if __name__ == "__main__":
    train(tyro.cli(Options, default=OPTIONS, description=__doc__.partition("\n")[0]))
