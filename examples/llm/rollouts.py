"""Playing: problems, completions of them, and what these earn."""

import dataclasses
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from tokenizers import Tokenizer

from . import sampler, sharding
from .scoring import Scorer
from .tasks import Problem, Task


class Rollout(NamedTuple):
    """Completions of problems, whole in every process."""

    prompts: dict[str, np.ndarray]  # `prompts` and `prompt_mask`, (prompts, time)
    samples: sampler.Samples  # (prompts, samples, new)
    texts: list[str]  # of the samples, one after another
    rewards: np.ndarray  # (prompts, samples); 0 where there is none
    scored: np.ndarray  # where there is one

    def batch(self) -> dict[str, Any]:
        """What is learned from."""
        batch = {
            **self.prompts,
            "completions": self.samples.tokens,
            "mask": self.samples.mask & self.scored[..., None],
            "old_log_probs": self.samples.log_probs,
            "rewards": self.rewards,
            "scored": self.scored,
        }
        if self.samples.values is not None:
            batch["old_values"] = self.samples.values
        return batch


@dataclasses.dataclass(frozen=True)
class Player:
    """A task and those who do it: the model that answers, the scorer that judges."""

    task: Task
    tokenizer: Tokenizer
    room: int  # tokens of a prompt
    sample: Callable[..., sampler.Samples]  # `Trainer.sample`, jitted
    scorer: Scorer
    mesh: jax.sharding.Mesh | None

    def problems(self, seed: str, count: int, held_out: bool) -> list[Problem]:
        """Those there is room for; a rare, longer one gives way to one of them."""
        found = self.task.problems(seed, count, held_out)
        fit = [x for x in found if len(self.tokenizer.encode(x.prompt)) <= self.room]
        if not fit:
            raise ValueError(f"no prompt of {count} has room in {self.room} tokens.")
        return list(islice(cycle(fit), count))

    def play(
        self, problems: list[Problem], trained: Any, frozen: Any, key: jax.Array
    ) -> Rollout:
        """Completions by a model of these parameters, scored."""
        ids = [self.tokenizer.encode(p.prompt).ids for p in problems]
        tokens, mask = sampler.padded(ids, self.room)
        prompts = {"prompts": tokens, "prompt_mask": mask}
        given = sharding.rows(self.mesh, prompts)
        samples = self.sample(
            trained, frozen, given["prompts"], given["prompt_mask"], key
        )
        samples = jax.tree.map(sharding.whole, samples)
        *shape, new = samples.mask.shape
        rows = samples.tokens.reshape(-1, new), samples.mask.reshape(-1, new)
        texts = [
            self.tokenizer.decode(row[sampled].tolist())
            for row, sampled in zip(*rows, strict=True)
        ]
        answers = [p.answer for p in problems for _ in range(shape[1])]
        # One process scores: a time limit may strike in one and not in another.
        rewards, scored = np.zeros(len(texts), np.float32), np.zeros(len(texts), bool)
        if jax.process_index() == 0:
            rewards, scored = self.scorer(answers, texts)
        if jax.process_count() > 1:
            rewards, scored = multihost_utils.broadcast_one_to_all((rewards, scored))
        rewards, scored = rewards.reshape(shape), scored.reshape(shape)
        return Rollout(prompts, samples, texts, rewards, scored)


def mean(rewards: np.ndarray, scored: np.ndarray) -> float:
    """Of the samples that have one."""
    return float(np.mean(rewards[scored])) if np.any(scored) else 0.0
