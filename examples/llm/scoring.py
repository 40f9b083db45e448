"""Rewards from processes of their own, which may raise, hang or die."""

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool

Reward = Callable[[Any, str], float]


class Scorer:
    """A reward function with a time limit; a failure is one sample's, not the run's."""

    def __init__(self, reward: Reward, limit: float):
        """Start the processes.

        Args:
            reward: `reward(answer, completion)`, picklable.
            limit: seconds that one sample may take; its process is killed after that.
        """
        self._reward, self._limit = reward, limit
        # Not by fork: a copy of a process that runs JAX's threads can hang.
        context = multiprocessing.get_context("spawn")
        workers = min(4, os.cpu_count() or 1)
        self._pool = ProcessPool(
            max_workers=workers, context=context, initializer=_apart
        )

    def __call__(
        self, answers: Sequence[Any], completions: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The reward of each sample, and which of them have one.

        A sample has none (its reward is 0 here) if the function raised, took too long,
        killed its process or returned something that is not a finite number.
        """
        asked = [
            self._pool.schedule(_one, args=(self._reward, *pair), timeout=self._limit)
            for pair in zip(answers, completions, strict=True)
        ]
        rewards = np.zeros(len(asked), np.float32)
        scored = np.zeros(len(asked), bool)
        for i, future in enumerate(asked):
            try:
                value = future.result()
            except (TimeoutError, ProcessExpired):
                continue
            if value is not None:
                rewards[i], scored[i] = value, True
        return rewards, scored

    def close(self) -> None:
        """End the processes."""
        self._pool.stop()
        self._pool.join()


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
