"""Rewards from a process of their own, which may raise, hang or die."""

import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool


class Scorer:
    """A reward function with a time limit; a failure is one sample's, not the run's."""

    def __init__(self, reward: Callable[[Any, str], float], limit: float):
        """Start the process.

        Args:
            reward: `reward(answer, completion)`, picklable.
            limit: seconds that one sample may take; its process is killed after that.
        """
        self._reward, self._limit = reward, limit
        # Not by fork: a copy of a process that runs JAX's threads can hang.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(max_workers=1, context=context)

    def __call__(
        self, answers: Sequence[Any], completions: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The reward of each sample, and which of them have one.

        A sample has none (its reward is 0 here) if the function raised, took too long,
        killed its process or returned something that is not a finite number.
        """
        asked = [
            self._pool.schedule(self._reward, args=pair, timeout=self._limit)
            for pair in zip(answers, completions, strict=True)
        ]
        rewards = np.zeros(len(asked), np.float32)
        scored = np.zeros(len(asked), bool)
        for i, future in enumerate(asked):
            try:
                value = float(future.result())
            except (TimeoutError, ProcessExpired, Exception):
                continue
            if math.isfinite(value):
                rewards[i], scored[i] = value, True
        return rewards, scored

    def close(self) -> None:
        """End the process."""
        self._pool.stop()
        self._pool.join()
