"""Files of models: what was written is read, and what is damaged is an error."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from llm import tiny, weights
from llm.model import Training, is_trained
from llm_models import FAMILIES, built, config_of, logits_of, tiny_ids

pytestmark = pytest.mark.usefixtures("relaxed")


def write_folder(folder, family="llama", params=None, training=None):
    params = built(family)[1] if params is None else params
    training = training or Training()
    args = FAMILIES[family], training, params, tiny.tokenizer(), (0, 1)
    weights.export(folder, *args)
    return folder


def write_gguf(path, config=tiny.CONFIG):
    """As llama.cpp's converter does: rotations of neighbours, not of halves."""
    source, writer = tiny.source(config), gguf.GGUFWriter(str(path), "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_context_length(config.max_len)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    vocab = sorted(source.tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([word for word, _ in vocab])
    writer.add_token_types([3 if i < 2 else 1 for _, i in vocab])
    writer.add_eos_token_id(1)
    for ours, theirs in weights.GGUF_TOP.items():
        if ours != "lm_head" or not config.tied:
            writer.add_tensor(f"{theirs}.weight", source.tensor(f"{ours}.weight"))
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    for layer in range(config.num_layers):
        for ours, theirs in weights.GGUF_LAYER.items():
            x = source.tensor(f"model.layers.{layer}.{ours}.weight")
            if theirs in heads:
                halves = x.reshape(heads[theirs], 2, -1, x.shape[1])
                x = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(x.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(source, training=None):
    training = training or Training(remat=False)
    graph, params = weights.loaded(source, training, jax.random.key(0))
    return logits_of(graph, jax.tree.map(jnp.asarray, params), tiny_ids(1, 9))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_the_model_that_was_written(family, tmp_path):
    source = weights.read(write_folder(tmp_path / "model", family))
    assert source.config == FAMILIES[family]
    assert source.end_ids == (0, 1)
    assert source.tokenizer.encode("3 + 4").ids == tiny.tokenizer().encode("3 + 4").ids
    expected = logits_of(*built(family), tiny_ids(1, 9))
    np.testing.assert_array_equal(logits(source), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_is_the_same_model(tied, tmp_path):
    config = config_of(tied=tied)
    source = weights.read(write_gguf(tmp_path / "tiny.gguf", config))
    assert source.end_ids == (1,)
    np.testing.assert_allclose(logits(source), logits(tiny.source(config)), atol=1e-6)


def test_several_files_and_bfloat16(tmp_path):
    from safetensors.flax import load_file, save_file

    folder = write_folder(tmp_path / "model")
    whole = folder / "model.safetensors"
    tensors = {k: x.astype(jnp.bfloat16) for k, x in load_file(whole).items()}
    names = sorted(tensors)
    whole.unlink()
    index = {}
    for part in (0, 1):
        file = f"model-{part}.safetensors"
        save_file({k: tensors[k] for k in names[part::2]}, folder / file)
        index |= dict.fromkeys(names[part::2], file)
    place = folder / "model.safetensors.index.json"
    place.write_text(json.dumps({"weight_map": index}))
    got, exact = logits(weights.read(folder)), logits(tiny.source())
    assert 0 < np.max(np.abs(got - exact)) < 0.1
    place.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    with pytest.raises(ValueError, match="outside the folder"):
        weights.read(folder)


@pytest.mark.parametrize(
    "training", [Training(layers=1), Training(lora_rank=3), Training(value_head=True)]
)
def test_what_was_trained_is_exported(training, tmp_path):
    """Updates merged: a plain model gives the same logits."""
    graph, params = weights.loaded(tiny.source(), training, jax.random.key(0))
    noise = lambda x: x + 0.05 * np.sin(np.arange(x.size)).reshape(x.shape)
    trained, rest = nnx.split_state(params, is_trained(tiny.CONFIG, training), ...)
    params = nnx.merge_state(jax.tree.map(noise, trained), rest)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    folder = write_folder(tmp_path / "m", params=params, training=training)
    expected = logits_of(graph, params, tiny_ids(1, 9))
    assert np.max(np.abs(expected - logits(tiny.source()))) > 0.01
    np.testing.assert_allclose(logits(weights.read(folder)), expected, atol=1e-5)
    assert (folder / "value_head.safetensors").exists() == training.value_head


# --- what can't be read ---


def changed(folder, **changes):
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v != "gone"}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(architectures=["GPT2LMHeadModel"]), "a GPT2LMHeadModel; expected one of"),
        (dict(hidden_act="gelu"), "hidden_act = 'gelu'"),
        (dict(use_sliding_window=True), "use_sliding_window = True"),
        (dict(rope_scaling={"rope_type": "yarn"}), "rope of type 'yarn'"),
        (dict(hidden_size="gone"), "damaged or incomplete .*hidden_size = None"),
        (dict(num_hidden_layers=-2), "num_hidden_layers = -2; expected a positive"),
        (dict(num_hidden_layers=True), "num_hidden_layers = True"),
        (dict(vocab_size=1e9), "vocab_size = 1000000000.0; expected"),
        (dict(num_key_value_heads=3), "4 heads, but 3 of keys"),
        (dict(head_dim=7), "heads of 7 dimensions"),
        (dict(eos_token_id=[999], architectures=["LlamaForCausalLM"]), "eos_token_id"),
        (dict(rms_norm_eps="small"), "damaged or incomplete"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps nan"),
        (dict(architectures=[]), "damaged or incomplete"),
    ],
)
def test_a_configuration_that_makes_no_sense(changes, said, tmp_path):
    folder = write_folder(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    changed(folder, **changes)
    with pytest.raises(ValueError, match=said):
        weights.read(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(vocab_size=10**12), r"configuration says \(1000000000000, 32\)"),
        (dict(intermediate_size=10**12), r"configuration says \(1000000000000, 32\)"),
        (dict(num_hidden_layers=10**12), "no tensor model.layers.999999999999"),
        (dict(tie_word_embeddings=False), "no tensor lm_head.weight"),
    ],
)
def test_sizes_are_believed_when_tensors_have_them(changes, said, tmp_path):
    """And no memory is taken for those that have not."""
    folder = write_folder(tmp_path / "model")
    changed(folder, **changes)
    with pytest.raises(ValueError, match=said):
        logits(weights.read(folder))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        weights.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="damaged or incomplete"):
        weights.read(tmp_path)  # an empty folder


FUZZ = """
import random, resource, signal, sys, warnings
from pathlib import Path
import jax
from llm import tiny, weights
path, kind = Path(sys.argv[1]), sys.argv[2]
file = path / kind if path.is_dir() else path
whole = file.read_bytes()
signal.alarm(240)
jax.block_until_ready(jax.numpy.ones(3) + 1)  # its threads are there
status = Path("/proc/self/status").read_text()
size = int(status.split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30,) * 2)
rng, read = random.Random(0), 0
def attempt(data):
    new = file.with_name("new")  # what is open is mapped: it must not shrink
    new.write_bytes(data)
    new.replace(file)
    try:
        source = weights.read(path)
        for name, shape in NAMES.items():
            weights._tensor(source, name, shape)
        return 1
    except ValueError as error:
        assert str(path) in str(error), error
        return 0
NAMES = {}
for layer in "01":
    for part in weights.LAYER.values():
        name = f"model.layers.{layer}.{part}.weight"
        if "q_norm" not in name and "k_norm" not in name:
            x = tiny.source().tensor(name)
            NAMES[name] = (x.T if "proj" in name else x).shape
assert attempt(whole) == 1
head = min(len(whole), 9000)
for n in [*range(0, 64), *rng.sample(range(64, len(whole)), 60)]:
    assert not attempt(whole[:n]) or kind == "tokenizer.json"
for _ in range(400):
    data = bytearray(whole)
    at = rng.randrange(head)
    if rng.random() < 0.5:
        data[at] ^= 1 << rng.randrange(8)
    else:  # a count that is huge
        count = rng.choice([2**63 - 1, 2**40, 2**64 - 1, 0])
        data[at : at + 8] = count.to_bytes(8, "little")
    read += attempt(bytes(data[: len(whole)]))
print("survived", read)
"""


@pytest.mark.parametrize(
    "kind", ["gguf", "model.safetensors", "config.json", "tokenizer.json"]
)
def test_damage_is_an_error_and_no_more(kind, tmp_path):
    """Cut short and flipped bits: no crash, no hang, no gigabytes."""
    if kind == "gguf":
        path = write_gguf(tmp_path / "tiny.gguf")
    else:
        path = write_folder(tmp_path / "model")
    program = [sys.executable, "-c", FUZZ, str(path), kind]
    examples = Path(weights.__file__).parents[1]
    done = subprocess.run(
        program, capture_output=True, text=True, cwd=examples, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "survived" in done.stdout
