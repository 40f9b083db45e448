"""transformers itself: its checkpoints read here, ours read there, the same logits.

The values that tests/test_llm_model.py compares with were written by record.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from llm import runs, tiny, weights
from llm.model import Training
from llm_models import FAMILIES, TEXT, built, logits_of, needs_smollm2, tiny_ids

record = pytest.importorskip("hf.record", reason="python3 run.py test-hf")
torch, transformers = record.torch, record.transformers
pytestmark = [
    pytest.mark.usefixtures("relaxed"),
    pytest.mark.filterwarnings("default"),  # torch's and transformers' own
]
SIZES = dict(
    vocab_size=258,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=1,
    rope_theta=50_000.0,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=50_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
THEIRS = {
    "smollm": ("Llama", dict(tie_word_embeddings=True)),
    "llama": ("Llama", dict(tie_word_embeddings=False)),
    "llama3": ("Llama", dict(rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(tie_word_embeddings=False, head_dim=32)),
}


def logits_here(folder, ids):
    source = weights.read(folder)
    graph, params = weights.loaded(source, Training(remat=False), jax.random.key(0))
    return logits_of(graph, jax.tree.map(jnp.asarray, params), ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", THEIRS)
def test_their_checkpoints_are_read(tmp_path, family, dtype):
    """Random ones of every family, biases and norms random too."""
    name, more = THEIRS[family]
    config = getattr(transformers, f"{name}Config")(**SIZES | more)
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for path, x in model.named_parameters():
            if x.ndim == 1:
                x.normal_(1.0 if "norm" in path else 0.0, 0.2)
            elif "embed" not in path and "lm_head" not in path:
                x.normal_(0, x.shape[1] ** -0.5)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    # Read again: `to` has rounded what is not a parameter, too (RoPE's speeds).
    model = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    expected = record.logits(model, tiny_ids())
    assert np.std(expected) > 0.5
    got = logits_here(tmp_path, tiny_ids())
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=0)
    print(f"{family} {dtype}: {np.max(np.abs(got - expected)):.1e}")


@pytest.mark.parametrize("family", FAMILIES)
def test_our_folders_are_read(tmp_path, family):
    expected = logits_of(*built(family), tiny_ids())
    got = record.logits(record.exported(family, tmp_path), tiny_ids())
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=0)


@needs_smollm2
def test_real_weights():
    model, ids = record.smollm2(), record.smollm2_ids()
    source = weights.read(weights.smollm2())
    graph, params = weights.loaded(source, Training(remat=False), jax.random.key(0))
    got = logits_of(graph, jax.tree.map(jnp.asarray, params), [ids])
    expected = record.logits(model, [ids])
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=0)
    print(f"smollm2: {np.max(np.abs(got - expected)):.1e}")
    path = weights.smollm2()
    words = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # It makes ½ a letter; SmolLM2's own tokenizer.json and llama.cpp, a digit.
    text = TEXT.replace("½", "")
    assert words(text).input_ids == source.tokenizer.encode(text).ids


@needs_smollm2
def test_real_weights_are_exported(tmp_path):
    """With the tokenizer that was in the GGUF."""
    source = weights.read(weights.smollm2())
    _, params = weights.loaded(source, Training(), jax.random.key(0))
    args = source.config, Training(), params, source.tokenizer, source.end_ids
    weights.export(tmp_path, *args)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXT).input_ids
    assert ids == record.smollm2_ids()
    load = transformers.AutoModelForCausalLM.from_pretrained
    got = record.logits(load(tmp_path, dtype=torch.float32), [ids])
    expected = record.logits(record.smollm2(), [ids])
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=0)


def test_a_step_has_trls_gradient(tmp_path):
    """As benchmarks/llm_step.py measures it, here with the tiny model."""
    root = Path(runs.__file__).parents[2]
    command = [sys.executable, root / "benchmarks/llm_step.py", "--quick"]
    command += ["--peer", sys.executable, "--out", tmp_path]
    subprocess.run(list(map(str, command)), check=True, timeout=1800)
    (rows,) = json.loads((tmp_path / "llm_step.json").read_text()).values()
    off = [row["gradient off by"] for row in rows if "gradient off by" in row]
    assert len(off) == 4 and max(off) < 1e-4  # ours kept, TRL's in one pass and more


@pytest.mark.parametrize("more", [[], ["--lora-rank", "4"], ["--algorithm", "ppo"]])
def test_a_trained_policy_is_read(tmp_path, more):
    """What a run leaves, as it is, is a model and a tokenizer of transformers."""
    args = ["--smoke", "--learning-rate", "1e-3", "--out", str(tmp_path / "run")]
    runs.train(runs.parse(runs.Options(), "", [*args, *more]))
    folder = tmp_path / "run" / "policy"
    load = dict(dtype=torch.float32, output_loading_info=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, **load)
    assert not any(info.values()), info
    got = record.logits(model, tiny_ids())
    expected = logits_here(folder, tiny_ids())
    np.testing.assert_allclose(got, expected, atol=2e-4, rtol=0)
    start = logits_of(*built(), tiny_ids())
    assert np.max(np.abs(got - start)) > 1e-2  # it was trained
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXT).input_ids == tiny.tokenizer().encode(TEXT).ids
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert model.generation_config.eos_token_id == ends
