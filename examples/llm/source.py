"""A model in a file, of whatever kind, and what must hold of it.

What a file says is believed only as far as its own tensors bear it out: sizes come from
the configuration, but memory is taken for tensors that exist and have those sizes, and
a tensor that nothing would read is an error.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from .model import Config

# Our names in a layer, and the ones in Hugging Face's files.
LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
COMPUTED = "rotary_emb.inv_freq"  # older files have it


class Source(NamedTuple):
    """A model in a file: its sizes, its tensors by Hugging Face's names, its words."""

    name: str
    config: Config
    tensor: Callable[[str], np.ndarray]
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]  # tokens that end an answer


class Unsupported(ValueError):
    """A sound file of a model that is not in this family."""


def sound(source: Source) -> Source:
    """Raises if words and sizes do not fit, or words can't be used."""
    c, ids = source.config, source.tokenizer.get_vocab().values()
    if max(ids, default=0) >= c.vocab_size:
        raise ValueError(f"words up to {max(ids)}, but {c.vocab_size} of them")
    for i in source.end_ids:
        if type(i) is not int or not 0 <= i < c.vocab_size:
            raise ValueError(f"eos_token_id {i!r} is not in the vocabulary")
    source.tokenizer.no_truncation()  # prompts are cut, and padded, in one place only
    source.tokenizer.no_padding()  # by a file's number, it could fill the memory
    source.tokenizer.decode(source.tokenizer.encode("1 + 2 =\n").ids)
    return source


def check(
    c: Config, there: Collection[str], named: Callable[[str], str] = lambda name: name
) -> None:
    """Raises unless sizes make sense, and a file has their tensors and no others.

    Args:
        c: the sizes.
        there: the names of the file's tensors.
        named: the file's name of a tensor, by Hugging Face's.
    """
    if not isinstance(c.head_dim, int) or c.head_dim < 2 or c.head_dim % 2:
        raise ValueError(f"heads of {c.head_dim!r} dimensions; expected an even number")
    if c.num_heads % c.num_kv_heads:
        raise ValueError(f"{c.num_heads} heads, but {c.num_kv_heads} of keys")
    if not (0 < c.rope_theta < math.inf and 0 < c.norm_eps < 1):
        raise ValueError(f"rope_theta {c.rope_theta}, rms_norm_eps {c.norm_eps}")
    if c.num_layers > len(there):  # before a set of so many names is made
        raise ValueError(f"{c.num_layers} layers, but {len(there)} tensors")
    norms = {"q_norm", "k_norm"} if not c.qk_norm else set()
    kinds = [f"{name}.weight" for key, name in LAYER.items() if key not in norms]
    kinds += [f"{LAYER[key]}.bias" for key in "qkv" if c.qkv_bias]
    names = [f"model.layers.{i}.{kind}" for i in range(c.num_layers) for kind in kinds]
    names += [f"{TOP[key]}.weight" for key in ("embed", "norm")]
    head = named(f"{TOP['head']}.weight")  # some files have it where it is tied, too
    wanted = {*map(named, names), *(() if c.tied else (head,))}
    if missing := wanted.difference(there):
        raise ValueError(f"no tensor {min(missing)}")
    known = wanted | {head}
    unread = [x for x in there if x not in known and not x.endswith(COMPUTED)]
    if unread:
        raise Unsupported(f"tensors that nothing here reads, such as {min(unread)}.")


def count(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key, default)
    value = int(value) if isinstance(value, np.integer) else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} = {value!r}; expected a positive integer")
    return value
