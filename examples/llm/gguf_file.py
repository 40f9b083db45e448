"""GGUF files, llama.cpp's: sizes, words and tensors in one."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .model import Config
from .source import Source, Unsupported, check, count

NAMES = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)  # of one layer


class Reader(gguf.GGUFReader):
    """One that stops at the end of the file; its own loops go on over nothing."""

    def _get(self, offset, dtype, count=1, override_order=None):
        dtype = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
        end = int(offset) + dtype.itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it ends at {len(self.data)}, before {end}")
        # A slice of a memory map is one itself, and takes 3 times as much.
        return np.asarray(self.data)[int(offset) : end].view(dtype)

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


def read(path: Path) -> Source:
    """The model in a file."""
    reader, end = Reader(path), 0
    for x in reader.tensors:  # one after another, which llama.cpp asks for, too
        start = x.data_offset - reader.data_offset
        if start != end:
            raise ValueError(f"{x.name} begins at {start}; expected {end}")
        end += -(-x.n_bytes // int(reader.alignment)) * int(reader.alignment)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    family = fields["general.architecture"]
    if family != "llama":
        raise Unsupported(f"GGUF of {family!r}; expected 'llama', or a folder.")
    tensors = {x.name: x for x in reader.tensors}
    stretched = fields.get("llama.rope.scaling.type", "none") != "none"
    if stretched or any("rope_freqs" in name for name in tensors):
        raise Unsupported("rotations that are stretched; expected a folder.")
    size = lambda key, default=None: count(fields, f"llama.{key}", default)
    dim, heads = size("embedding_length"), size("attention.head_count")
    config = Config(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        dim=dim,
        hidden_dim=size("feed_forward_length"),
        num_layers=size("block_count"),
        num_heads=heads,
        num_kv_heads=size("attention.head_count_kv", heads),
        head_dim=size("rope.dimension_count", dim // heads),
        max_len=size("context_length"),
        rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
        norm_eps=float(fields["llama.attention.layer_norm_rms_epsilon"]),
        tied="output.weight" not in tensors,
    )
    check(config, tensors, _name)

    def tensor(name: str) -> np.ndarray:
        x = tensors[_name(name)]
        y = np.asarray(gguf.quants.dequantize(x.data, x.tensor_type), np.float32)
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        own = heads.get(name.split(".")[-2])
        return y if own is None else _halves(y, own)

    ends = {fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot")}
    ends = tuple(int(i) for i in ends if i is not None)
    return Source(str(path), config, tensor, _tokenizer(fields), ends)


def _name(name: str) -> str:
    """Of a tensor, by Hugging Face's."""
    layer = name.split(".")[2] if name.startswith("model.layers.") else "0"
    in_first = NAMES.get_name(name.replace(f".{layer}.", ".0.", 1), (".weight",))
    return str(in_first).replace(".0.", f".{layer}.")


def _halves(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of pairs (x0, y0, x1, y1), as llama.cpp rotates them, as halves."""
    if w.ndim != 2 or w.shape[0] % (2 * heads):
        raise ValueError(f"a projection of shape {w.shape}, for {heads} heads")
    pairs = w.reshape(heads, -1, 2, w.shape[1])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise Unsupported(f"a tokenizer of kind {kind}; expected a folder for it.")
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
