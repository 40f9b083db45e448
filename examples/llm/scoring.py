"""Rewards from processes of their own, which may raise, hang or die."""

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool

Reward = Callable[[Any, str], float]
POOLS = 4  # that may break in one call, before what is left has no reward
PATIENCE = 120  # seconds in which a process starts, or ends


class Scorer:
    """A reward function with a time limit; a failure is one sample's, not the run's."""

    def __init__(self, reward: Reward, limit: float):
        """Start the processes.

        Args:
            reward: `reward(answer, completion)`, picklable.
            limit: seconds that one sample may take; its process is killed after that.
        """
        self._reward, self._limit = reward, limit
        self._pool = _pool()

    def __call__(
        self, answers: Sequence[Any], completions: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The reward of each sample, and which of them have one.

        A sample has none (its reward is 0 here) if the function raised, took too long,
        killed its process or returned something that is not a finite number.
        """
        rewards = np.zeros(len(completions), np.float32)
        scored = np.zeros(len(completions), bool)
        left = dict(enumerate(zip(answers, completions, strict=True)))
        for _ in range(POOLS):
            for i, value in self._found(left):
                del left[i]
                if value is not None:
                    rewards[i], scored[i] = value, True
            if not left:
                break
            # Pebble gives up where a process dies between two tasks; what it had
            # not done yet is done by others.
            self.close()
            self._pool = _pool()
        return rewards, scored

    def _found(
        self, left: dict[int, tuple[Any, str]]
    ) -> Iterator[tuple[int, float | None]]:
        """Rewards as they come, until the pool breaks."""
        ask = lambda pair: self._pool.schedule(
            _one, args=(self._reward, *pair), timeout=self._limit
        )
        try:
            asked = {i: ask(pair) for i, pair in left.items()}
        except RuntimeError:  # it broke before
            return
        for i, future in asked.items():
            try:
                yield i, future.result(self._limit + PATIENCE)
            except BrokenProcessPool:
                return
            except (TimeoutError, ProcessExpired):
                if not future.done():  # lost, with the process that was to do it
                    return
                yield i, None

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()
        with suppress(TimeoutError):
            self._pool.join(PATIENCE)


def _pool() -> ProcessPool:
    # Not by fork: a copy of a process that runs JAX's threads can hang.
    context = multiprocessing.get_context("spawn")
    workers = min(4, os.cpu_count() or 1)
    return ProcessPool(max_workers=workers, context=context, initializer=_apart)


def _apart() -> None:
    """In its process: a signal to the run's group does not reach it; its end does."""
    if hasattr(os, "setsid"):
        os.setsid()
    parent = os.getppid()

    def watch() -> None:  # a reward that hangs would outlive a run that was killed
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _one(reward: Reward, answer: Any, completion: str) -> float | None:
    """In its process; what is raised stays there: some exceptions can't be sent."""
    try:
        value = np.asarray(reward(answer, completion))
        if value.shape or value.dtype.kind not in "biuf":
            return None  # text that looks like a number is none
        value = float(value.astype(np.float32))
    except BaseException:  # sys.exit too
        return None
    return value if math.isfinite(value) else None
