"""The sampler: what it says of what it sampled, and where it stops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from llm import sampler
from llm.model import Training
from llm_models import built, logits_of, model_of

import jaxppo

pytestmark = pytest.mark.usefixtures("relaxed")
TEXTS = [[5, 1, 0, 7], [9], [200, 201, 202, 203, 204, 205], [0, 1, 1]]


def sampled(seed=0, model=None, texts=TEXTS, **kwargs):
    graph, params = built() if model is None else nnx.split(model)
    ids, mask = (jnp.asarray(x) for x in sampler.padded(texts, 8))
    given = dict(num_samples=3, max_new_tokens=6, end_ids=(1,)) | kwargs
    run = jax.jit(
        lambda params, key: sampler.generate(
            nnx.merge(graph, params), ids, mask, key, **given
        )
    )
    return run(params, jax.random.key(seed)), ids, mask


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_log_probs_are_the_trainers(family, temperature):
    model = model_of(family)
    out, ids, mask = sampled(model=model, temperature=temperature)
    states = model.states(ids, mask, out.tokens)
    head = jaxppo.token_log_probs(
        *(states, model.unembed, out.tokens),
        **dict(mask=out.mask, temperature=temperature),
    )
    np.testing.assert_allclose(out.log_probs, head.log_probs, atol=1e-4, rtol=0)
    assert np.min(out.log_probs) < -2


def test_values_are_the_trainers():
    training = Training(value_head=True, remat=False)
    graph, params = built("llama", training)
    weight = params["value"]["kernel"]
    weight[...] = jnp.linspace(-1, 1, weight[...].size).reshape(weight[...].shape)
    model = nnx.merge(graph, params)
    out, ids, mask = sampled(model=model)
    values = model.values(model.states(ids, mask, out.tokens))
    np.testing.assert_allclose(
        np.where(out.mask, out.values, 0), np.where(out.mask, values, 0), atol=1e-4
    )
    assert np.ptp(values) > 0.1


def test_it_ends_where_it_says():
    """The mask is of what was sampled: 0 and 1 (padding, end) stand in prompts too."""
    out, _, _ = sampled(max_new_tokens=40, end_ids=range(0, 258, 9), num_samples=8)
    tokens, mask = np.array(out.tokens), np.array(out.mask)
    ends = tokens % 9 == 0
    for row, kept, end in zip(
        *(x.reshape(-1, 40) for x in (tokens, mask, ends)), strict=True
    ):
        n = kept.sum()
        assert kept[:n].all() and not kept[n:].any()
        assert not row[n:].any() and not end[: n - 1].any()
        assert end[n - 1] or n == 40
    assert len(set(mask.sum(-1).ravel())) > 5
    assert np.all(out.log_probs[~mask] == 0)
    first, _, _ = sampled(num_samples=8, end_ids=(), max_new_tokens=1)
    assert np.all(first.mask)


def test_greedy_takes_the_likeliest():
    out, _, _ = sampled(temperature=0, end_ids=())
    graph, params = built()
    for text, row in zip(TEXTS, np.array(out.tokens[:, 0]), strict=True):
        whole = np.array([*text, *row])
        likeliest = logits_of(graph, params, whole[None])[0].argmax(-1)
        np.testing.assert_array_equal(row, likeliest[len(text) - 1 : -1])
    np.testing.assert_array_equal(out.tokens[:, 0], out.tokens[:, 2])
    assert not np.any(out.log_probs)


@pytest.mark.parametrize(
    "given",
    [dict(), dict(top_k=4), dict(top_p=0.5), dict(top_k=5, top_p=0.7, temperature=2.0)],
    ids=str,
)
def test_it_samples_from_the_distribution_it_says(given):
    """Frequencies of one token from many samples, and its log-prob, by the book."""
    n = 6000
    text = [[17, 30, 4]]
    out, _, _ = sampled(
        texts=text, num_samples=n, max_new_tokens=1, end_ids=(), **given
    )
    graph, params = built()
    z = np.float64(logits_of(graph, params, [[*text[0], 0]])[0, 2])
    p = np.exp(z / given.get("temperature", 1.0))
    order = np.argsort(-p)
    order = order[: given.get("top_k", len(p))]
    q = np.zeros_like(p)
    q[order] = p[order] / p[order].sum()
    if "top_p" in given:
        enough = np.searchsorted(np.cumsum(q[order]), given["top_p"]) + 1
        q[order[enough:]] = 0
        q /= q.sum()
    tokens = np.array(out.tokens[0, :, 0])
    assert np.all(q[tokens] > 0)
    np.testing.assert_allclose(out.log_probs[0, :, 0], np.log(q[tokens]), atol=1e-4)
    seen = np.bincount(tokens, minlength=len(q)) / n
    assert np.max(np.abs(seen - q)) < 4.5 * np.sqrt(np.max(q) / n)


def test_a_seed_is_a_sample():
    tokens = [np.array(sampled(seed)[0].tokens) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert np.any(tokens[0] != tokens[2])
    assert np.any(tokens[0][:, 0] != tokens[0][:, 1])


def test_prompts_that_do_not_fit():
    with pytest.raises(ValueError, match="a prompt of 9 tokens; expected 1 to 8"):
        sampler.padded([list(range(9))], 8)
    with pytest.raises(ValueError, match="a prompt of 0 tokens"):
        sampler.padded([[]], 8)


def test_bfloat16_samples():
    model = model_of("llama", Training(dtype=jnp.bfloat16, remat=False))
    out, ids, mask = sampled(model=model)
    assert out.log_probs.dtype == jnp.float32
    states = model.states(ids, mask, out.tokens)
    head = partial(jaxppo.token_log_probs, mask=out.mask)
    trainers = head(states, model.unembed, out.tokens).log_probs
    np.testing.assert_allclose(out.log_probs, trainers, atol=0.1)
