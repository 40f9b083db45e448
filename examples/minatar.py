"""Learn Breakout of MinAtar, or another environment that gymnax knows.

    python examples/minatar.py --help
    python examples/minatar.py --env-name Asterix-MinAtar

Needs gymnax: pip install "jaxppo[examples,gymnax]"
"""

import dataclasses

from control import adapters, runs


@dataclasses.dataclass(frozen=True)
class Options(runs.Options):
    """The loop's options, and which environment to learn."""

    env_name: str = "Breakout-MinAtar"
    """A name that gymnax knows."""
    goal: float = 15
    """The return to aim at, drawn in the picture."""


OPTIONS = Options(
    total_steps=1_000_000,
    num_envs=64,
    num_minibatches=8,
    learning_rate=5e-3,
    entropy_coef=0.1,  # with 0.01 all of five seeds stay below 12
    num_evals=12,
)

if __name__ == "__main__":
    options = runs.parse(OPTIONS, __doc__)
    env = adapters.from_gymnax(options.env_name)
    runs.train(options.env_name.lower(), env, options, goal=options.goal)
