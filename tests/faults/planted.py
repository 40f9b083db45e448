"""Runs an example with a fault planted in it: planted.py FAULT EXAMPLE [option ...].

environment  one step in a hundred gives NaN or inf
dead         the environment gives NaN from the start
loss         three minibatches, from the 6th on, have NaN in them
reward       the reward function raises, hangs, dies or returns what is no number
clock        the clock jumps by up to ten days, back and forth
memory       after two checkpoints a device is asked for a pebibyte
"""

import itertools
import random
import runpy
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"
sys.path[:0] = [str(EXAMPLES), str(TESTS)]


def environment(share: float = 0.01) -> None:
    """An observation of NaN, or a reward of inf."""
    from control import environments

    whole = environments.cartpole()

    def step(key, state, action):
        after = whole.step(key, state, action)
        one, other = jax.random.uniform(jax.random.fold_in(key, 1), (2,)) < share / 2
        obs = jnp.where(one, jnp.nan, after.obs)
        state = jax.tree.map(lambda x: jnp.where(one, jnp.nan, x), after.state)
        return after._replace(
            state=jax.tree.map(lambda x, y: x.astype(y.dtype), state, after.state),
            obs=obs,
            reward=jnp.where(other, jnp.inf, after.reward),
        )

    environments.cartpole = lambda: whole._replace(step=step)


def dead() -> None:
    environment(share=2.0)


def loss(first: int = 5, count: int = 3) -> None:
    """By a count that the host keeps: the minibatch, not the optimiser's step."""
    import jaxppo

    whole, calls = jaxppo.learner, itertools.count()

    def factor() -> np.ndarray:
        bad = first <= next(calls) < first + count
        return np.float32(np.nan if bad else 1)

    def learner(*args, prepare=None, **options):
        def poisoned(batch, *rest, **more):
            batch = batch if prepare is None else prepare(batch, *rest, **more)
            by = jax.experimental.io_callback(factor, jax.ShapeDtypeStruct((), "f4"))
            floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
            return jax.tree.map(
                lambda x: x * by.astype(x.dtype) if floats(x) else x, batch
            )

        return whole(*args, prepare=poisoned, **options)

    jaxppo.learner = learner


def reward() -> None:
    from llm import tasks
    from llm_rewards import at_times

    whole = tasks.task
    tasks.task = lambda name: whole(name)._replace(reward=at_times)


def clock(days: float = 10) -> None:
    """Python's; the kernel's own is not ours to set."""
    rng, now, now_ns = random.Random(0), time.time, time.time_ns
    jump = lambda: rng.uniform(-days, days) * 86_400
    time.time = lambda: now() + jump()
    time.time_ns = lambda: now_ns() + int(jump() * 1e9)


def memory(saves: int = 2) -> None:
    """More than any device has, asked for after so many checkpoints."""
    from common.checkpoints import Checkpoints

    whole, count = Checkpoints.save, itertools.count(1)

    def save(*args):
        whole(*args)
        if next(count) == saves:
            jax.block_until_ready(jnp.ones((2**50,), jnp.int8) + 1)

    Checkpoints.save = save


FAULTS = (environment, dead, loss, reward, clock, memory)

if __name__ == "__main__":
    fault, example = sys.argv[1:3]
    dict((x.__name__, x) for x in FAULTS)[fault]()
    sys.argv[:] = [str(EXAMPLES / f"{example}.py"), *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
