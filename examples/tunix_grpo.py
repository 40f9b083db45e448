"""Train in Tunix's GRPO and PPO learners with jaxppo's losses, on a toy model.

    pip install google-tunix
    python examples/tunix_grpo.py --loss gspo
    python examples/tunix_grpo.py --loss ppo --num-updates 30

with_tunix/losses.py is what to paste in a script of your own. The reward is the number
of vowels in 12 letters; a random policy scores about 2.
"""

import dataclasses
import functools
import importlib.util
import sys
from typing import Any, Literal

import numpy as np
import optax
import tyro

import jaxppo

LOSSES = {
    "grpo": functools.partial(jaxppo.ppo_loss, aggregate=jaxppo.sequence_mean),
    "dual_clip": functools.partial(
        jaxppo.ppo_loss, dual_clip=3.0, aggregate=jaxppo.sequence_mean
    ),
    "gspo": jaxppo.recipes.gspo,
    "cispo": jaxppo.recipes.cispo,
    "ppo": jaxppo.ppo_loss,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train with."""

    loss: Literal["grpo", "dual_clip", "gspo", "cispo", "ppo"] = "grpo"
    """ppo: Tunix's PPO learner, with a critic; otherwise its GRPO learner."""
    num_updates: int = 20
    """Batches of samples, each used twice."""
    learning_rate: float = 3e-3
    """Adam's step size."""
    num_prompts: int = 4
    """Prompts in a batch."""
    num_generations: int = 8
    """Samples of a prompt, its group in GRPO; PPO takes so many times the prompts."""
    beta: float = 0.0
    """Weight of the KL to the first policy."""


def learner(options: Options) -> Any:
    """One of Tunix's learners, whose losses are jaxppo's."""
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.ppo import ppo_learner
    from with_tunix import losses, toy

    name = f"jaxppo/{options.loss}"
    losses.register(name, LOSSES[options.loss])
    losses.register_value_loss("jaxppo")
    cluster = toy.cluster(
        optax.adam(options.learning_rate),
        max_steps=2 * options.num_updates,
        reference=options.beta > 0,
        critic=options.loss == "ppo",
    )
    both: Any = dict(policy_loss_fn=name, num_iterations=2, beta=options.beta)
    if options.loss == "ppo":
        config = ppo_learner.PPOConfig(value_loss_fn="jaxppo", **both)
        return ppo_learner.PPOLearner(cluster, config, reward_fns=toy.vowels)
    group = options.num_generations
    config = grpo_learner.GRPOConfig(num_generations=group, **both)
    return grpo_learner.GRPOLearner(cluster, config, reward_fns=toy.vowels)


def train(options: Options) -> dict[str, np.ndarray]:
    """What Tunix logged, by name, in order."""
    from with_tunix import toy

    tunix = learner(options)
    repeats = options.num_generations if options.loss == "ppo" else 1
    tunix.train(toy.prompts(options.num_updates, options.num_prompts * repeats))
    logger = tunix.rl_cluster.actor_trainer.metrics_logger
    of = functools.partial(logger.get_metric_history, mode="train")
    return {
        "reward": of("rewards", "score/mean"),
        "clip fraction": of("actor", "pg_clipfrac"),
    }


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    if importlib.util.find_spec("tunix") is None:
        pip = f"{sys.executable} -m pip install google-tunix"
        raise SystemExit(f"This example trains in Tunix. To install it:\n  {pip}")
    for name, values in train(options).items():
        print(f"{name}: {' '.join(f'{x:.2f}' for x in values)}")
