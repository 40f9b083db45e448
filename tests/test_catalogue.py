"""The terms at the points where they bend, and what they must be at their limits."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxppo

INF, NAN = math.inf, math.nan
SIGNS = jnp.array([2.0, -2.0])


def slope(fn, x):
    return jax.grad(lambda x: jnp.sum(fn(x)))(x)


# --- policy terms ---


def test_without_a_mask_a_row_is_one_segment():
    new, old = jnp.array([[1.0, 2.0, 6.0]]), jnp.zeros((1, 3))
    alone = jaxppo.segment_log_ratio(new, old)
    np.testing.assert_array_equal(alone, [[3.0, 3.0, 3.0]])
    whole = jaxppo.segment_log_ratio(new, old, jnp.ones((1, 3), bool))
    np.testing.assert_allclose(alone, whole, rtol=1e-6)


def test_on_policy_every_surrogate_is_reinforce():
    x = jnp.zeros(2)
    terms = [
        jaxppo.clipped_surrogate,
        jaxppo.unclipped_surrogate,
        jaxppo.soft_gated_surrogate,
        jaxppo.quadratic_surrogate,
        jaxppo.discovered_surrogate,
    ]
    for term in terms:
        got = slope(lambda x, term=term: term(x, SIGNS), x)
        np.testing.assert_allclose(got, -SIGNS, rtol=1e-6, err_msg=term.__name__)
    for term in (jaxppo.cispo, jaxppo.topr):
        got = slope(lambda x, term=term: term(x, jax.lax.stop_gradient(x), SIGNS), x)
        np.testing.assert_allclose(got, -SIGNS, rtol=1e-6, err_msg=term.__name__)
    one = lambda x: jaxppo.geometric_mean_surrogate(x[:, None], SIGNS[:, None])
    np.testing.assert_allclose(slope(one, x), -SIGNS, rtol=1e-6)


def test_cispo_keeps_the_gradient_of_what_it_clips():
    log_probs, x = jnp.full(2, -1.0), jnp.log(jnp.array([9.0, 0.01]))
    clipped = functools.partial(jaxppo.cispo, low=0.5, high=2.0)
    got = slope(lambda lp: clipped(lp, x, SIGNS), log_probs)
    np.testing.assert_allclose(got, [-4.0, 1.0])


def test_gmpo_clips_where_the_advantage_points():
    x = jnp.array([[0.9, 0.9], [-0.9, -0.9]])
    for sign, expected in [(1.0, [0.4, -0.9]), (-1.0, [0.9, -0.4])]:
        advantages = jnp.full((2, 1), sign)
        loss = jaxppo.geometric_mean_surrogate(x, advantages, clip_eps=0.4)
        np.testing.assert_allclose(loss[:, 0], -sign * np.exp(expected), rtol=1e-6)


def test_gmpo_at_its_bound_keeps_the_whole_gradient():
    x = jnp.array([[0.4], [-0.4]], jnp.float32)
    for sign in (1.0, -1.0):
        advantages = jnp.full((2, 1), sign, jnp.float32)
        term = lambda x, a=advantages: jaxppo.geometric_mean_surrogate(
            x, a, clip_eps=0.4
        )
        np.testing.assert_allclose(slope(term, x), -sign * np.exp(x), rtol=1e-6)


def test_a_two_sided_clip_is_a_dual_clip():
    """INTELLECT-2's delta: min(min(r, delta) A, clip(r) A), for every delta > 1."""
    x = jnp.linspace(-1.0, 2.0, 301)
    for delta in (1.1, 1.2, 1.5, 4.0):
        for sign in (1.0, -1.0):
            r = np.exp(np.float64(x))
            capped = np.minimum(r, delta) * sign
            expected = -np.minimum(capped, np.clip(r, 0.8, 1.2) * sign)
            got = jaxppo.clipped_surrogate(
                x,
                jnp.full(x.shape, sign),
                clip_eps=0.2,
                clip_eps_high=min(0.2, delta - 1),
                dual_clip=max(delta, 1.2),
            )
            np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_covariance_with_a_constant_is_zero():
    constants = np.float32(np.logspace(-6, 9, 31))
    log_probs = jnp.linspace(-3.0, -0.1, 7)[None]
    mask = jnp.arange(7)[None] != 2
    for c in constants:
        got = jaxppo.token_covariance(log_probs, jnp.full((1, 7), c), mask)
        np.testing.assert_array_equal(got, 0)


def test_gspo_token_spreads_nothing():
    """Advantages that vary inside a sequence: each token keeps its own."""
    log_probs = jnp.array([[-1.0, -2.0, -0.5]])
    advantages = jnp.array([[3.0, 0.0, 0.0]])
    term = lambda gate, lp: jaxppo.clipped_surrogate(gate(lp, log_probs), advantages)
    own = slope(functools.partial(term, jaxppo.sequence_token_log_ratio), log_probs)
    mixed = slope(functools.partial(term, jaxppo.sequence_log_ratio), log_probs)
    np.testing.assert_allclose(own, [[-3.0, 0.0, 0.0]])
    np.testing.assert_allclose(mixed, [[-1.0, -1.0, -1.0]], rtol=1e-6)


def test_trust_region_masks_let_tokens_come_back():
    x, far = jnp.array([0.5, 0.5, -0.5, -0.5]), jnp.full(4, 0.9)
    keep = jaxppo.trust_region_mask(x, jnp.array([1.0, -1.0, 1.0, -1.0]), far)
    np.testing.assert_array_equal(keep, [False, True, True, False])
    at = jaxppo.trust_region_mask(x, jnp.array([1.0, -1.0, 1.0, -1.0]), far, low=0.9)
    assert np.all(at)  # on the bound: within
    none = jaxppo.trust_region_mask(x, jnp.zeros(4), far)  # as if A were below 0
    np.testing.assert_array_equal(none, [True, True, False, False])


def test_binary_divergences_at_certainty():
    p, q = jnp.array([0.0, -INF, -1.0, 0.0]), jnp.array([0.0, -INF, 0.0, -1.0])
    assert np.all(np.isfinite(jaxppo.binary_tv(p, q)))
    assert np.all(np.isfinite(jaxppo.binary_kl(p, q)))
    np.testing.assert_array_equal(jaxppo.binary_tv(p, q)[:2], 0)
    np.testing.assert_array_equal(jaxppo.binary_kl(p, q)[:2], 0)


def test_clip_cov_draws_fairly():
    covariance = jnp.array([0.0, 2.0, 2.0, 2.0, 9.0, -jnp.inf])
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = functools.partial(jaxppo.clip_cov_mask, fraction=0.4)
    dropped = jax.vmap(lambda key: draw(key, covariance))(keys)
    np.testing.assert_array_equal(jnp.sum(dropped, 1), 2)  # floor(0.4 * 6)
    share = np.mean(dropped, 0)
    np.testing.assert_array_equal(share[np.array([0, 4, 5])], 0)
    np.testing.assert_allclose(share[1:4], 2 / 3, atol=0.04)  # five standard errors


def test_selections_take_at_least_one_token():
    x = jnp.array([[1.5, 3.0, 2.0]])
    key = jax.random.key(0)
    assert jnp.sum(jaxppo.clip_cov_mask(key, x)) == 1
    np.testing.assert_array_equal(jaxppo.kl_cov_mask(x), [[False, True, False]])
    kept = jaxppo.second_moment_mask(x, threshold=1e-3)
    np.testing.assert_array_equal(kept, [[True, False, False]])
    everything = jaxppo.top_entropy_mask(x, fraction=1.0)
    assert np.all(everything)


# --- values ---


@pytest.mark.parametrize("shift", [0.25, -0.25])
def test_the_bounded_value_lets_go_beyond_its_bound(shift):
    loss = lambda v: jaxppo.bounded_value(
        v, jnp.ones(()), jnp.array(3.0), clip_eps=0.25
    )
    at, beyond = jnp.array(1 + shift), jnp.array(1 + 1.01 * shift)
    np.testing.assert_allclose(jax.grad(loss)(at), 1 + shift - 3)
    assert jax.grad(loss)(beyond) == 0
    assert loss(beyond) == loss(at)


def test_huber_between_squared_and_absolute():
    v = jnp.array([0.5, -3.0, 7.0])
    squared = jaxppo.huber_value(v, jnp.zeros(3), delta=1e6)
    np.testing.assert_allclose(squared, jaxppo.squared_value(v, jnp.zeros(3)))
    absolute = jaxppo.huber_value(v, jnp.zeros(3), delta=1e-4) / 1e-4
    np.testing.assert_allclose(absolute, jnp.abs(v), rtol=1e-3)


def test_two_hot_is_inverted_by_the_mean():
    support = jnp.array([-3.0, -1.0, 0.0, 0.5, 4.0])
    x = jnp.linspace(-3.0, 4.0, 57)
    probs = jaxppo.two_hot(x, support)
    np.testing.assert_allclose(jnp.sum(probs, -1), 1, rtol=1e-6)
    assert np.all(jnp.sum(probs > 0, -1) <= 2)
    logits = jnp.log(jnp.maximum(probs, 1e-30))
    got = jaxppo.expected_value(logits, support)
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_hl_gauss_is_a_distribution_at_any_value():
    edges = jnp.linspace(-10.0, 10.0, 41)
    centres = (edges[1:] + edges[:-1]) / 2
    x = jnp.array([-1e9, -10.0, -3.3, 0.0, 0.2, 9.9, 10.0, 1e9])
    probs = jaxppo.hl_gauss(x, edges, sigma=0.375)
    np.testing.assert_allclose(jnp.sum(probs, -1), 1, rtol=1e-6)
    mean = jnp.sum(probs * jnp.broadcast_to(centres, probs.shape), -1)
    np.testing.assert_allclose(mean[2:5], x[2:5], atol=1e-3)
    far = jaxppo.hl_gauss(x, edges, sigma=0.01)  # most bins' mass underflows
    assert np.all(np.isfinite(far)) and np.all(far >= 0)


def test_a_categorical_critic_learns_its_target():
    support = jnp.linspace(-2.0, 2.0, 9)
    target = jaxppo.two_hot(jnp.array([0.3]), support)
    logits = jnp.zeros((1, 9))
    loss = lambda z: jnp.sum(jaxppo.categorical_value(z, target))
    for _ in range(500):
        logits = logits - jax.grad(loss)(logits)
    got = jaxppo.expected_value(logits, support)
    np.testing.assert_allclose(got, 0.3, atol=0.02)


def test_quantiles_are_where_their_loss_is_least():
    returns = jnp.asarray(np.random.default_rng(0).normal(size=4000), jnp.float32)
    grid = jnp.linspace(-2.0, 2.0, 401)

    def loss(q):
        both = jnp.full((4000, 1), q)
        return jnp.mean(jaxppo.quantile_value(both, returns, delta=1e-3))

    median = grid[jnp.argmin(jax.vmap(loss)(grid))]
    np.testing.assert_allclose(median, jnp.median(returns), atol=0.03)


# --- exact divergences ---


def test_exact_kl_between_equals_is_zero():
    logits = jnp.array([[0.3, -1.0, -INF], [2.0, 2.0, 2.0]])
    np.testing.assert_array_equal(jaxppo.categorical_kl(logits, logits), 0)
    got = slope(lambda z: jaxppo.categorical_kl(z, logits), logits)
    np.testing.assert_allclose(got, 0, atol=1e-6)
    m, s = jnp.array([[0.3, -1.0]]), jnp.array([[0.5, -2.0]])
    np.testing.assert_array_equal(jaxppo.normal_kl(m, s, m, s), 0)
    a, b = jnp.array([[1e-3, 0.7, 5.0, 1e6]]), jnp.array([[2.0, 0.7, 40.0, 3e5]])
    np.testing.assert_array_equal(jaxppo.beta_kl(a, b, a, b), 0)
    got = slope(lambda x: jaxppo.beta_kl(x, b, a, b), a)
    np.testing.assert_allclose(a * got, 0, atol=1e-6)


def test_exact_kl_outside_the_support_is_infinite():
    p, q = jnp.array([0.0, 0.0]), jnp.array([0.0, -INF])
    assert jaxppo.categorical_kl(p, q) == INF
    assert jaxppo.categorical_kl(q, p) == pytest.approx(math.log(2))
    assert np.all(np.isfinite(slope(lambda z: jaxppo.categorical_kl(q, z), p)))


# --- groups ---


def test_ids_and_sizes_name_the_same_groups():
    rewards = jnp.asarray(np.random.default_rng(0).normal(size=12), jnp.float32)
    order = np.random.default_rng(1).permutation(12)
    ids = jnp.asarray(np.repeat([5, -3, 9], 4)[order])
    for fn in (
        jaxppo.group_advantages,
        jaxppo.leave_one_out_advantages,
        jaxppo.leave_one_out_std,
        jaxppo.pass_at_k_advantages,
        jaxppo.varied_groups,
    ):
        expected = fn(rewards, group_size=4)[order]
        got = fn(rewards[order], group_ids=ids)
        np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=fn.__name__)


def test_equal_rewards_give_exactly_zero_by_ids_too():
    size = np.float32(np.append(np.logspace(-6, 9, 31), [0.1, 0.3, 0.7, 0.0]))
    rewards = jnp.tile(jnp.asarray(size)[:, None], 7)
    ids = jnp.array([1, 1, 1, 4, 4, 4, 4])
    scaled = functools.partial(jaxppo.group_advantages, eps=0.0)
    weights = jnp.broadcast_to(jnp.arange(1.0, 8.0), rewards.shape)
    for fn in (
        scaled,
        functools.partial(scaled, weights=weights),
        jaxppo.leave_one_out_advantages,
        jaxppo.leave_one_out_std,
        functools.partial(jaxppo.pass_at_k_advantages, eps=0.0),
        jaxppo.varied_groups,
    ):
        np.testing.assert_array_equal(fn(rewards, group_ids=ids), 0)


def test_leave_one_out_std_does_not_cancel():
    """Where the others are equal it is 0, however far the one is from them."""
    for level in (0.1, 0.7, 1e4):
        rewards = jnp.array([level + 3.0, level, level, level])
        got = jaxppo.leave_one_out_std(rewards, group_size=4)
        assert got[0] == 0
        np.testing.assert_allclose(got[1:], math.sqrt(3), rtol=1e-3)


def test_a_tie_has_one_best():
    rewards = jnp.array([1.0, 3.0, 3.0, 0.0])
    got = jaxppo.pass_at_k_advantages(rewards, group_size=4)
    np.testing.assert_array_equal(got, 0)  # better by nothing


# --- aggregation, rewards, controllers ---


@pytest.mark.parametrize("aggregate", [jaxppo.sequence_mean, jaxppo.sequence_sum])
def test_all_rows(aggregate, unchecked):
    x, mask = jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4), bool).at[0, :2].set(True)
    plain, every = aggregate(x, mask), jaxppo.all_rows(aggregate)(x, mask)
    assert (plain.count, every.count) == (2, 6)
    assert plain.total == every.total
    halves = [jaxppo.all_rows(aggregate)(x[i], mask[i]) for i in (0, 1)]
    assert sum(halves).value == every.value
    with pytest.raises(TypeError, match="all_rows: `aggregate` is 1"):
        jaxppo.all_rows(1)


def test_all_rows_counts_what_its_aggregator_counts(unchecked):
    x, mask = jnp.ones((4, 3)), jnp.zeros((4, 3), bool).at[:2].set(True)
    prompts = functools.partial(jaxppo.prompt_mean, group_size=2)
    for aggregate, total, count in [
        (prompts, 1, 2),  # one of two prompts is empty
        (jaxppo.token_mean, 6, 12),  # over all positions
        (jaxppo.token_sum, 6, 0),  # over nothing
    ]:
        for m in (mask, None):
            mean = jaxppo.all_rows(aggregate)(x, m)
            assert mean.count == count
            assert mean.total == total * (1 if m is mask else 2)
    far = jnp.where(mask, x, jnp.nan)
    assert jaxppo.all_rows(prompts)(far, mask).value == 0.5


def test_a_denominator_is_original_or_kept():
    x, mask = jnp.array([[1.0, 2.0, 6.0]]), jnp.ones((1, 3), bool)
    kept = jaxppo.rejection_mask(x, mask, high=4.0)
    original = jaxppo.token_mean(jnp.where(kept, x, 0), mask)
    assert (original.value, jaxppo.token_mean(x, mask & kept).value) == (1.0, 1.5)


def test_entropy_controller_follows_its_target():
    controller = jaxppo.adaptive_entropy(
        target=1.0, init_coef=0.5, step=0.3, max_coef=0.9
    )
    coef = controller.init()
    for entropy, expected in [(0.5, 0.8), (0.5, 0.9), (2.0, 0.6), (NAN, 0.6)]:
        coef = controller.update(coef, jnp.array(entropy))
        np.testing.assert_allclose(coef, expected, rtol=1e-6)
    for _ in range(3):
        coef = controller.update(coef, jnp.array(2.0))
    assert coef == 0


def test_correction_metrics_on_policy():
    metrics = jaxppo.correction_metrics(jnp.zeros((3, 4)))
    got = {name: float(metric.value) for name, metric in metrics.items()}
    ones = {"weight", "weight_square", "weight_max", "weight_min"}
    assert got == {name: float(name in ones) for name in got}


def test_normalised_weights_have_mean_one():
    w = jnp.array([[0.5, 2.0], [1.5, 7.0]])
    mask = jnp.array([[1, 1], [1, 0]])
    got = jaxppo.normalised_weights(w, mask)
    np.testing.assert_allclose(jaxppo.masked_mean(got, mask), 1, rtol=1e-6)
    np.testing.assert_array_equal(jaxppo.normalised_weights(0 * w), 0)


def test_a_long_answer_keeps_its_outcome():
    """Length-adaptive lambda: the deltas' coefficients add up to alpha n."""
    mask = jnp.ones((1, 4000), bool)
    lambda_ = jaxppo.length_adaptive_lambda(mask, alpha=0.05)
    total = float(jnp.sum(lambda_[0, 0] ** jnp.arange(4000.0)))
    np.testing.assert_allclose(total, 0.05 * 4000, rtol=1e-4)


# --- what is given where nothing is said ---

DEFAULTS = """
accumulate_grads num_microbatches=1
adaptive_entropy init_coef=0.0 step=0.005 min_coef=0.0 max_coef=1.0 metric='entropy'
adaptive_kl init_coef=0.2 gain=0.1 max_error=0.2 metric='kl'
band_weights low=0.5 high=2.0
binary_kl eps=1e-08
bound_fraction max_abs=20.0
bounded_kl max_value=10.0
bounded_value clip_eps=0.2
check_progress max_skipped=10
cispo low=0.0 high=5.0
clip_cov_mask fraction=0.0002 low=1.0 high=5.0
clip_fraction clip_eps=0.2
clip_fraction_lower clip_eps=0.2
clip_fraction_upper clip_eps=0.2
clipped_surrogate clip_eps=0.2
clipped_value clip_eps=0.2
correction_metrics low=0.5 high=2.0
discovered_surrogate alpha=2.0 beta=0.6
gae lambda_=0.95
geometric_mean_surrogate clip_eps=0.4
group_advantages scale_by_std=True ddof=1 eps=1e-06 singleton=0.0
head_kl temperature=1.0 vocab_last=False
head_plan masked=False mode='auto' cache_bytes=1073741824
huber_value delta=1.0
kl_cov_mask fraction=0.002
learner num_epochs=1 num_minibatches=1 num_microbatches=1
leave_one_out_advantages singleton=0.0
leave_one_out_std ddof=1
length_adaptive_lambda alpha=0.05
linear_policy_loss temperature=1.0 vocab_last=False cache_bytes=1073741824
log_ratio max_abs=20.0
masked_max keepdims=False
masked_mean keepdims=False
masked_sum keepdims=False
masked_variance ddof=0
optimal_token_baseline turn_aligned=False zero_tail=True eps=1e-08
overlong_penalty penalty=1.0
pass_at_k_advantages scale_by_std=True eps=1e-06
ppo_loss clip_eps=0.2 value_coef=0.5 entropy_coef=0.0 kl_coef=0.0
quadratic_surrogate clip_eps=0.2
quantile_value delta=1.0
rejection_mask low=-inf high=inf
second_moment_mask threshold=0.04
segment_log_ratio max_abs=20.0
selective_log_softmax temperature=1.0
sequence_log_ratio max_abs=20.0
sequence_sum scale=1.0
sequence_token_log_ratio max_abs=20.0
shaped_off_policy gamma=0.1
soft_gated_surrogate temperature=1.0 temperature_negative=1.05
token_log_probs temperature=1.0 vocab_last=False mode='auto' cache_bytes=1073741824
top_entropy_mask fraction=0.2
topr cap=1.0
trajectory_log_ratio max_abs=20.0
truncated_weights cap=2.0 floor=0.0
trust_region_mask low=0.2
vespo_weights k=2.0 lambda_=3.0 k_negative=3.0 lambda_negative=2.0
vtrace lambda_=1.0 rho_clip=1.0 c_clip=1.0
whiten ddof=0 eps=1e-08
"""


WRITTEN = {line.split()[0]: line for line in DEFAULTS.split("\n")[1:-1]}
FUNCTIONS = {k: x for k, x in vars(jaxppo).items() if inspect.isfunction(x)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_stay(name):
    """A number that many rely on without having written it down."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    plain = [p for p in parameters if isinstance(p.default, (int, float, str))]
    given = [f"{p.name}={p.default!r}" for p in plain]
    assert " ".join([name, *given]) == WRITTEN.get(name, name)


# --- where a choice is between two sides ---


def test_an_advantage_of_zero_is_none_of_a_bad_answer():
    x = jnp.array([[0.3], [0.3]])
    zero, one = jaxppo.vespo_weights(x, jnp.array([[0.0], [1.0]]))
    assert zero == one


def test_a_token_that_stays_is_not_going_farther():
    x, far = jnp.zeros(2), jnp.ones(2)
    keep = jaxppo.trust_region_mask(x, jnp.array([1.0, -1.0]), far, low=0.2)
    assert np.all(keep)


def test_lengths_are_whole(unchecked):
    with pytest.raises(TypeError, match="overlong_penalty: `lengths` has dtype float"):
        jaxppo.overlong_penalty(jnp.ones(3), max_length=8, buffer=2)


def test_a_draw_is_the_same_in_64_bits():
    covariance = jnp.linspace(1.0, 5.0, 64)[None]
    draw = lambda: jaxppo.clip_cov_mask(jax.random.key(0), covariance, fraction=0.2)
    usual = draw()
    with jax.enable_x64(True):
        np.testing.assert_array_equal(draw(), usual)


def test_a_nan_is_not_hidden_by_what_can_never_be():
    """An action outside of [0, 1] has probability 0; what is unknown stays so."""
    alpha, action = jnp.full(2, 2.0), jnp.array([1.5, jnp.nan])
    assert jaxppo.beta(alpha, alpha, action[:1].repeat(2))[0] == -jnp.inf
    assert jnp.isnan(jaxppo.beta(alpha, alpha, action)[0])


@pytest.mark.parametrize("fn", [jaxppo.clip_fraction_lower, jaxppo.clip_fraction_upper])
def test_clip_fractions_take_an_advantage_a_sequence(fn):
    x = jnp.array([[1.0, -1.0], [1.0, -1.0]])
    one, each = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_array_equal(fn(x, one), fn(x, each))
    assert np.sum(fn(x, one)) == 1


def test_the_error_of_a_value_is_a_function(unchecked):
    x = jnp.ones(3)
    with pytest.raises(TypeError, match="clipped_value: `error` is None"):
        jaxppo.clipped_value(x, x, x, error=None)
