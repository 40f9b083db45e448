"""The algorithms by name: their losses on a ragged batch, written out in float64."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from llm import runs
from llm.algorithms import ALGORITHMS

pytestmark = pytest.mark.usefixtures("relaxed")
PROMPTS, SAMPLES, TIME = 3, 4, 5
OPTIONS = runs.Options(
    clip_eps=0.15, kl_coef=0.3, gae_lambda=0.7, value_coef=0.4, entropy_coef=0.03
)


class Head(NamedTuple):
    log_probs: jnp.ndarray
    entropy: jnp.ndarray


def drawn(seed=0):
    """A group of equal rewards, a sample without one, rows of all lengths."""
    rng = np.random.default_rng(seed)
    shape = PROMPTS, SAMPLES, TIME
    lengths = rng.integers(1, TIME + 1, shape[:2])
    rewards = rng.normal(size=shape[:2])
    rewards[1] = 0.5
    scored = np.ones(shape[:2], bool)
    scored[2, 1] = False
    mask = (np.arange(TIME) < lengths[..., None]) & scored[..., None]
    old = rng.normal(size=shape) - 2
    x = {
        "mask": mask,
        "old_log_probs": old,
        "ref_log_probs": old + 0.2 * rng.normal(size=shape),
        "rewards": np.where(scored, rewards, 0),
        "scored": scored,
        "old_values": rng.normal(size=shape),
    }
    new = old + 0.3 * rng.normal(size=shape)
    values = x["old_values"] + 0.3 * rng.normal(size=shape)
    return x, new, rng.random(shape) + 1, values


def group_advantages(x, scaled=True):
    out = np.zeros((PROMPTS, SAMPLES))
    for p in range(PROMPTS):
        r = x["rewards"][p][x["scored"][p]]
        a = r - r.mean()
        if scaled:
            a = a / (r.std(ddof=1) + 1e-6)
        out[p, x["scored"][p]] = a
    return out


def surrogate(ratio, a, low, high):
    return -np.minimum(ratio * a, np.clip(ratio, 1 - low, 1 + high) * a)


def token_mean(terms, mask):
    return terms[mask].mean()


def sequence_mean(terms, mask):
    rows = [
        terms[i][mask[i]].mean() for i in np.ndindex(mask.shape[:2]) if any(mask[i])
    ]
    return np.mean(rows)


def expected(name, x, new, entropy, values, o):
    """The total that is minimised."""
    mask, ratio = x["mask"], np.exp(new - x["old_log_probs"])
    eps = o.clip_eps
    if name == "ppo":
        return ppo(x, new, entropy, values, o)
    a = group_advantages(x, scaled=name != "dr_grpo")[..., None] * np.ones(TIME)
    if name == "grpo":
        policy = sequence_mean(surrogate(ratio, a, eps, eps), mask)
    if name == "dr_grpo":
        rows = np.any(mask, -1).sum()
        policy = surrogate(ratio, a, eps, eps)[mask].sum() / TIME / rows
    if name == "dapo":
        mask = mask & np.array([True, False, True])[:, None, None]
        policy = token_mean(surrogate(ratio, a, eps, 0.28), mask)
    if name == "gspo":
        log_ratio = np.where(mask, new - x["old_log_probs"], 0)
        lengths = np.maximum(mask.sum(-1, keepdims=True), 1)
        s = np.exp(log_ratio.sum(-1, keepdims=True) / lengths) * np.ones(TIME)
        policy = sequence_mean(surrogate(s, a, 3e-4, 4e-4), mask)
    if name == "cispo":
        policy = token_mean(-np.minimum(ratio, 5.0) * a * new, mask)
    y = x["ref_log_probs"] - new
    return policy + o.kl_coef * token_mean(np.exp(y) - 1 - y, mask)


def ppo(x, new, entropy, values, o):
    mask, old_values = x["mask"], x["old_values"]
    advantages = np.zeros(mask.shape)
    for i in np.ndindex(mask.shape[:2]):
        n, last = mask[i].sum(), 0.0
        for t in reversed(range(n)):
            kl = x["old_log_probs"][i][t] - x["ref_log_probs"][i][t]
            reward = (x["rewards"][i] if t == n - 1 else 0) - o.kl_coef * kl
            after = old_values[i][t + 1] if t < n - 1 else 0
            last = reward + after - old_values[i][t] + o.gae_lambda * last
            advantages[i][t] = last
    returns = advantages + old_values
    white = (advantages - advantages[mask].mean()) / advantages[mask].std()
    ratio = np.exp(new - x["old_log_probs"])
    near = np.clip(values, old_values - o.value_clip_eps, old_values + o.value_clip_eps)
    worse = np.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    terms = surrogate(ratio, white, o.clip_eps, o.clip_eps)
    terms = terms + o.value_coef * worse - o.entropy_coef * entropy
    return token_mean(terms, mask)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_loss(name):
    x, new, entropy, values = drawn()
    advantages, loss, critic = ALGORITHMS[name]
    o = dataclasses.replace(OPTIONS, algorithm=name)
    as_jax = lambda a: jnp.asarray(a, None if a.dtype == bool else jnp.float32)
    batch = {k: as_jax(v) for k, v in x.items() if critic or k != "old_values"}
    head = Head(as_jax(new), as_jax(entropy))
    total, metrics = loss(head, as_jax(values), advantages(batch, o), o)
    means = total.values() if isinstance(total, dict) else [total]
    got = float(sum(mean.value for mean in means))
    want = expected(name, x, new, entropy, values, o)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    assert {"approx_kl"} <= metrics.keys()
