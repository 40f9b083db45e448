"""Hugging Face's folders: config.json, tokenizer.json and safetensors."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from .model import Config, RopeScaling
from .source import Source, Unsupported, check, count

FAMILIES = {
    "LlamaForCausalLM": dict(qkv_bias=False, qk_norm=False),
    "Qwen2ForCausalLM": dict(qkv_bias=True, qk_norm=False),
    "Qwen3ForCausalLM": dict(qkv_bias=False, qk_norm=True),
}
SIZES = {  # our names, and those in config.json
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_len": "max_position_embeddings",
}


def read(path: Path) -> Source:
    """The model in a folder."""
    raw = json.loads(_inside(path, "config.json").read_text("utf-8"))
    if raw.get("quantization_config"):
        raise Unsupported("quantised weights, which this code can't compute with.")
    config = _config(raw)
    files = _safetensors(path)
    check(config, files)
    tokenizer = _tokenizer(_inside(path, "tokenizer.json"))
    ends = raw.get("eos_token_id")
    generation = _inside(path, "generation_config.json")
    if generation.exists():
        ends = json.loads(generation.read_text("utf-8")).get("eos_token_id", ends)
    ends = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)

    def tensor(name: str) -> np.ndarray:
        x = files[name].get_tensor(name)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} is of {x.dtype}; expected floating point")
        return np.asarray(x, np.float32)

    return Source(str(path), config, tensor, tokenizer, ends)


def _safetensors(path: Path) -> dict[str, Any]:
    """The open file that each tensor is in."""
    index = _inside(path, "model.safetensors.index.json")
    names = ["model.safetensors"]
    if index.exists():
        names = sorted({*json.loads(index.read_text("utf-8"))["weight_map"].values()})
    found = {}
    for name in names:
        # "flax" reads bfloat16, which NumPy alone does not have.
        file = safe_open(_inside(path, name), framework="flax", device="cpu")
        found |= dict.fromkeys(file.keys(), file)
    return found


def _tokenizer(path: Path) -> Tokenizer:
    raw = json.loads(path.read_text("utf-8"))
    # Its reader takes as much memory as the map says, and ends the process with it.
    if "precompiled_charsmap" in json.dumps(raw.get("normalizer")):
        raise Unsupported("a normalizer with a map of characters, as of T5.")
    return Tokenizer.from_str(json.dumps(raw))  # what was looked at, and nothing else


def _inside(folder: Path, name: str) -> Path:
    """A file of a folder, whatever its name says and wherever it links to.

    The hub's cache links to its blobs, two folders up; nothing else may lead out.
    """
    file = folder / name
    inside = file.parent == folder and file.name == name != ".."
    if inside and file.is_symlink():
        homes = [folder.resolve()]
        if homes[0].parent.name == "snapshots":
            homes.append(homes[0].parents[1] / "blobs")
        inside = file.resolve().parent in homes
    if not inside:
        raise ValueError(f"{name!r} is outside the folder")
    return file


def _config(raw: dict[str, Any]) -> Config:
    (family,) = raw["architectures"]
    if family not in FAMILIES:
        raise Unsupported(f"a {family}; expected one of {', '.join(FAMILIES)}.")
    for key, plain in {
        "hidden_act": "silu",
        "mlp_bias": False,
        "attention_bias": family == "Qwen2ForCausalLM",
        "use_sliding_window": False,
    }.items():
        if raw.get(key, plain) not in (plain, None):
            raise Unsupported(f"{key} = {raw[key]!r}, which this code can't compute.")
    rope = raw.get("rope_parameters") or {}
    theta = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    raw.setdefault("num_key_value_heads", raw.get("num_attention_heads"))
    sizes: dict[str, Any] = {ours: count(raw, name) for ours, name in SIZES.items()}
    return Config(
        **sizes,
        head_dim=raw.get("head_dim") or sizes["dim"] // sizes["num_heads"],
        rope_theta=float(theta),
        norm_eps=float(raw["rms_norm_eps"]),
        rope_scaling=_rope_scaling(raw.get("rope_scaling") or rope),
        tied=bool(raw.get("tie_word_embeddings", False)),
        **FAMILIES[family],
    )


def _rope_scaling(raw: dict[str, Any]) -> RopeScaling | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise Unsupported(f"rope of type {kind!r}; expected 'default' or 'llama3'.")
    names = "factor", "low_freq_factor", "high_freq_factor"
    factor, low, high = (float(raw[name]) for name in names)
    if not (0 < factor < math.inf and 0 < low < high < math.inf):
        raise ValueError(f"rope scaled by {factor}, from {low} to {high} turns")
    length = count(raw, "original_max_position_embeddings")
    return RopeScaling(factor, low, high, length)


def write(
    folder: Path,
    config: Config,
    tensors: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    end_ids: tuple[int, ...],
) -> None:
    """A folder that transformers, and `read`, load."""
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": _raw(config, end_ids),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "generation_config.json": {"eos_token_id": list(end_ids)},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _raw(c: Config, end_ids: tuple[int, ...]) -> dict[str, Any]:
    kinds = dict(qkv_bias=c.qkv_bias, qk_norm=c.qk_norm)
    (family,) = [name for name, kind in FAMILIES.items() if kind == kinds]
    rope = {"rope_theta": c.rope_theta, "rope_type": "default"}
    if (s := c.rope_scaling) is not None:
        rope |= dataclasses.asdict(s) | {"rope_type": "llama3"}
        rope["original_max_position_embeddings"] = rope.pop("original_max_len")
    return {
        "architectures": [family],
        "model_type": family.removesuffix("ForCausalLM").lower(),
        **{theirs: getattr(c, ours) for ours, theirs in SIZES.items()},
        "head_dim": c.head_dim,
        "rms_norm_eps": c.norm_eps,
        "hidden_act": "silu",
        "rope_theta": c.rope_theta,
        "rope_parameters": rope,
        **({} if c.rope_scaling is None else {"rope_scaling": rope}),
        "tie_word_embeddings": c.tied,
        "attention_bias": c.qkv_bias,
        "torch_dtype": "float32",
        "eos_token_id": list(end_ids) or None,
        "bos_token_id": None,
    }
