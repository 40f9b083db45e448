"""Files of models: what was written is read, and what is damaged is an error."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from llm import hugging_face, tiny, weights
from llm.model import Training, is_trained
from llm_models import FAMILIES, built, config_of, logits_of, tiny_ids, write_gguf

FUZZ = Path(__file__).parents[1] / "benchmarks/reliability"

pytestmark = pytest.mark.usefixtures("relaxed")


def write_folder(folder, family="llama", params=None, training=None):
    params = built(family)[1] if params is None else params
    training = training or Training()
    args = FAMILIES[family], training, params, tiny.tokenizer(), (0, 1)
    weights.export(folder, *args)
    return folder


def logits(source):
    graph, params = weights.loaded(source, Training(remat=False), jax.random.key(0))
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
    source = weights.read(write_gguf(tmp_path / "tiny.gguf", tiny.source(config)))
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

LLAMA3 = dict(rope_type="llama3", factor=8, low_freq_factor=1, high_freq_factor=4)
LLAMA3 |= dict(original_max_position_embeddings=64)


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
        (dict(rope_scaling=LLAMA3 | {"factor": 0}), "rope scaled by 0.0"),
        (dict(rope_scaling=LLAMA3 | {"low_freq_factor": 4}), "from 4.0 to 4.0 turns"),
        (dict(rope_theta=float("inf"), rope_parameters="gone"), "rope_theta inf"),
        (dict(quantization_config={"bits": 8}), "quantised weights"),
        (
            dict(num_hidden_layers=1),
            r"nothing here reads, such as model.layers.1.input",
        ),
        (dict(vocab_size=200), "words up to 257, but 200 of them"),
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
        (dict(num_hidden_layers=10**12), "1000000000000 layers, but 20 tensors"),
        (dict(num_hidden_layers=3), "no tensor model.layers.2.input_layernorm"),
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


@pytest.mark.skipif(sys.platform != "linux", reason="it measures memory, in /proc")
def test_damage_is_an_error_and_no_more(tmp_path):
    """No crash, no hang, no gigabytes; many more of them are in the benchmarks."""
    program = [sys.executable, str(FUZZ / "readers.py"), "--quick"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*program, "--out", str(tmp_path)],
        **dict(capture_output=True, text=True, env=env, timeout=900),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    notes = tmp_path / "notes.jsonl"
    assert not notes.exists(), notes.read_text()[:2000]
    found = json.loads((tmp_path / "readers.json").read_text())
    assert found["inputs"] > 5000 and found["bad"] == 0
    assert all(row["read"] for row in found["readers"])  # not all is refused


def test_what_damaged_files_did():
    """When many more of them were read: nothing bad."""
    found = json.loads((FUZZ.parent / "results/readers.json").read_text())
    assert found["inputs"] >= 10**6 and found["bad"] == 0
    assert len(found["readers"]) == 6
    for row in found["readers"]:
        assert row["read"] + row["clear error"] == row["inputs"]
        assert row["times its size"] < found["times_size"]


def with_tokenizer(folder, **changes):
    path = write_folder(folder) / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


MAP = dict(type="Precompiled", precompiled_charsmap="/////w==")  # of 4 GiB, it says
PAD = dict(strategy={"Fixed": 10**12}, direction="Right", pad_to_multiple_of=None)
PAD |= dict(pad_id=0, pad_type_id=0, pad_token="x")
CUT = dict(max_length=1, stride=0, strategy="LongestFirst", direction="Right")


@pytest.mark.parametrize(
    "normalizer",
    [MAP, {"type": "Sequence", "normalizers": [MAP]}, {"precompiled_charsmap": "AA"}],
)
def test_a_map_that_would_end_the_process(normalizer, tmp_path):
    """tokenizers takes the memory that it names, or aborts."""
    with pytest.raises(ValueError, match="a map of characters"):
        weights.read(with_tokenizer(tmp_path / "model", normalizer=normalizer))


def test_a_panic_is_an_error(tmp_path):
    """It is no Exception: without care it ends a run without the file's name."""
    folder = write_folder(tmp_path / "model")

    class Panic(BaseException):
        pass

    def panics(path):
        raise Panic("index out of bounds")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hugging_face, "_tokenizer", panics)
        with pytest.raises(ValueError, match=f"{folder} is damaged .*Panic: index"):
            weights.read(folder)
        patch.setattr(hugging_face, "_tokenizer", lambda path: sys.exit(3))
        with pytest.raises(SystemExit):
            weights.read(folder)


def test_lengths_in_a_tokenizer_are_not_ours(tmp_path):
    """A prompt cut to a token teaches nothing; padding to 10^12 needs terabytes."""
    folder = with_tokenizer(tmp_path / "model", padding=PAD, truncation=CUT)
    assert len(weights.read(folder).tokenizer.encode("3 + 4").ids) == 5


def test_paths_stay_in_their_folder(tmp_path):
    """By an index or by a link; the hub's cache links to its own blobs."""
    outside = write_folder(tmp_path / "outside")
    hub = tmp_path / "models--x"
    folder = write_folder(hub / "snapshots" / "1")
    whole = folder / "model.safetensors"
    names = [name for name in hugging_face._safetensors(folder)]
    index = folder / "model.safetensors.index.json"
    where = lambda file: index.write_text(
        json.dumps({"weight_map": dict.fromkeys(names, file)})
    )
    strays = ["../../../outside/model.safetensors", str(outside / "model.safetensors")]
    strays += ["..", ".", "", "/", "sub/../model.safetensors", "./model.safetensors"]
    for name in strays:
        where(name)
        with pytest.raises(ValueError, match="outside the folder"):
            weights.read(folder)
    index.unlink()
    (hub / "blobs").mkdir()
    whole.rename(hub / "blobs" / "abc")
    whole.symlink_to("../../blobs/abc")
    weights.read(folder)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        file = folder / name
        kept = file.rename(tmp_path / name)
        file.symlink_to(outside / name)
        with pytest.raises(ValueError, match=f"'{name}' is outside the folder"):
            weights.read(folder)
        file.unlink()
        kept.rename(file)
    elsewhere = write_folder(tmp_path / "plain" / "1")  # no hub's
    (tmp_path / "blobs").mkdir()
    (elsewhere / "config.json").rename(tmp_path / "blobs" / "c")
    (elsewhere / "config.json").symlink_to("../../blobs/c")
    with pytest.raises(ValueError, match="outside the folder"):
        weights.read(elsewhere)


def test_tensors_of_a_gguf_follow_each_other(tmp_path):
    """Else two could be one, or lie in the header, and nobody would notice."""
    path = write_gguf(tmp_path / "tiny.gguf", tiny.source())
    reader = gguf.GGUFReader(path)
    second = reader.tensors[1].field
    at = second.offset + sum(part.nbytes for part in second.parts[:-1])
    data = bytearray(path.read_bytes())
    for offset in (0, 2**64 - 32, 32):
        data[at : at + 8] = offset.to_bytes(8, "little")
        damaged = tmp_path / f"{offset}.gguf"
        damaged.write_bytes(data)
        with pytest.raises(ValueError, match=r"begins at|overflow"):
            weights.read(damaged)


def test_an_array_of_numbers_is_read_at_once(tmp_path):
    """Else a count that a flipped bit made huge takes 671 bytes for each of them."""
    more = np.zeros(200_000, np.int8).tolist()
    path = write_gguf(tmp_path / "tiny.gguf", tiny.source(), more=more)
    weights.read(path)
    tracemalloc.start()
    weights.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000 * 100  # a list of them, and a little
