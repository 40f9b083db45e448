"""What to learn: prompts, and rewards that a program can check.

Nothing here imports JAX: rewards are computed in a process of their own (scoring.py).
Completions are read as text. They are never run, nor by the scorers of others.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple
from zlib import crc32

LONGEST = 2**16  # letters of an answer that others' scorers are asked about


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
        max_prompt_tokens: room enough for a prompt.
        max_new_tokens: room enough for an answer.
    """

    problems: Callable[[str, int, bool], list[Problem]]
    reward: Callable[[Any, str], float]
    stop: str
    max_prompt_tokens: int
    max_new_tokens: int


def task(name: str) -> Task:
    """arithmetic, digits, or reasoning-gym: and the name of one of its data sets."""
    if name == "arithmetic":
        return Task(arithmetic, is_answer, "\n", 32, 4)
    if name == "digits":
        return Task(sums, share_of_digits, "\n", 32, 8)
    kind, _, dataset = name.partition(":")
    if kind != "reasoning-gym" or not dataset:
        raise ValueError(
            f"no task {name!r}; there are arithmetic, digits, and reasoning-gym:NAME "
            "such as reasoning-gym:chain_sum (pip install reasoning-gym)."
        )
    first = _gym(dataset, 0, 1)[0]  # a wrong name is an error now
    for text in (str(first["answer"]), "(1,)"):
        try:
            score = _gym_reward(dataset, dict(first), text)
        except PermissionError:  # so is a scorer that runs what it is given
            raise
        except Exception:  # this is no answer to it
            continue
        if score == 1 and text == "(1,)":
            raise ValueError(f"{name}: any text at all is a right answer to it.")
    problems, reward = partial(_gym_problems, dataset), partial(_gym_reward, dataset)
    return Task(problems, reward, "\n", 256, 16)


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


@lru_cache(8)
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
    """A fifth of the questions, by their text, is held out."""
    number = random.Random(f"{dataset} {seed}").randrange(2**31)
    examples = "".join(f"{x['question']} {x['answer']}\n" for x in _gym(dataset, 1, 2))
    kept = lambda x: (crc32(x["question"].encode()) % 5 == 2) == held_out
    entries = filter(kept, _gym(dataset, number, 20 * count + 100))
    found = [
        Problem(f"{examples}{x['question']}", dict(x)) for x in islice(entries, count)
    ]
    if len(found) < count:
        raise ValueError(f"reasoning-gym:{dataset} has too few different questions.")
    return found


def _gym_reward(dataset: str, entry: dict[str, Any], completion: str) -> float:
    if len(completion) > LONGEST:  # some scorers take the square of its length
        return 0.0
    scorer = _gym(dataset, 0, 1)  # imports, and dataclasses are made by `exec`
    with _nothing_is_run(f"reasoning-gym:{dataset}"):
        return float(scorer.score_answer(completion.strip(), entry))


@contextmanager
def _nothing_is_run(what: str) -> Iterator[None]:
    """Text is not executed in here: a tenth of reasoning-gym's scorers eval answers."""
    _watch()
    _stopped.clear()
    _watching.append(what)
    try:
        yield
    finally:
        _watching.clear()
        if _stopped:  # said again, for a scorer may catch everything
            raise PermissionError(_stopped[0])


_watching: list[str] = []
_stopped: list[str] = []


@cache
def _watch() -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if _watching and event == "exec" and args[0].co_filename == "<string>":
            _stopped.append(f"{_watching[0]} runs answers as code, which is refused.")
            raise PermissionError(_stopped[0])

    sys.addaudithook(hook)
