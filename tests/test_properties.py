"""Laws that hold for any numbers and any mask, with NaN wherever the mask is 0."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from cases import literally
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxppo

SHAPE = ROWS, TIME = 3, 4  # one shape, so that each function is compiled once
AGGREGATORS = dict(
    token_mean=jaxppo.token_mean,
    token_sum=jaxppo.token_sum,
    sequence_mean=jaxppo.sequence_mean,
    sequence_sum=functools.partial(jaxppo.sequence_sum, scale=0.3),
)
RATIOS = dict(token=jaxppo.log_ratio, sequence=jaxppo.sequence_log_ratio)

EXAMPLES = int(os.environ.get("JAXPPO_EXAMPLES", 25))
lawful = settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
masks = hnp.arrays(bool, SHAPE)
places = st.integers(0, TIME)


def numbers(low=-2.0, high=2.0, shape=SHAPE):
    """Arrays of a hundred different numbers from low to high."""
    steps = hnp.arrays(np.int32, shape, elements=st.integers(0, 100))
    return steps.map(lambda x: np.float32(low + (high - low) * x / 100))


def padded(mask, *arrays):
    """Arrays with NaN where the mask is 0, and the mask."""
    return [*(np.where(mask, x, np.float32(np.nan)) for x in arrays), mask]


def insert(x, at, fill):
    """x with two more columns."""
    return np.insert(x, [at, at], fill, 1)


def wider(batch, at):
    """A batch with two columns of padding at a place."""
    return [insert(x, at, False if x.dtype == bool else np.nan) for x in batch]


def assert_close(got, expected):
    jax.tree.map(close, got, expected)


@literally
def surrogates(log_probs, old_log_probs, advantages, mask):
    """PPO's and GSPO's loss through every aggregator, and their gradients."""

    def losses(log_probs):
        out = {}
        for kind, ratio in RATIOS.items():
            x = ratio(log_probs, old_log_probs, mask)
            loss = jaxppo.clipped_surrogate(x, advantages, clip_eps=0.1, dual_clip=2.0)
            for name, aggregate in AGGREGATORS.items():
                out[f"{kind}, {name}"] = aggregate(loss, mask)
        return out

    totals = lambda x: {name: mean.total for name, mean in losses(x).items()}
    return losses(log_probs), jax.jacrev(totals)(log_probs)


# --- rows, padding, parts ---


@lawful
@given(numbers(), numbers(), numbers(), masks, st.permutations(range(ROWS)))
def test_the_order_of_rows_does_not_matter(new, old, advantages, mask, order):
    batch = padded(mask, new, old, advantages)
    losses, slopes = surrogates(*batch)
    permuted, permuted_slopes = surrogates(*(x[order] for x in batch))
    assert_close(permuted, losses)
    assert_close(permuted_slopes, jax.tree.map(lambda x: x[jnp.array(order)], slopes))


@lawful
@given(numbers(), numbers(), numbers(), masks, places)
def test_padding_does_not_matter(new, old, advantages, mask, at):
    batch = padded(mask, new, old, advantages)
    losses, slopes = surrogates(*batch)
    same, same_slopes = surrogates(*wider(batch, at))
    assert_close(same, losses)
    assert_close(same_slopes, jax.tree.map(lambda x: insert(x, at, 0), slopes))


@literally
def estimates(log_ratio, rewards, values, discounts, lambda_, mask):
    given = dict(lambda_=lambda_, mask=mask)
    return [
        *jaxppo.gae(rewards, values, discounts, **given),
        *jaxppo.vtrace(log_ratio, rewards, values, discounts, **given),
        jaxppo.discounted_returns(rewards, discounts, mask=mask),
    ]


@lawful
@given(*[numbers()] * 3, *[numbers(0, 1)] * 2, masks, places)
def test_steps_that_do_not_count_are_skipped(x, rewards, v, gamma, lam, mask, at):
    batch = padded(mask, x, rewards, v, gamma, lam)
    expected = [insert(x, at, 0) for x in estimates(*batch)]
    assert_close(estimates(*wider(batch, at)), expected)


@literally
def summaries(x, mask):
    means = {name: aggregate(x, mask) for name, aggregate in AGGREGATORS.items()}
    return means | dict(max=jaxppo.ratio_max(x, mask), min=jaxppo.ratio_min(x, mask))


@lawful
@given(numbers(), masks, hnp.arrays(bool, (ROWS, 1)), masks)
def test_parts_add_up_to_the_whole(x, mask, rows, some):
    x, mask = padded(mask, x)
    whole = summaries(x, mask)
    by_rows = [summaries(x, mask & part) for part in (rows, ~rows)]
    assert_close({k: by_rows[0][k] + by_rows[1][k] for k in whole}, whole)
    by_tokens = [summaries(x, mask & part) for part in (some, ~some)]
    for name in ("token_mean", "token_sum", "max", "min"):
        assert_close(by_tokens[0][name] + by_tokens[1][name], whole[name])


# --- policy terms ---


@lawful
@given(numbers(), numbers(), numbers(), masks, st.sampled_from([0.01, 0.3, 7.0]))
def test_the_surrogate_scales_with_the_advantages(new, old, advantages, mask, c):
    losses, slopes = surrogates(*padded(mask, new, old, advantages))
    scaled = surrogates(*padded(mask, new, old, np.float32(c) * advantages))
    losses = {name: c * mean for name, mean in losses.items()}
    assert_close(scaled, (losses, jax.tree.map(lambda x: c * x, slopes)))


@literally
def reinforce(log_probs, advantages, mask):
    def totals(x):
        loss = jaxppo.policy_gradient(x, advantages, mask)
        return {name: f(loss, mask).total for name, f in AGGREGATORS.items()}

    return jax.jacrev(totals)(log_probs)


@lawful
@given(numbers(), numbers(), masks)
def test_on_policy_the_gradient_is_reinforces(new, advantages, mask):
    new, advantages, _ = padded(mask, new, advantages)
    slopes = surrogates(new, new, advantages, mask)[1]
    expected = reinforce(new, advantages, mask)
    assert_close({name: slopes[f"token, {name}"] for name in AGGREGATORS}, expected)


@lawful
@given(numbers(), numbers(shape=(ROWS, 1)), masks)
def test_on_policy_gspo_is_reinforce(new, advantages, mask):
    """With one advantage per sequence, the mean's gradient is the tokens' own."""
    new, _ = padded(mask, new)
    slopes = surrogates(new, new, advantages, mask)[1]
    expected = reinforce(new, advantages, mask)["sequence_mean"]
    assert_close(slopes["sequence, sequence_mean"], expected)


@literally
def with_dual_clip(x, advantages, dual_clip):
    loss = lambda x, c: jaxppo.clipped_surrogate(x, advantages, dual_clip=c)
    return [
        (loss(x, c), jax.grad(lambda x, c=c: jnp.sum(loss(x, c)))(x))
        for c in (dual_clip, None)
    ]


@lawful
@given(numbers(), numbers())
def test_a_dual_clip_out_of_reach_is_none(x, advantages):
    for c in (np.inf, 1.01 * np.exp(2)):
        assert_close(*with_dual_clip(x, advantages, c))
    capped, _ = with_dual_clip(x, advantages, 1.5)
    assert np.all(capped[0] <= 1.5 * np.abs(advantages) + 1e-6)


@lawful
@given(numbers(), numbers(), hnp.arrays(np.int32, ROWS, elements=st.integers(0, 3)))
def test_a_sequence_of_one_token_has_that_tokens_ratio(new, old, where):
    mask = where[:, None] == np.arange(TIME)
    new, old, _ = padded(mask, new, old)
    token, sequence = (literally(ratio)(new, old, mask) for ratio in RATIOS.values())
    assert_close(sequence[mask], token[mask])


# --- estimators ---


@literally
def gae(rewards, values, discounts, lambda_, mask):
    return jaxppo.gae(rewards, values, discounts, lambda_=lambda_, mask=mask)


@lawful
@given(numbers(), numbers(), numbers(0, 1))
def test_gae_without_lambda_is_the_td_error(rewards, values, gamma):
    everything, zeros = np.ones(SHAPE, bool), np.zeros((ROWS, 1), np.float32)
    advantages, _ = gae(rewards, values, gamma, 0 * gamma, everything)
    following = np.concatenate([values[:, 1:], zeros], 1)
    assert_close(advantages, rewards + gamma * following - values)


@lawful
@given(numbers(), numbers(), numbers(0, 1), masks)
def test_gae_with_lambda_one_is_monte_carlo(rewards, values, gamma, mask):
    rewards, values, gamma, _ = padded(mask, rewards, values, gamma)
    ones = np.ones(SHAPE, np.float32)
    advantages, returns = gae(rewards, values, gamma, ones, mask)
    monte_carlo = jaxppo_returns(rewards, gamma, mask)
    assert_close(returns, monte_carlo)
    assert_close(advantages[mask], (monte_carlo - values)[mask])


@literally
def jaxppo_returns(rewards, discounts, mask):
    return jaxppo.discounted_returns(rewards, discounts, mask=mask)


@lawful
@given(numbers(), numbers(), numbers(0, 1), numbers(0, 1), masks)
def test_vtrace_on_policy_is_gae(rewards, values, gamma, lambda_, mask):
    batch = padded(mask, rewards, values, gamma, lambda_)
    zeros = np.zeros(SHAPE, np.float32)
    gae_advantages, gae_returns, advantages, targets, _ = estimates(zeros, *batch)
    assert_close(targets, gae_returns)
    assert_close(advantages, gae_advantages)


@literally
def group_estimates(rewards, mask):
    size = dict(group_size=TIME // 2)
    return dict(
        scaled=jaxppo.group_advantages(rewards, mask, eps=0.0, **size),
        centred=jaxppo.group_advantages(rewards, mask, scale_by_std=False, **size),
        leave_one_out=jaxppo.leave_one_out_advantages(rewards, mask, **size),
        whitened=jaxppo.whiten(rewards, mask, eps=0.0),
    )


@lawful
@given(numbers(), masks, st.sampled_from([0.5, 4.0]), st.sampled_from([-8.0, 0.0, 3.0]))
def test_baselines_ignore_a_shift_and_follow_a_scale(rewards, mask, scale, shift):
    plain = group_estimates(*padded(mask, rewards))
    moved = group_estimates(*padded(mask, np.float32(scale * rewards + shift)))
    for name in ("centred", "leave_one_out"):
        plain[name] *= scale
    assert_close(moved, plain)
    for x in plain.values():
        assert np.all(np.asarray(x)[~mask] == 0)
        close(np.sum(x), 0)


# --- KL, heads, metrics ---


@literally
def kls(x):
    names = ("kl_k1", "kl_k2", "kl_k3", "approx_kl_k1", "approx_kl_k3")
    return {name: getattr(jaxppo, name)(x) for name in names}


@lawful
@given(numbers(-5, 5))
def test_kl_estimators(x):
    kl, back = kls(x), kls(-x)
    close(kl["approx_kl_k1"], back["kl_k1"])
    close(kl["approx_kl_k3"], back["kl_k3"])
    close(kl["kl_k2"], back["kl_k2"])
    close(kl["kl_k3"] - kl["kl_k1"], np.expm1(-x))  # the control variate, of mean 0
    assert np.all(kl["kl_k3"] >= np.maximum(0, x - 1))


@literally
def every_choice(logits):
    tile = jnp.tile(logits[:, None], (1, TIME, 1))
    actions = jnp.tile(jnp.arange(TIME)[None], (ROWS, 1))
    log_probs, entropy = jaxppo.categorical(tile, actions)
    return log_probs, entropy[:, 0]


@lawful
@given(numbers(), masks, st.sampled_from([-100.0, 0.0, 50.0]))
def test_a_categorical_is_a_distribution(logits, allowed, shift):
    allowed[:, 0] = True
    logits = np.where(allowed, logits, np.float32(-np.inf))
    log_probs, entropy = every_choice(logits)
    assert_close(every_choice(logits + np.float32(shift)), (log_probs, entropy))
    p = np.exp(log_probs)
    close(np.sum(p, 1), 1)
    close(entropy, -np.sum(np.where(allowed, p * log_probs, 0), 1, where=allowed))
    assert np.all(entropy <= np.log(np.sum(allowed, 1)) + 1e-5)


NODES = (np.arange(2000, dtype=np.float32) + 0.5) / 2000  # of the midpoint rule


@literally
def every_action(alpha, beta, ref_alpha, ref_beta):
    """Integrals of p, -p log p and p (log p - log q), and what they are to be."""
    each = lambda x: jnp.broadcast_to(x[..., None, None], (*SHAPE, len(NODES), 1))
    actions = jnp.broadcast_to(NODES[None, None, :, None], (*SHAPE, len(NODES), 1))
    log_p, entropy = jaxppo.beta(each(alpha), each(beta), actions)
    log_q, _ = jaxppo.beta(each(ref_alpha), each(ref_beta), actions)
    mirrored, _ = jaxppo.beta(each(beta), each(alpha), 1 - actions)
    parts = [x[..., None] for x in (alpha, beta, ref_alpha, ref_beta)]
    p = jnp.exp(log_p)
    got = [jnp.mean(x, -1) for x in (p, -p * log_p, p * (log_p - log_q))]
    expected = [1 + 0 * alpha, entropy[..., 0], jaxppo.beta_kl(*parts)]
    return (*got, log_p), (*expected, mirrored)


@lawful
@given(*[numbers(2, 30)] * 4)
def test_a_beta_is_a_distribution(alpha, beta, ref_alpha, ref_beta):
    got, expected = every_action(alpha, beta, ref_alpha, ref_beta)
    for x, y in zip(got, expected, strict=True):
        # Of the rule: h^2 / 24 of the ends' slopes, up to 100; of float32: 1 - x.
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@literally
def shares(x, values, mask):
    return (
        jaxppo.effective_sample_size(x, mask),
        jaxppo.explained_variance(values, x, mask),
    )


@lawful
@given(numbers(), numbers(), masks, st.sampled_from([-3.0, 5.0]))
def test_shares_ignore_a_shift(x, values, mask, shift):
    x, values, _ = padded(mask, x, values)
    sample_size, explained = shares(x, values, mask)
    moved = shares(x + np.float32(shift), values + np.float32(shift), mask)
    np.testing.assert_allclose(moved, (sample_size, explained), rtol=1e-3, atol=1e-3)
    assert explained <= 1 and (1 / mask.size < sample_size <= 1.00001 or not mask.any())
