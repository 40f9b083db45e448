"""The language model of the examples: transformers' logits, and nothing of padding."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from llm import weights
from llm.model import Training
from llm_models import (
    FAMILIES,
    FLOAT32,
    TEXT,
    built,
    logits_of,
    model_of,
    needs_smollm2,
    tiny_ids,
)

pytestmark = pytest.mark.usefixtures("relaxed")
RECORDED = np.load(Path(__file__).parent / "data" / "llm_logits.npz")
LAST = Training(layers=1, remat=False)
LORA = Training(lora_rank=3, remat=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_transformers(family):
    got = logits_of(*built(family), tiny_ids())
    np.testing.assert_allclose(got, RECORDED[family], atol=2e-4, rtol=0)
    assert np.ptp(RECORDED[family]) > 2  # not all alike


@needs_smollm2
def test_logits_of_the_real_model_are_transformers():
    source = weights.read(weights.smollm2())
    ids = source.tokenizer.encode(TEXT).ids
    assert ids == RECORDED["smollm2_ids"].tolist()
    assert source.tokenizer.decode(ids) == TEXT
    graph, params = weights.loaded(source, FLOAT32, jax.random.key(0))
    got = logits_of(graph, jax.tree.map(jnp.asarray, params), [ids])[0]
    np.testing.assert_allclose(got[:, ::97], RECORDED["smollm2"], atol=2e-4, rtol=0)
    np.testing.assert_array_equal(got.argmax(-1), RECORDED["smollm2_likeliest"])


def groups(seed=0, prompts=3, samples=2, time=7, new=5):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 258, (prompts, time))
    mask = np.arange(time)[None] >= rng.integers(0, time - 1, (prompts, 1))
    completions = rng.integers(0, 258, (prompts, samples, new))
    arrays = [jnp.asarray(x, jnp.int32) for x in (ids, completions)]
    return arrays[0], jnp.asarray(mask), arrays[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prompt_is_the_prompt_in_front_of_each(family):
    """What a completion's token is predicted from: all before it, padding apart."""
    prompts, mask, completions = groups()
    graph, params = built(family)
    model = nnx.merge(graph, params)
    states = model.states(prompts, mask, completions)
    got = jnp.einsum("bgtd,vd->bgtv", states, model.unembed)
    for b in range(3):
        for g in range(2):
            text = jnp.concatenate([prompts[b][mask[b]], completions[b, g]])[None]
            new = completions.shape[-1]
            expected = logits_of(graph, params, text)[0, -new - 1 : -1]
            np.testing.assert_allclose(got[b, g], expected, atol=2e-5)


def loss_and_grads(model, prompts, mask, completions):
    graph, params = nnx.split(model)

    def loss(params):
        states = nnx.merge(graph, params).states(prompts, mask, completions)
        return jnp.sum(jnp.sin(states.astype(jnp.float32)))

    return jax.jit(jax.value_and_grad(loss))(params)


def close(got, expected, atol=1e-5):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=atol * max(1.0, float(jnp.max(abs(y)))))


def test_padding_is_not_seen():
    prompts, mask, completions = groups()
    other = jnp.where(mask, prompts, (prompts + 17) % 258)
    assert np.any(other != prompts)
    run = lambda prompts: loss_and_grads(model_of(), prompts, mask, completions)
    # The padding is embedded; nobody looks at it, and no gradient comes back.
    got, expected = run(other), run(prompts)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_computing_layers_again_changes_nothing():
    batch = groups()
    close(
        loss_and_grads(model_of("llama", Training()), *batch),
        loss_and_grads(model_of(), *batch),
        atol=1e-6,
    )


@pytest.mark.parametrize("training", [LAST, LORA], ids=["last", "lora"])
def test_what_is_trained_does_not_change_the_model(training):
    batch = groups()
    got = model_of("qwen3", training).states(*batch)
    np.testing.assert_allclose(got, model_of("qwen3").states(*batch), atol=1e-5)


def test_bfloat16_is_close():
    """Of weights that stay float32; 2 layers of some ten roundings of 2^-9 each."""
    batch, half = groups(), Training(dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(built("llama", half)[1])} == {
        jnp.dtype("float32")
    }
    states = model_of("llama", half).states(*batch)
    assert states.dtype == jnp.bfloat16
    exact = model_of().states(*batch)
    error = states.astype(jnp.float32) - exact
    assert 0 < float(jnp.std(error)) < 0.03 * float(jnp.std(exact))


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match="3 layers to train, of a model with 2"):
        weights.graph_and_shapes(FAMILIES["llama"], Training(layers=3))
