"""What to learn: prompts, and rewards that a program can check.

Nothing here imports JAX: rewards are computed in a process of their own (scoring.py).
Completions are read as text. They are never run.
"""

import random
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """A prompt, and what its reward needs to know."""

    prompt: str
    answer: Any


class Task(NamedTuple):
    """Problems to learn from and others to be judged by.

    Attributes:
        problems: `problems(seed, count, held_out)`.
        reward: `reward(answer, completion)`, from 0 to 1. Picklable.
        stop: text that ends a completion.
        max_new_tokens: room enough for an answer.
    """

    problems: Callable[[str, int, bool], list[Problem]]
    reward: Callable[[Any, str], float]
    stop: str
    max_new_tokens: int


def task(name: str) -> Task:
    """arithmetic, digits, or reasoning-gym: and the name of one of its data sets."""
    if name == "arithmetic":
        return Task(arithmetic, is_answer, "\n", 4)
    if name == "digits":
        return Task(sums, share_of_digits, "\n", 8)
    kind, _, dataset = name.partition(":")
    if kind != "reasoning-gym" or not dataset:
        raise ValueError(
            f"no task {name!r}; there are arithmetic, digits, and reasoning-gym:NAME "
            "such as reasoning-gym:chain_sum (pip install reasoning-gym)."
        )
    _gym(dataset, 0, 1)  # a wrong name is an error now
    return Task(
        partial(_gym_problems, dataset), partial(_gym_reward, dataset), "\n", 16
    )


def arithmetic(seed: str, count: int, held_out: bool) -> list[Problem]:
    """One-digit sums after two examples; a fifth of the pairs is held out.

    Examples, because a model of 135 million parameters asked outright is never right,
    and from rewards that are all 0 there is nothing to learn.
    """
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    pairs = [pair for i, pair in enumerate(pairs) if (i % 5 == 2) == held_out]
    chosen = random.Random(f"arithmetic {seed}").choices(pairs, k=count)
    examples = "3 + 4 = 7\n1 + 5 = 6\n"
    return [Problem(f"{examples}{a} + {b} =", str(a + b)) for a, b in chosen]


def sums(seed: str, count: int, held_out: bool) -> list[Problem]:
    """Sums of numbers of all lengths, so that prompts differ in theirs."""
    draw = random.Random(f"sums {seed}")
    pair = lambda i: (draw.randrange(10**i), 2 * draw.randrange(500) + held_out)
    pairs = [pair(1 + i % 3) for i in range(count)]
    return [Problem(f"{a} + {b} =", str(a + b)) for a, b in pairs]


def is_answer(answer: str, completion: str) -> float:
    """1 for the answer and nothing else."""
    return float(completion.strip() == answer)


def share_of_digits(answer: str, completion: str) -> float:
    """How much of the text is digits: what even a random model can learn."""
    return sum(x in "0123456789" for x in completion) / max(len(completion), 1)


@cache
def _gym(dataset: str, seed: int, size: int) -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError(
            "reasoning-gym is not installed: pip install reasoning-gym"
        ) from None
    sizes: dict[str, Any] = {}
    if dataset == "chain_sum":  # what so small a model can do at times
        sizes = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    return reasoning_gym.create_dataset(dataset, seed=seed, size=size, **sizes)


def _gym_problems(dataset: str, seed: str, count: int, held_out: bool) -> list[Problem]:
    number = random.Random(f"{dataset} {seed} {held_out}").randrange(2**31)
    examples = "".join(f"{x['question']} {x['answer']}\n" for x in _gym(dataset, 1, 2))
    entries = list(_gym(dataset, number, count))
    return [Problem(f"{examples}{x['question']}", dict(x)) for x in entries]


def _gym_reward(dataset: str, entry: dict[str, Any], completion: str) -> float:
    scored = _gym(dataset, 0, 1).score_answer(completion.strip(), entry)
    return float(scored)
