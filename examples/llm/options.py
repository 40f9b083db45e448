"""What a run is determined by, all of it, and what of it makes no sense."""

import dataclasses
from typing import Any, Literal

from common import folders
from tokenizers import Tokenizer

from .model import Config
from .tasks import Task


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Hyper-parameters of sampling and of the update."""

    algorithm: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo"] = "grpo"
    """The loss and the advantages."""
    prompts_per_update: int = 8
    """Prompts sampled between updates."""
    group_size: int = 8
    """Completions of each prompt."""
    temperature: float = 1.0
    """Of sampling, and of the policy that is trained; above 0."""
    top_k: int | None = None
    """Sample from so many likeliest tokens only."""
    top_p: float | None = None
    """Sample from the likeliest tokens that together have this probability."""
    learning_rate: float = 5e-6
    """AdamW's step size, constant."""
    critic_learning_rate: float = 1e-3
    """PPO: that of the value head, which starts from nothing."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Bound of the gradient's norm; of the critic's own parameters, of theirs."""
    num_epochs: int = 1
    """Passes over what was sampled."""
    num_minibatches: int = 2
    """Optimiser steps per pass; from the second on ratios are not 1."""
    num_microbatches: int = 1
    """Parts of a minibatch computed one after another, to save memory."""
    clip_eps: float = 0.2
    """How far the ratio may move from 1 (GSPO's and CISPO's are their papers')."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the model at the start; 0: no reference is kept."""
    gae_lambda: float = 1.0
    """PPO: how far advantages look ahead."""
    value_coef: float = 0.5
    """PPO: weight of the critic's loss."""
    value_clip_eps: float = 0.2
    """PPO: how far values may move per update."""
    entropy_coef: float = 0.0
    """PPO: weight of the entropy bonus."""


@dataclasses.dataclass(frozen=True)
class Options(folders.Options, Hyper):
    """Hyper-parameters, and what else a run is made of."""

    model: str = "smollm2"
    """smollm2 (or a GGUF of it), tiny (random), or a folder with safetensors."""
    task: str = "arithmetic"
    """arithmetic, digits (for random models), or reasoning-gym:NAME."""
    num_updates: int = 25
    """Updates to make."""
    max_prompt_tokens: int | None = None
    """Prompts are padded to this; the task's if not given."""
    max_new_tokens: int | None = None
    """Of a completion; the task's if not given."""
    eval_prompts: int = 32
    """Held-out problems that the model is judged by, before and after."""
    train_layers: int | None = None
    """Train the last so many layers only."""
    lora_rank: int = 0
    """Train low-rank updates of the projections instead of the weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; the weights that are trained are float32."""
    remat: bool = True
    """Compute layers again for the gradient instead of keeping what they computed."""
    reward_seconds: float = 10.0
    """What one sample's reward may take before it is given up."""
    save_every: int = 10
    """Updates between checkpoints."""
    seed: int = 0
    """Of everything random; the same seed on the same machine gives the same run."""
    mesh: str = ""
    """Devices, such as data=2,fsdp=2,tensor=2; one if not given."""
    axes: Literal["auto", "explicit"] = "auto"
    """Whether shardings are part of the arrays' types."""
    smoke: bool = False
    """All of it in a minute: the tiny model, two updates."""


def parse(default: Options, doc: str, args: list[str] | None = None) -> Options:
    """The command line's options; `--smoke` makes small what is not given."""
    options = folders.parse(default, doc, args)
    if not options.smoke:
        return options
    small: dict[str, Any] = dict(num_updates=2, group_size=4, eval_prompts=4)
    small |= dict(model="tiny", task="digits")
    return folders.parse(dataclasses.replace(default, **small), doc, args)


def refuse(o: Options, length: int, config: Config) -> None:
    """Errors for what can't be sampled, or would end a run only later."""
    if length > config.max_len:
        raise ValueError(
            f"prompts and completions of {length} tokens in all, but the model has "
            f"seen {config.max_len} at most."
        )
    if not o.temperature > 0:
        raise ValueError(
            f"temperature {o.temperature}: there is no learning from samples that "
            "leave nothing to chance; expected a number above 0."
        )
    if o.top_p is not None and not 0 < o.top_p <= 1:
        raise ValueError(f"top_p {o.top_p}; expected a number in (0, 1].")
    if o.top_k is not None and o.top_k > config.vocab_size:
        raise ValueError(f"top_k {o.top_k}, of {config.vocab_size} tokens.")
    counts = "num_updates", "prompts_per_update", "group_size", "save_every"
    for name in ("top_k", "eval_prompts", *counts):
        if (value := getattr(o, name)) is not None and value < 1:
            raise ValueError(f"{name} {value}; expected at least 1.")


def refuse_parts(o: Options, mesh: Any) -> None:
    """Every part of a batch is spread over the mesh, evenly."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
    parts = o.num_minibatches * o.num_microbatches
    if o.prompts_per_update % (parts * devices):
        raise ValueError(
            f"{o.prompts_per_update} prompts in {parts} minibatches and microbatches "
            f"on {devices} devices of data and fsdp; expected a multiple of "
            f"{parts * devices}: --prompts-per-update {parts * devices}."
        )


def refuse_prompts(o: Options, task: Task, tokenizer: Tokenizer, room: int) -> None:
    """What would end a run at its first long prompt ends it now."""
    some = [task.problems("0", 100, held_out) for held_out in (False, True)]
    texts = [p.prompt for problems in some for p in problems]
    longest = max(len(tokenizer.encode(text).ids) for text in texts)
    if longest > room:
        raise ValueError(
            f"{o.task} has prompts of {longest} tokens, and there is "
            f"room for {room}: --max-prompt-tokens {longest} or more."
        )
