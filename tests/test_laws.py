"""Laws of every function, whatever the numbers: order, padding, parts, scale, limits.

`test_properties.py` has those of single functions. JAXPPO_EXAMPLES=1000 makes a
thousand examples of each, in all of both files.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ARRAYS, jitted, literally, tokens
from hypothesis import given
from hypothesis import strategies as st
from test_properties import assert_close, lawful

import jaxppo

seeds = st.integers(0, 2**32 - 1)
ROWS = [case for case in ARRAYS if not case.rowed and "key" not in case.inputs()]
each_case_of_rows = pytest.mark.parametrize("case", ROWS, ids=str)


def split(case, inputs):
    """Its arrays that have rows, and the others."""
    shared = case.shared.split()
    rows = {k: x for k, x in inputs.items() if k not in shared}
    return rows, {k: inputs[k] for k in shared}


def is_merged(x):
    return isinstance(x, (jaxppo.Mean, jaxppo.Max, jaxppo.Min))


def masked_at_random(case, seed):
    """Inputs of a seed, and a mask of its own."""
    inputs = case.inputs(seed, np.float32)
    if "mask" in inputs:
        rng = np.random.default_rng(seed)
        inputs["mask"] = rng.random(inputs["mask"].shape) < rng.choice([0.2, 0.7, 1.0])
    return inputs


@each_case_of_rows
@lawful
@given(seeds)
def test_the_order_of_rows_does_not_matter(case, seed):
    rows, shared = split(case, masked_at_random(case, seed))
    n = len(next(iter(rows.values())))
    order = np.random.default_rng(seed).permutation(n)
    out = jitted(case)(**rows, **shared)
    turned = jitted(case)(**{k: x[order] for k, x in rows.items()}, **shared)
    by_row = lambda x: x[order] if np.shape(x)[:1] == (n,) else x
    assert_close(turned, jax.tree.map(by_row, jax.tree.map(np.asarray, out)))


@pytest.mark.parametrize("case", [case for case in ROWS if case.masked], ids=str)
@lawful
@given(seeds)
def test_rows_without_a_token_do_not_matter(case, seed):
    """Two more, of NaN: they have outputs of their own, and change no other."""
    rows, shared = split(case, masked_at_random(case, seed))
    n = len(rows["mask"])
    fill = lambda x: np.full_like(x[:2], np.nan if x.dtype.kind == "f" else 0)
    more = {k: np.concatenate([x, fill(x)]) for k, x in rows.items()}
    got = jitted(case)(**more, **shared)
    cut = lambda x: x[:n] if np.shape(x)[:1] == (n + 2,) else x
    assert_close(jax.tree.map(cut, got), jitted(case)(**rows, **shared))


def adds_up(case):
    """Not a statistic of the batch, which is not that of its halves."""
    out = jax.eval_shape(case.__call__, **case.inputs(0, np.float32))
    leaves = jax.tree.leaves(out, is_leaf=is_merged)
    return not case.reduces or all(map(is_merged, leaves))


@pytest.mark.parametrize("case", [*filter(adds_up, ROWS)], ids=str)
@lawful
@given(seeds)
def test_halves_make_the_whole(case, seed):
    """What merges is added; what has rows is joined."""
    rows, shared = split(case, masked_at_random(case, seed))
    n = len(next(iter(rows.values())))
    whole = jitted(case)(**rows, **shared)
    parts = [slice(None, n // 2), slice(n // 2, None)]
    halves = [
        jitted(case)(**{k: x[p] for k, x in rows.items()}, **shared) for p in parts
    ]
    join = lambda x, y: x + y if is_merged(x) else np.concatenate([x, y])
    assert_close(jax.tree.map(join, *halves, is_leaf=is_merged), whole)


# --- scale: a power of 2 goes through bit by bit ---

SCALED = {  # the inputs and hyper-parameters that are scaled; the output's power
    **dict.fromkeys(["masked_sum", "masked_mean", "masked_max", "centred"], ("x", 1)),
    "masked_variance": ("x", 2),
    "whiten": ("x eps", 0),
    **dict.fromkeys(
        [
            *("token_mean", "token_sum", "sequence_mean", "sequence_sum"),
            "prompt_mean",
        ],
        ("per_token", 1),
    ),
    **dict.fromkeys(
        [
            *("clipped_surrogate", "policy_gradient", "unclipped_surrogate", "cispo"),
            *("geometric_mean_surrogate", "topr", "soft_gated_surrogate"),
            *("shaped_off_policy", "quadratic_surrogate", "token_covariance"),
        ],
        ("advantages", 1),
    ),
    **dict.fromkeys(
        ["vespo_weights", "clip_fraction_lower", "clip_fraction_upper"],
        ("advantages", 0),
    ),
    "squared_value": ("values returns", 2),
    "clipped_value": ("values old_values returns clip_eps", 2),
    "bounded_value": ("values old_values returns clip_eps", 2),
    "huber_value": ("values returns delta", 2),
    "quantile_value": ("quantiles returns delta", 1),
    "two_hot": ("x support", 0),
    "hl_gauss": ("x edges sigma", 0),
    "expected_value": ("support", 1),
    "gae": ("rewards values bootstrap_value next_values", 1),
    "vtrace": ("rewards values bootstrap_value next_values", 1),
    "discounted_returns": ("rewards bootstrap_value", 1),
    "group_advantages": ("rewards eps", 0),
    "pass_at_k_advantages": ("rewards eps", 0),
    "leave_one_out_advantages": ("rewards", 1),
    "leave_one_out_std": ("rewards", 1),
    "varied_groups": ("rewards", 0),
    "optimal_token_baseline": ("returns", 1),
    "explained_variance": ("values returns", 0),
    "kl_k1": ("log_ratio", 1),
    "kl_abs": ("log_ratio", 1),
    "kl_k2": ("log_ratio", 2),
    "kl_cov_mask": ("covariance", 0),
    "rejection_mask": ("statistic low high", 0),
    "normalised_weights": ("weights", 0),
}
HOMOGENEOUS = [
    case
    for case in ARRAYS
    if case.fn.__name__ in SCALED
    and case.static.get("error") is not jaxppo.huber_value  # its delta is not scaled
]


@functools.cache
def scalable(case):
    """Compiled, with its hyper-parameters as inputs."""
    return jax.jit(lambda inputs, hyper: case(**inputs, **hyper))


@pytest.mark.parametrize("case", HOMOGENEOUS, ids=str)
@lawful
@given(seeds, st.sampled_from([2.0**-9, 2.0**12]))
def test_a_scale_goes_through(case, seed, scale):
    names, power = SCALED[case.fn.__name__]
    if case.static.get("scale_by_std") is False:
        power = 1
    inputs, hyper = masked_at_random(case, seed), dict(case.hyper)
    if "singleton" in hyper:
        hyper["singleton"] = 0.0
    hyper = {k: np.float32(x) for k, x in hyper.items()}
    times = lambda k, x: x * np.float32(scale) if k in names.split() else x
    both = [{k: times(k, x) for k, x in given.items()} for given in (inputs, hyper)]
    out, got = scalable(case)(inputs, hyper), scalable(case)(*both)
    by = lambda x: x * np.float32(scale) ** power if x.dtype != bool else x
    if is_merged(out):  # counts are what they were
        out, got = (jaxppo.Mean(by(out.total), out.count), got)
    else:
        out = jax.tree.map(by, out)
    jax.tree.map(np.testing.assert_array_equal, got, out)


# --- limits into each other ---

INF = np.inf


def each_alone(x, mask):
    """One token a sequence."""
    return x[..., None], mask[..., None]


def gspo_of_single_tokens(b):
    new, mask = each_alone(b["log_probs"], b["mask"])
    old, advantages = b["old_log_probs"][..., None], b["advantages"][..., None]
    x = jaxppo.sequence_log_ratio(new, old, mask)
    return jaxppo.clipped_surrogate(x, advantages)[..., 0]


def ppo(b, **given):
    x = jaxppo.log_ratio(b["log_probs"], b["old_log_probs"], b["mask"])
    return jaxppo.clipped_surrogate(x, b["advantages"], **given)


def of_values(fn, **given):
    def at(b):
        old = (
            ()
            if fn in (jaxppo.squared_value, jaxppo.huber_value)
            else (b["old_values"],)
        )
        return fn(b["values"], *old, b["returns"], b["mask"], **given)

    return at


def of_ratio(fn, *names, **given):
    return lambda b: fn(b["log_ratio"], *(b[k] for k in names), **given)


def of_both(fn, **given):
    return lambda b: fn(b["log_probs"], b["old_log_probs"], b["mask"], **given)


def whole(fn):
    """Without holes: everything counts."""
    return lambda b: fn(b | {"mask": jnp.ones_like(b["mask"])})


def of_groups(fn, **groups):
    return lambda b: fn(b["rewards"][..., :4], group_size=4, **groups)


ids = np.array([9, 9, -4, -4])
LIMITS = {
    "GSPO of one token is PPO": (gspo_of_single_tokens, ppo),
    "a dual clip out of reach": (lambda b: ppo(b, dual_clip=INF), ppo),
    "a quadratic, wide": (
        of_ratio(jaxppo.quadratic_surrogate, "advantages", clip_eps=1e9),
        of_ratio(jaxppo.unclipped_surrogate, "advantages"),
    ),
    "a Huber, wide": (
        of_values(jaxppo.huber_value, delta=1e9),
        of_values(jaxppo.squared_value),
    ),
    "a value clip, wide": (
        of_values(jaxppo.clipped_value, clip_eps=INF),
        of_values(jaxppo.squared_value),
    ),
    "a value bound, wide": (
        of_values(jaxppo.bounded_value, clip_eps=INF),
        of_values(jaxppo.squared_value),
    ),
    "a bound of k3, wide": (
        of_ratio(jaxppo.bounded_kl, max_value=INF),
        of_ratio(jaxppo.kl_k3),
    ),
    "k3 is k1 plus what has mean 0": (
        lambda b: jaxppo.kl_k3(b["log_ratio"]) - jnp.expm1(-b["log_ratio"]),
        of_ratio(jaxppo.kl_k1),
    ),
    "weights without a cap": (
        of_ratio(jaxppo.truncated_weights, cap=INF),
        of_ratio(jaxppo.band_weights, low=0.0, high=INF),
    ),
    "one turn is the sequence": (
        whole(of_both(jaxppo.segment_log_ratio)),
        whole(of_both(jaxppo.sequence_log_ratio)),
    ),
    "GSPO-token has GSPO's value": (
        of_both(jaxppo.sequence_token_log_ratio),
        of_both(jaxppo.sequence_log_ratio),
    ),
    "a trajectory is its mean times its length": (
        whole(of_both(jaxppo.trajectory_log_ratio, max_abs=INF)),
        whole(lambda b: 7 * jaxppo.sequence_log_ratio(*of_gate(b))),
    ),
    "a prompt of one answer": (
        lambda b: jaxppo.prompt_mean(b["per_token"], b["mask"], group_size=1),
        lambda b: jaxppo.sequence_mean(b["per_token"], b["mask"]),
    ),
    "TOPR without negatives": (
        lambda b: jaxppo.topr(b["log_probs"], b["log_ratio"], jnp.abs(b["advantages"])),
        lambda b: jaxppo.policy_gradient(b["log_probs"], jnp.abs(b["advantages"])),
    ),
    "CISPO on policy": (
        lambda b: jaxppo.cispo(b["log_probs"], 0 * b["log_ratio"], b["advantages"]),
        lambda b: jaxppo.policy_gradient(b["log_probs"], b["advantages"]),
    ),
    "V-trace on policy": (
        lambda b: jaxppo.vtrace(0 * b["log_ratio"], *steps(b), lambda_=0.8),
        lambda b: jaxppo.gae(*steps(b), lambda_=0.8),
    ),
    "GAE of lambda 1 has Monte Carlo's returns": (
        lambda b: jaxppo.gae(*steps(b), lambda_=1.0).returns,
        lambda b: jaxppo.discounted_returns(b["rewards"], b["discounts"]),
    ),
    "a lambda of long answers": (
        lambda b: jaxppo.length_adaptive_lambda(b["mask"], alpha=1e9),
        lambda b: 1.0 + 0 * b["rewards"][:, :1],
    ),
    "every token of highest entropy": (
        lambda b: jaxppo.top_entropy_mask(b["entropy"], b["mask"], fraction=1.0),
        lambda b: jaxppo.kl_cov_mask(b["covariance"], b["mask"], fraction=1.0),
    ),
    "nothing rejected": (
        lambda b: jaxppo.rejection_mask(b["statistic"], b["mask"]),
        lambda b: jaxppo.second_moment_mask(b["log_ratio"], b["mask"], threshold=INF),
    ),
    "RLOO is n / (n - 1) of the centred": (
        of_groups(jaxppo.leave_one_out_advantages),
        lambda b: 4 / 3 * of_groups(jaxppo.group_advantages, scale_by_std=False)(b),
    ),
    "groups by size and by ids": (
        lambda b: jaxppo.group_advantages(b["rewards"][:, :4], group_size=2),
        lambda b: jaxppo.group_advantages(
            b["rewards"][:, :4], group_ids=jnp.asarray(ids)
        ),
    ),
}


def of_gate(b):
    return b["log_probs"], b["old_log_probs"], b["mask"]


def steps(b):
    return b["rewards"], b["values"], b["discounts"]


@functools.cache
def both_sides(name):
    return literally(lambda b: [side(b) for side in LIMITS[name]])


@pytest.mark.parametrize("name", LIMITS)
@lawful
@given(seeds)
def test_limits(name, seed):
    batch = tokens(np.random.default_rng(seed))
    names = (
        "mask log_ratio log_probs old_log_probs advantages values old_values returns"
    )
    names += " rewards discounts per_token entropy covariance statistic"
    batch = {k: batch[k] for k in names.split()}
    batch = {k: np.float32(x) if x.dtype == float else x for k, x in batch.items()}
    got, expected = both_sides(name)(batch)
    assert_close(got, expected)
