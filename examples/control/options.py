"""What a training is determined by, all of it."""

import dataclasses
from typing import Literal

from . import losses, policies

Annealed = Literal["learning_rate", "clip_eps", "entropy_coef"]


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
    """A limit leaves the value it cut off; nothing; that, but its step is no lesson."""
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
    value_clip: float | None = None
    """How far a value may move (0.2), largest squared error (10), Huber's delta (1)."""
    kl_target: float | None = None
    """Add a penalty on KL(old || new), its weight adapted to keep the KL near this."""
    rpo_alpha: float = 0.0
    """Half the range of the noise on a normal's mean in updates (RPO)."""
    system: losses.SystemName = "jaxppo"
    """Whose loss to minimise, and, by `losses.as_in`, what belongs to it."""

    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    anneal: tuple[Annealed, ...] = ("learning_rate",)
    """What is brought down to 0, linearly."""
    learning_rate_kl: float | None = None
    """Not annealed: the learning rate that keeps the KL of an update near this."""
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
