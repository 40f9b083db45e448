"""THE table: a row for every public function, from which the tests of all are made.

A row names a function's inputs; they are drawn, by those names, from one of the batches
below: ragged, with holes and an empty row, and outliers that bind every bound from both
sides. Hyper-parameters are asymmetric and none is its default, or else half of the
wrong formulas pass.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxppo

TYPES = [
    *("Advantages", "Aggregator", "Controller", "Learner", "LossFn", "Max", "Mean"),
    *("HeadKL", "HeadPlan", "Metric", "Metrics", "Min", "TokenLogProbs", "TrainState"),
]
PUBLIC = {
    name: x
    for name, x in vars(jaxppo).items()
    if callable(x) and not name.startswith("_") and name not in TYPES
}

MASK = np.array(
    [
        [1, 1, 0, 1, 1, 1, 0],  # a hole, and padding
        [0, 1, 0, 0, 0, 0, 0],  # a single token
        [0, 0, 0, 0, 0, 0, 0],  # nothing
        [1, 1, 1, 1, 1, 1, 1],
    ],
    bool,
)


def tokens(rng):
    """Sequences of tokens, or trajectories, with time last."""
    draw = functools.partial(rng.normal, size=MASK.shape)
    log_ratio, advantages, shift = draw(0, 0.3), draw(), draw(0, 0.2)
    old_values, returns = draw(), draw()
    for row in (0, 3):  # each outlier on either side of what it is weighed against
        at = row, [0, 1, 3, 4]
        log_ratio[at] = rng.normal([2.0, 2.0, -2.0, -2.0], 0.1)
        advantages[at] = np.abs(advantages[at]) * [1, -1, 1, -1]
        shift[at] = rng.normal([1.0, 1.0, -1.0, -1.0], 0.1)
        returns[at] = rng.normal(old_values[at] + [2.0, -1.0, -2.0, 1.0], 0.1)
    advantages[3, 0] *= -1  # so that one advantage per sequence is of each sign
    # Two that are clipped by one of the widths only, and one that is not clipped.
    log_ratio[3, [2, 5, 6]] = rng.normal([0.22, -0.29, 0.05], 0.01)
    advantages[3, [2, 5]] = np.abs(advantages[3, [2, 5]]) * [1, -1]
    # Log-probs of probabilities, both.
    old_log_probs = -rng.gamma(1.0, 1.0, MASK.shape) - np.maximum(log_ratio, 0)
    discounts = rng.uniform(0.8, 1.0, MASK.shape)
    lambda_ = rng.uniform(0.6, 1.0, MASK.shape)
    discounts[0, 3] = discounts[3, 1] = 0  # the end of an episode
    lambda_[0, 1] = lambda_[3, 4] = 0  # a time limit
    return dict(
        log_ratio=log_ratio,
        log_probs=old_log_probs + log_ratio,
        old_log_probs=old_log_probs,
        ref_log_probs=old_log_probs + draw(0, 0.3),
        advantages=advantages,
        weights=rng.uniform(0.3, 2.0, MASK.shape),
        entropy=rng.uniform(0.1, 2.0, MASK.shape),
        values=old_values + shift,
        old_values=old_values,
        returns=returns,
        rewards=draw(),
        next_values=draw(),
        bootstrap_value=rng.normal(size=len(MASK)),
        discounts=discounts,
        lambda_=lambda_,
        x=draw(3.0, 2.0),
        per_token=draw(),
        policy_log_ratio=draw(0, 0.3),
        divergence=rng.uniform(0, 0.6, MASK.shape),
        covariance=draw(0, 2.0),
        statistic=draw(),
        sum_squared_probs=rng.uniform(0.1, 0.9, MASK.shape),
        group_ids=np.array([7, -2, 7, 7]),
        lengths=rng.integers(1, 99, MASK.shape),
        key=np.broadcast_to(rng.integers(0, 99, 2, np.uint32), (*MASK.shape, 2)),
        mask=MASK,
    )


def samples(rng):
    """Samples in groups of four: whole, with a hole, alone, and none at all."""
    mask = np.ones((4, 8), bool)
    mask[0, 6] = mask[1, 1:4] = mask[2] = False
    return dict(
        rewards=rng.normal(5.0, 2.0, mask.shape),
        weights=rng.uniform(0.3, 2.0, mask.shape),
        group_ids=rng.permuted(np.tile([3, 3, 3, -9, -9, -9, -9, 0], (4, 1)), axis=1),
        mask=mask,
    )


def bins(rng):
    """Critics of five bins, or quantiles, and the values they are to learn."""
    draw = functools.partial(rng.normal, size=(*MASK.shape, 5))
    ref_logits, grid = draw(), np.cumsum(rng.uniform(0.3, 1.0, 6)) - 2.0
    return dict(
        logits=draw(),
        ref_logits=ref_logits,
        target_probs=np.exp(ref_logits) / np.exp(ref_logits).sum(-1, keepdims=True),
        quantiles=draw(0, 2),
        returns=rng.normal(0, 2, MASK.shape),
        x=rng.normal(0, 1.5, MASK.shape),
        support=np.broadcast_to(grid[:5], (*MASK.shape, 5)),
        edges=np.broadcast_to(grid, (*MASK.shape, 6)),
        mask=MASK,
    )


def two_policies(rng):
    """The logits of two policies that allow the same actions."""
    first, second = choices(rng), choices(rng)
    return first | dict(ref_logits=second["logits"])


def choices(rng):
    """States with five actions each, of which not all are always allowed."""
    logits = rng.normal(0, 2, (*MASK.shape, 5))
    logits[0, 0, :2] = logits[3, 1, 4] = -np.inf
    return dict(logits=logits, actions=rng.integers(2, 4, MASK.shape), mask=MASK)


def words(rng):
    """Tokens of a vocabulary of 13, from the hidden states of two models."""
    of_all = lambda x: np.broadcast_to(x, (*MASK.shape, *x.shape))
    unembed, ref_unembed = rng.normal(size=(13, 3)), rng.normal(size=(13, 2))
    bias, ref_bias = rng.normal(size=(2, 13))
    logits = rng.normal(0, 2, (*MASK.shape, 13))
    bias[7] = ref_bias[7] = logits[..., 7] = -np.inf  # not allowed
    targets = rng.choice(np.delete(np.arange(13), 7), MASK.shape)
    targets[3, 5] = -100
    return dict(
        hidden=rng.normal(size=(*MASK.shape, 3)),
        unembed=of_all(unembed),
        bias=of_all(bias),
        ref_hidden=rng.normal(size=(*MASK.shape, 2)),
        ref_unembed=of_all(ref_unembed),
        ref_bias=of_all(ref_bias),
        logits=logits,
        targets=targets,
        temperature=rng.uniform(0.6, 1.7, MASK.shape),
        mask=MASK,
    )


def words_last(rng):
    """The same, its unembeddings the other way round."""
    batch = words(rng)
    turned = {k: batch[k].swapaxes(-1, -2) for k in ("unembed", "ref_unembed")}
    return batch | turned


def normals(rng):
    """States with two action dimensions each; few, as an entropy is an integral."""
    mask = MASK[:, :3]
    shape = (*mask.shape, 2)
    actions, log_std = rng.normal(0, 1.5, shape), rng.uniform(-1.5, 0.5, shape)
    return dict(
        mean=rng.normal(0, 0.7, shape),
        log_std=log_std,
        ref_mean=rng.normal(0, 0.7, shape),
        ref_log_std=rng.uniform(-1.5, 0.5, shape),
        actions=actions,
        pre_tanh_actions=actions,
        mask=mask,
    )


def betas(rng):
    """States with three action dimensions each, of every shape a density has."""
    shape = (*MASK.shape, 3)
    draw = lambda low, high: np.exp(rng.uniform(np.log(low), np.log(high), shape))
    alpha, beta = draw(0.3, 30.0), draw(0.3, 30.0)
    ref_alpha, ref_beta = alpha * draw(0.4, 3.0), beta * draw(0.4, 3.0)
    # A sharp one, left by far; one that is all but certain; and one that is pulled in.
    alpha[0, 0, 0], beta[0, 0, 0] = 90.0, 60.0
    alpha[3, 1, 1], beta[3, 1, 1] = 0.02, 40.0
    ref_alpha[3, 2, 2], ref_beta[3, 2, 2] = 60.0, 0.5
    actions = np.clip(rng.beta(alpha, beta), 0.02, 0.98)
    actions[3, 3] = [0.01, 0.6, 0.99]
    return dict(
        alpha=alpha,
        beta=beta,
        ref_alpha=ref_alpha,
        ref_beta=ref_beta,
        actions=actions,
        mask=MASK,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A public function, what it is given, and what is expected of it.

    Attributes:
      fn: the function.
      grads: names of the inputs it is differentiated by.
      constants: names of the inputs that get no gradient.
      hyper: hyper-parameters that may be traced.
      static: those that may not: counts, switches, functions.
      reduces: it mixes the rows of a batch.
      batch: the batch its inputs are drawn from.
      column: inputs with one entry per sequence, `(*batch, 1)`.
      shared: inputs without batch axes.
      rowed: its rows have a meaning: none may go, and there are no further axes.
      differentiated: the part of its output that has gradients.
      slope: the oracle whose derivative is the gradient, if not its own.
      products: its gradient is made of products of matrices in the inputs' dtype.
      note: tells two rows of a function apart.
    """

    fn: Callable
    grads: str = ""
    constants: str = ""
    _: dataclasses.KW_ONLY
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reduces: bool = False
    batch: Callable = tokens
    column: str = ""
    shared: str = ""
    rowed: bool = False
    differentiated: Callable = lambda out: out
    slope: Callable | None = None
    products: bool = False
    note: str = ""

    def __str__(self):
        return "-".join(filter(None, [self.fn.__name__, self.note]))

    @property
    def masked(self):
        """Whether it takes a mask."""
        return "mask" in inspect.signature(self.fn).parameters

    def inputs(self, seed=0, dtype=np.float64):
        """Arguments by name: NumPy arrays, the floating ones of this dtype."""
        batch = self.batch(np.random.default_rng(seed))
        names = [*self.grads.split(), *self.constants.split()] + ["mask"] * self.masked
        inputs = {name: batch[name] for name in names}
        for name in self.column.split():
            inputs[name] = inputs[name][..., :1]
        for name in self.shared.split():
            inputs[name] = inputs[name][0, 0]
        return cast(inputs, dtype)

    def __call__(self, **inputs):
        """The function at its hyper-parameters."""
        return self.fn(**{**self.static, **self.hyper, **inputs})

    def oracle(self, **inputs):
        """Its value, in float64."""
        static = {k: oracle(x) if callable(x) else x for k, x in self.static.items()}
        out = oracle(self.fn)(**static, **self.hyper, **wide(inputs))
        return jax.tree.map(np.float64, out)

    def oracle_slope(self, **inputs):
        """What its gradient is the derivative of."""
        if self.slope is not None:
            return self.slope(**wide(inputs))
        return self.differentiated(self.oracle(**inputs))


def oracle(fn):
    """A public function's namesake in `oracles`."""
    if isinstance(fn, functools.partial):
        return functools.partial(oracle(fn.func), **fn.keywords)
    return getattr(oracles, fn.__name__)


# Compiled as it is written: XLA makes a `where` of a product with a mask, and so hides
# the NaN that would come through elsewhere.
literally = functools.partial(
    jax.jit, compiler_options={"xla_disable_hlo_passes": "algsimp"}
)


def is_floating(x):
    return jnp.issubdtype(x.dtype, np.floating)


def cast(inputs, dtype):
    """Inputs with the floating-point ones in another dtype."""
    return {k: x.astype(dtype) if is_floating(x) else x for k, x in inputs.items()}


def wide(inputs):
    """Inputs in float64 NumPy."""
    return cast({name: np.asarray(x) for name, x in inputs.items()}, np.float64)


def mix(out):
    """A number in which every entry of an output has a share of its own."""
    total = 0.0
    for k, x in enumerate(jax.tree.leaves(out)):
        if x.dtype == bool:
            continue
        share = np.cos(np.arange(np.size(x)) + k).reshape(np.shape(x))
        total += (share.astype(x.dtype) * x).sum()
    return total


@functools.cache
def jitted(case):
    """The function at its hyper-parameters, compiled."""
    return jax.jit(case.__call__)


def gradient(case, through=lambda f: f):
    """The gradient of `mix` of the output, by every floating-point input."""

    def mixed(floats, others):
        return mix(case.differentiated(through(case.__call__)(**floats, **others)))

    def at(**inputs):
        floats = {name: x for name, x in inputs.items() if is_floating(x)}
        others = {name: x for name, x in inputs.items() if name not in floats}
        return jax.grad(mixed)(floats, others)

    return at


@functools.cache
def jitted_gradient(case):
    """The gradient, compiled."""
    return jax.jit(gradient(case))


BLOCKS = dict(vocab_block=5, token_block=4)  # neither divides its axis
WORDS = dict(grads="hidden unembed bias", shared="unembed bias", products=True)
OVER_TIME = dict(axis=-1, keepdims=True)
CLIP = dict(clip_eps=0.15, clip_eps_high=0.35)
GAE = "rewards values discounts"
NORMAL = dict(grads="mean log_std", batch=normals)
PPO = dict(
    grads="log_probs values entropy",
    constants="old_log_probs advantages old_values returns ref_log_probs weights",
    reduces=True,
    differentiated=lambda out: out[0],
)

CASES = [
    # masked
    Case(jaxppo.masked_sum, "x", reduces=True),
    Case(jaxppo.masked_mean, "x", reduces=True),
    Case(jaxppo.masked_sum, "x", static=OVER_TIME, note="time"),
    Case(jaxppo.masked_mean, "x", static=OVER_TIME, note="time"),
    Case(jaxppo.masked_max, "x", reduces=True),
    Case(
        jaxppo.masked_max,
        "x",
        static=OVER_TIME,
        differentiated=lambda out: out[:2],  # of an empty row it is -inf
        note="time",
    ),
    Case(jaxppo.masked_variance, "x", hyper=dict(ddof=2), reduces=True),
    Case(jaxppo.centred, "x", reduces=True),
    Case(jaxppo.whiten, "x", hyper=dict(ddof=2, eps=1e-2), reduces=True),
    # ratio
    Case(jaxppo.log_ratio, "log_probs", "old_log_probs", hyper=dict(max_abs=1.5)),
    Case(
        jaxppo.sequence_log_ratio,
        "log_probs",
        "old_log_probs",
        hyper=dict(max_abs=1.5),
    ),
    Case(
        jaxppo.sequence_token_log_ratio,
        "log_probs",
        "old_log_probs",
        hyper=dict(max_abs=1.5),
        slope=functools.partial(oracles.sequence_token_slope, max_abs=1.5),
    ),
    Case(
        jaxppo.trajectory_log_ratio,
        "log_probs",
        "old_log_probs",
        hyper=dict(max_abs=1.5),
    ),
    Case(
        jaxppo.segment_log_ratio,
        "log_probs",
        "old_log_probs",
        hyper=dict(max_abs=1.5),
    ),
    # aggregation
    Case(jaxppo.token_mean, "per_token", reduces=True),
    Case(jaxppo.token_sum, "per_token", reduces=True),
    Case(jaxppo.sequence_mean, "per_token", reduces=True),
    Case(jaxppo.sequence_sum, "per_token", hyper=dict(scale=0.3), reduces=True),
    Case(
        jaxppo.prompt_mean,
        "per_token",
        static=dict(group_size=2),
        reduces=True,
        rowed=True,
    ),
    Case(jaxppo.all_rows),  # test_properties.py
    # policy terms
    Case(
        jaxppo.clipped_surrogate,
        "log_ratio",
        "advantages",
        hyper=dict(**CLIP, dual_clip=2.5),
    ),
    Case(
        jaxppo.clipped_surrogate,
        "log_ratio",
        "advantages",
        hyper=dict(clip_eps=0.3),
        column="advantages",
        note="per_sequence",
    ),
    Case(jaxppo.policy_gradient, "log_probs", "advantages"),
    Case(
        jaxppo.policy_gradient,
        "log_probs",
        "advantages",
        column="advantages",
        note="per_sequence",
    ),
    Case(jaxppo.unclipped_surrogate, "log_ratio", "advantages"),
    Case(
        jaxppo.geometric_mean_surrogate,
        "log_ratio",
        "advantages",
        hyper=dict(clip_eps=0.15, clip_eps_high=0.35),
    ),
    Case(
        jaxppo.geometric_mean_surrogate,
        "log_ratio",
        "advantages",
        hyper=dict(clip_eps=0.3),
        column="advantages",
        note="per_sequence",
    ),
    Case(
        jaxppo.cispo,
        "log_probs",
        "log_ratio advantages",
        hyper=dict(low=0.6, high=1.4),
    ),
    Case(jaxppo.topr, "log_probs", "log_ratio advantages", hyper=dict(cap=1.3)),
    Case(
        jaxppo.soft_gated_surrogate,
        "log_ratio",
        "advantages",
        hyper=dict(temperature=0.7, temperature_negative=1.6),
    ),
    Case(
        jaxppo.vespo_weights,
        "",
        "log_ratio advantages",
        hyper=dict(k=1.5, lambda_=0.7, k_negative=0.4, lambda_negative=1.2),
    ),
    Case(jaxppo.shaped_off_policy, "log_probs", "advantages", hyper=dict(gamma=0.3)),
    # trust regions
    Case(jaxppo.binary_tv, "", "log_probs old_log_probs"),
    Case(jaxppo.binary_kl, "", "log_probs old_log_probs", hyper=dict(eps=1e-2)),
    Case(
        jaxppo.trust_region_mask,
        "",
        "log_ratio advantages divergence",
        hyper=dict(low=0.1, high=0.3),
    ),
    Case(
        jaxppo.quadratic_surrogate,
        "log_ratio",
        "advantages",
        hyper=dict(clip_eps=0.3),
    ),
    Case(
        jaxppo.discovered_surrogate,
        "log_ratio",
        "advantages",
        hyper=dict(alpha=1.3, beta=0.4),
    ),
    # covariance
    Case(jaxppo.token_covariance, "", "log_probs advantages", reduces=True),
    Case(
        jaxppo.clip_cov_mask,
        "",
        "key covariance",
        hyper=dict(fraction=0.3, low=-1.0, high=1.5),
        shared="key",
        reduces=True,
        rowed=True,  # each place has its random number
    ),
    Case(
        jaxppo.kl_cov_mask,
        "",
        "covariance",
        hyper=dict(fraction=0.3),
        reduces=True,
    ),
    # value terms
    Case(jaxppo.squared_value, "values", "returns"),
    Case(
        jaxppo.clipped_value,
        "values",
        "old_values returns",
        hyper=dict(clip_eps=0.3),
    ),
    Case(
        jaxppo.clipped_value,
        "values",
        "old_values returns",
        hyper=dict(clip_eps=0.3),
        static=dict(error=jaxppo.huber_value),
        note="huber",
    ),
    Case(
        jaxppo.bounded_value,
        "values",
        "old_values returns",
        hyper=dict(clip_eps=0.3),
    ),
    Case(jaxppo.huber_value, "values", "returns", hyper=dict(delta=0.7)),
    # distributional critics
    Case(jaxppo.two_hot, "", "x support", batch=bins, shared="support"),
    Case(
        jaxppo.hl_gauss,
        "",
        "x edges",
        hyper=dict(sigma=0.4),
        batch=bins,
        shared="edges",
    ),
    Case(jaxppo.categorical_value, "logits", "target_probs", batch=bins),
    Case(jaxppo.expected_value, "logits support", batch=bins, shared="support"),
    Case(
        jaxppo.quantile_value,
        "quantiles",
        "returns",
        hyper=dict(delta=0.7),
        batch=bins,
    ),
    # KL
    Case(jaxppo.kl_k1, "log_ratio"),
    Case(jaxppo.kl_k2, "log_ratio"),
    Case(jaxppo.kl_k3, "log_ratio"),
    Case(jaxppo.unbiased_gradient_kl, "log_ratio", slope=oracles.kl_k2),
    Case(
        jaxppo.unbiased_gradient_kl,
        "log_ratio",
        static=dict(estimator=jaxppo.kl_k1),
        slope=oracles.kl_k2,
        note="k1",
    ),
    Case(jaxppo.kl_abs, "log_ratio"),
    Case(jaxppo.bounded_kl, "log_ratio", hyper=dict(max_value=0.5)),
    Case(
        jaxppo.bounded_kl,
        "log_ratio",
        hyper=dict(max_value=0.5),
        static=dict(estimator=jaxppo.kl_k1),
        note="k1",
    ),
    Case(jaxppo.importance_weighted_kl, "log_ratio policy_log_ratio"),
    Case(
        jaxppo.importance_weighted_kl,
        "log_ratio policy_log_ratio",
        static=dict(estimator=jaxppo.kl_k1),
        note="k1",
    ),
    Case(jaxppo.approx_kl_k1, "", "log_ratio"),
    Case(jaxppo.approx_kl_k3, "", "log_ratio"),
    Case(jaxppo.adaptive_kl),
    # estimators along time
    Case(jaxppo.gae, f"{GAE} lambda_ bootstrap_value"),
    Case(
        jaxppo.gae,
        "rewards values next_values",
        hyper=dict(discounts=0.9, lambda_=0.8),
        note="next_values",
    ),
    Case(jaxppo.discounted_returns, "rewards discounts bootstrap_value"),
    Case(
        jaxppo.vtrace,
        f"log_ratio {GAE} lambda_ bootstrap_value",
        hyper=dict(rho_clip=1.4, c_clip=0.9),
    ),
    Case(
        jaxppo.vtrace,
        "log_ratio rewards values next_values",
        hyper=dict(discounts=0.9, lambda_=0.8, rho_clip=0.9, c_clip=1.4),
        note="next_values",
    ),
    Case(
        jaxppo.length_adaptive_lambda,
        "",
        "mask",
        hyper=dict(alpha=0.4),
    ),
    # estimators over groups
    Case(
        jaxppo.group_advantages,
        "rewards",
        hyper=dict(ddof=0, eps=1e-2),
        static=dict(group_size=4),
        batch=samples,
    ),
    Case(
        jaxppo.group_advantages,
        "rewards",
        static=dict(group_size=4, scale_by_std=False),
        batch=samples,
        note="unscaled",
    ),
    Case(
        jaxppo.leave_one_out_advantages,
        "rewards",
        static=dict(group_size=4),
        batch=samples,
    ),
    Case(
        jaxppo.group_advantages,
        "rewards weights",
        "group_ids",
        hyper=dict(ddof=0.5, eps=1e-2, singleton=0.4),
        batch=samples,
        note="ids",
    ),
    Case(
        jaxppo.leave_one_out_advantages,
        "rewards",
        "group_ids",
        hyper=dict(singleton=0.4),
        batch=samples,
        note="ids",
    ),
    Case(
        jaxppo.leave_one_out_std,
        "rewards",
        hyper=dict(ddof=0),
        static=dict(group_size=4),
        batch=samples,
    ),
    Case(
        jaxppo.leave_one_out_std,
        "rewards",
        "group_ids",
        hyper=dict(ddof=0.5),
        batch=samples,
        note="ids",
    ),
    Case(
        jaxppo.pass_at_k_advantages,
        "rewards",
        hyper=dict(eps=1e-2),
        static=dict(group_size=4),
        batch=samples,
    ),
    Case(
        jaxppo.pass_at_k_advantages,
        "rewards",
        "group_ids",
        static=dict(scale_by_std=False),
        batch=samples,
        note="ids",
    ),
    Case(jaxppo.varied_groups, "", "rewards", static=dict(group_size=4), batch=samples),
    Case(jaxppo.varied_groups, "", "rewards group_ids", batch=samples, note="ids"),
    Case(
        jaxppo.optimal_token_baseline,
        "",
        "returns log_probs sum_squared_probs weights",
        hyper=dict(eps=1e-2),
        static=dict(group_size=2),
        reduces=True,
        rowed=True,
    ),
    Case(
        jaxppo.optimal_token_baseline,
        "",
        "returns log_probs sum_squared_probs group_ids",
        static=dict(turn_aligned=True, zero_tail=False),
        reduces=True,
        rowed=True,
        note="turns",
    ),
    # rewards, entropy
    Case(
        jaxppo.overlong_penalty,
        "",
        "lengths",
        hyper=dict(max_length=70, buffer=30, penalty=0.7),
    ),
    Case(
        jaxppo.top_entropy_mask, "", "entropy", hyper=dict(fraction=0.4), reduces=True
    ),
    Case(jaxppo.adaptive_entropy),
    # rollout correction
    Case(jaxppo.truncated_weights, "", "log_ratio", hyper=dict(cap=1.7, floor=0.6)),
    Case(jaxppo.band_weights, "", "log_ratio", hyper=dict(low=0.6, high=1.4)),
    Case(jaxppo.normalised_weights, "", "weights", reduces=True),
    Case(jaxppo.rejection_mask, "", "statistic mask", hyper=dict(low=-0.6, high=0.9)),
    Case(
        jaxppo.rejection_mask,
        "",
        "statistic mask",
        hyper=dict(low=-0.6, high=0.9),
        column="statistic",
        note="per_sequence",
    ),
    Case(
        jaxppo.off_policy_sequence_mask,
        "",
        "log_ratio advantages",
        hyper=dict(threshold=0.1),
        column="advantages",
    ),
    Case(
        jaxppo.second_moment_mask,
        "",
        "log_ratio",
        hyper=dict(threshold=0.5),
        reduces=True,
    ),
    Case(
        jaxppo.correction_metrics,
        "",
        "log_ratio",
        hyper=dict(low=0.6, high=1.4),
        reduces=True,
    ),
    # heads
    Case(jaxppo.categorical, "logits", "actions", batch=choices),
    Case(jaxppo.diagonal_normal, **NORMAL, constants="actions"),
    Case(
        jaxppo.diagonal_normal,
        **NORMAL,
        constants="actions",
        shared="log_std",
        note="shared",
    ),
    Case(jaxppo.tanh_normal, **NORMAL, constants="pre_tanh_actions"),
    Case(jaxppo.beta, "alpha beta", "actions", batch=betas),
    Case(jaxppo.categorical_kl, "logits ref_logits", batch=two_policies),
    Case(jaxppo.normal_kl, "mean log_std ref_mean ref_log_std", batch=normals),
    Case(jaxppo.beta_kl, "alpha beta ref_alpha ref_beta", batch=betas),
    # heads of language models
    Case(
        jaxppo.token_log_probs,
        **WORDS,
        constants="targets temperature",
        hyper=dict(softcap=5.0),
        static=BLOCKS | dict(mode="recompute", cache_bytes=2**20),
        batch=words,
    ),
    Case(
        jaxppo.token_log_probs,
        **WORDS,
        constants="targets temperature",
        static=BLOCKS | dict(mode="cached", vocab_last=True),
        batch=words_last,
        note="cached",
    ),
    Case(
        jaxppo.token_log_probs,
        **WORDS,
        constants="targets temperature",
        hyper=dict(softcap=5.0),
        static=dict(mode="reference"),
        batch=words,
        note="reference",
    ),
    Case(
        jaxppo.head_kl,
        "hidden unembed bias",
        "ref_hidden ref_unembed ref_bias temperature",
        hyper=dict(softcap=5.0),
        static=BLOCKS | dict(vocab_last=True),
        batch=words_last,
        shared="unembed bias ref_unembed ref_bias",
        products=True,
    ),
    Case(jaxppo.linear_policy_loss),  # test_head.py
    Case(jaxppo.head_plan),  # test_head.py
    Case(jaxppo.selective_log_softmax, "logits", "targets temperature", batch=words),
    # metrics
    Case(jaxppo.clip_fraction, "", "log_ratio", hyper=CLIP),
    Case(
        jaxppo.clip_fraction_lower,
        "",
        "log_ratio advantages",
        hyper=dict(clip_eps=0.15),
    ),
    Case(
        jaxppo.clip_fraction_upper,
        "",
        "log_ratio advantages",
        hyper=dict(clip_eps=0.35),
    ),
    Case(jaxppo.bound_fraction, "", "log_ratio", hyper=dict(max_abs=1.5)),
    Case(jaxppo.ratio_max, "", "log_ratio", reduces=True),
    Case(jaxppo.ratio_min, "", "log_ratio", reduces=True),
    Case(jaxppo.effective_sample_size, "", "log_ratio", reduces=True),
    Case(jaxppo.explained_variance, "", "values returns", reduces=True),
    # compositions
    Case(
        jaxppo.ppo_loss,
        **PPO,
        hyper=dict(
            **CLIP,
            dual_clip=2.5,
            value_coef=0.7,
            value_clip_eps=0.3,
            entropy_coef=0.02,
            kl_coef=0.3,
        ),
    ),
    Case(
        jaxppo.ppo_loss,
        **PPO
        | dict(grads="log_probs", constants="old_log_probs advantages ref_log_probs"),
        hyper=dict(clip_eps=0.3, kl_coef=0.3),
        static=dict(
            kl=jaxppo.kl_k2,
            aggregate=functools.partial(jaxppo.sequence_sum, scale=0.3),
        ),
        column="advantages",
        note="per_sequence",
    ),
    # the update step: test_learner.py
    Case(jaxppo.accumulate_grads),
    Case(jaxppo.learner),
    Case(jaxppo.finalize),
    Case(jaxppo.check_progress),
]
ARRAYS = [case for case in CASES if case.grads or case.constants]
MASKED = [case for case in ARRAYS if case.masked]

each_case = pytest.mark.parametrize("case", ARRAYS, ids=str)
each_masked_case = pytest.mark.parametrize("case", MASKED, ids=str)
