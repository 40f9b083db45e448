"""Something small for Tunix to train: a model, a critic, a tokenizer and a reward."""

import string
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama3
from tunix.rl import rl_cluster
from tunix.rl.rollout import base_rollout

PAD, BOS, EOS = range(3)
LETTERS = string.ascii_lowercase
CONFIG = llama3.ModelConfig(
    num_layers=1,
    vocab_size=3 + len(LETTERS),
    embed_dim=32,
    hidden_dim=64,
    num_heads=2,
    head_dim=16,
    num_kv_heads=1,
    rope_theta=1_000_000,
    norm_eps=1e-5,
)
PROMPT_LENGTH, MAX_TOKENS = 8, 12


class Letters:
    """A tokenizer of small letters, with the five methods that Tunix asks for."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [3 + LETTERS.index(x) for x in text]

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(LETTERS[int(i) - 3] for i in ids if i >= 3)

    def pad_id(self) -> int:
        return PAD

    def bos_id(self) -> int:
        return BOS

    def eos_id(self) -> int:
        return EOS


def model(seed: int) -> llama3.Llama3:
    """One of Tunix's own models, but for the MLPs' kernels, which it starts at 0."""
    net = llama3.Llama3(CONFIG, rngs=nnx.Rngs(seed))
    keys = nnx.Rngs(seed + 1)
    for layer in net.layers:
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            kernel = projection.kernel
            kernel[...] = 0.1 * jax.random.normal(keys(), kernel.shape)
    return net


class Critic(nnx.Module):
    """A value for each token, `(batch, time, 1)`: a head on a trunk of its own."""

    def __init__(self, seed: int) -> None:
        self.trunk = model(seed)
        self.head = nnx.Linear(CONFIG.embed_dim, 1, rngs=nnx.Rngs(seed + 2))

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        cache: Any,
        attention_mask: jax.Array,
        **_: Any,
    ) -> jax.Array:
        x = self.trunk.embedder.encode(tokens)
        for layer in self.trunk.layers:
            _, x = layer(x, positions, None, attention_mask)
        return self.head(self.trunk.final_norm(x))


def cluster(
    optimizer: optax.GradientTransformation,
    max_steps: int,
    *,
    reference: bool = False,
    critic: bool = False,
) -> rl_cluster.RLCluster:
    """All roles on one device, Tunix's own sampler."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optimizer,
        critic_optimizer=optimizer,
        eval_every_n_steps=max_steps + 1,
        max_steps=max_steps,
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=MAX_TOKENS,
        max_prompt_length=PROMPT_LENGTH,
        kv_cache_size=PROMPT_LENGTH + MAX_TOKENS,
        temperature=1.0,
    )
    return rl_cluster.RLCluster(
        actor=model(0),
        reference=model(0) if reference else None,
        critic=Critic(1) if critic else None,
        tokenizer=Letters(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in rl_cluster.Role},
            training_config=training,
            rollout_config=rollout,
        ),
    )


def prompts(num_batches: int, num_prompts: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of prompts; as arrays, which Tunix repeats for the groups."""
    random = np.random.RandomState(0)
    for _ in range(num_batches):
        letters = random.choice(list(LETTERS), (num_prompts, PROMPT_LENGTH - 2))
        yield {"prompts": np.array(["".join(row) for row in letters])}


def vowels(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    """How many vowels. Whole numbers: the PPO of Tunix 0.1.7 drops their fractions."""
    return [float(sum(x in "aeiou" for x in text)) for text in completions]
