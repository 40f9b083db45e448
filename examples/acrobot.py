"""Learn Acrobot-v1, or another gymnax environment, with PPO.

    python examples/acrobot.py --help
    python examples/acrobot.py --env-name MountainCar-v0

Needs gymnax: pip install "jaxppo[examples,gymnax]"
"""

import dataclasses

from common import folders
from control import adapters, runs


@dataclasses.dataclass(frozen=True)
class Options(runs.Options):
    """The loop's options, and which environment to learn."""

    env_name: str = "Acrobot-v1"
    """A name that gymnax knows."""
    goal: float = -85
    """The return to aim at, drawn in the picture."""


OPTIONS = Options(total_steps=500_000, num_envs=16, num_steps=128, learning_rate=1e-3)

if __name__ == "__main__":
    options = folders.parse(OPTIONS, __doc__)
    env = adapters.from_gymnax(options.env_name)
    runs.train(options.env_name.lower(), env, options, goal=options.goal)
