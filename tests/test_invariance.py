"""The same batch gives the same update, however it is cut, placed or ordered."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxppo

ROWS, TIME, SIZE = 16, 6, 5

AGGREGATORS = {
    "token_mean": jaxppo.token_mean,
    "token_sum": jaxppo.token_sum,
    "sequence_mean": jaxppo.sequence_mean,
    "sequence_sum": partial(jaxppo.sequence_sum, scale=1 / 7),
}


def batch_of(seed: int) -> dict[str, jax.Array]:
    """Ragged rows, a hole, an empty row, and NaN wherever nothing counts."""
    rng = np.random.RandomState(seed)
    lengths = rng.randint(1, TIME + 1, ROWS)
    mask = np.arange(TIME) < lengths[:, None]
    mask[0], mask[1], mask[1, 2] = False, True, False
    floats = {
        "obs": rng.randn(ROWS, TIME, SIZE),
        "old_log_probs": -1.5 + 0.5 * rng.randn(ROWS, TIME),
        "advantages": rng.randn(ROWS, 1),
        "returns": rng.randn(ROWS, TIME),
        "sft": (rng.rand(ROWS, TIME) < 0.3).astype(float),
    }
    floats["old_log_probs"][~mask] = np.nan
    floats["returns"][~mask] = np.nan
    batch = {k: jnp.asarray(v, jnp.float32) for k, v in floats.items()}
    actions = jnp.asarray(rng.randint(0, 3, (ROWS, TIME)))
    return batch | {"mask": jnp.asarray(mask), "actions": actions}


def params_of(seed: int) -> dict[str, jax.Array]:
    rng = np.random.RandomState(seed)
    shapes = {"policy": (SIZE, 3), "value": (SIZE,)}
    return {k: jnp.asarray(rng.randn(*s), jnp.float32) for k, s in shapes.items()}


def one_term(aggregate, params, batch):
    """PPO, its terms added per token."""
    log_probs, entropy = jaxppo.categorical(
        batch["obs"] @ params["policy"], batch["actions"]
    )
    return jaxppo.ppo_loss(
        log_probs,
        batch["old_log_probs"],
        batch["advantages"],
        batch["mask"],
        values=batch["obs"] @ params["value"],
        returns=batch["returns"],
        entropy=entropy,
        clip_eps=0.15,
        clip_eps_high=0.3,
        value_coef=0.7,
        entropy_coef=0.02,
        aggregate=aggregate,
    )


def three_terms(params, batch):
    """Three denominators: tokens, sequences, and the tokens of another mask."""
    log_probs, _ = jaxppo.categorical(batch["obs"] @ params["policy"], batch["actions"])
    x = jaxppo.log_ratio(log_probs, batch["old_log_probs"], batch["mask"])
    policy = jaxppo.clipped_surrogate(x, batch["advantages"], clip_eps=0.15)
    values = batch["obs"] @ params["value"]
    error = jaxppo.squared_value(values, batch["returns"], batch["mask"])
    loss = {
        "policy": jaxppo.token_mean(policy, batch["mask"]),
        "value": 0.5 * jaxppo.sequence_mean(error, batch["mask"]),
        "sft": 0.1 * jaxppo.token_mean(-log_probs, batch["sft"] > 0),
    }
    return loss, {"ratio_max": jaxppo.ratio_max(x, batch["mask"])}


LOSSES = {name: partial(one_term, f) for name, f in AGGREGATORS.items()}
LOSSES["three_terms"] = three_terms


def whole(loss_fn, params, batch, **options):
    """Gradient, loss and metrics, divided: what must not depend on the cut."""
    grads, loss, metrics = jaxppo.accumulate_grads(loss_fn, params, batch, **options)
    loss = loss if isinstance(loss, dict) else {"loss": loss}
    return grads, jaxppo.finalize(loss), jaxppo.finalize(metrics)


@pytest.fixture(params=LOSSES)
def loss_fn(request):
    return LOSSES[request.param]


@pytest.fixture
def expected(loss_fn):
    """In float64, in one piece, with the textbook's division."""
    with jax.enable_x64(True):
        to64 = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x
        params, batch = jax.tree.map(to64, (params_of(1), batch_of(0)))

        def divided(params):
            loss, metrics = loss_fn(params, batch)
            loss = loss if isinstance(loss, dict) else {"loss": loss}
            values = {
                name: mean.total / (mean.count or 1) for name, mean in loss.items()
            }
            return sum(values.values()), (values, jaxppo.finalize(metrics))

        grads, (values, metrics) = jax.grad(divided, has_aux=True)(params)
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
        return jax.tree.map(np.float32, (grads, values, metrics))


def assert_same(got, expected):
    """To 1e-6 relative, of each array's largest entry: float32 rounds sums to that."""
    chex.assert_trees_all_equal_structs(got, expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-6, atol=1e-6 * np.abs(e).max())


@pytest.mark.parametrize("num_microbatches", [1, 2, 4, 16])
def test_microbatches(loss_fn, expected, num_microbatches):
    step = jax.jit(partial(whole, loss_fn, num_microbatches=num_microbatches))
    assert_same(step(params_of(1), batch_of(0)), expected)


def test_averaging_microbatches_would_not_do():
    """The error this library exists to avoid is far above the tolerance here."""
    parts = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch_of(0))
    loss_fn = LOSSES["token_mean"]
    grads = jax.vmap(lambda part: whole(loss_fn, params_of(1), part)[0])(parts)
    mean = jax.tree.map(lambda g: g.mean(0), grads)
    right = whole(loss_fn, params_of(1), batch_of(0))[0]
    assert (
        max(jax.tree.leaves(jax.tree.map(lambda m, r: abs(m - r).max(), mean, right)))
        > 1e-3
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_order_of_rows(loss_fn, expected, seed):
    order = np.random.RandomState(seed).permutation(ROWS)
    batch = jax.tree.map(lambda x: x[order], batch_of(0))
    step = jax.jit(partial(whole, loss_fn, num_microbatches=2))
    assert_same(step(params_of(1), batch), expected)


@pytest.mark.parametrize("num_microbatches", [1, 2])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_jit(loss_fn, expected, axis_type, num_microbatches):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = jax.device_put(batch_of(0), rows)
    params = jax.device_put(params_of(1), everywhere)
    with jax.set_mesh(mesh):
        step = jax.jit(partial(whole, loss_fn, num_microbatches=num_microbatches))
        assert_same(step(params, batch), expected)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_shard_map(loss_fn, expected, num_microbatches, check_vma):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    step = jax.shard_map(
        partial(whole, loss_fn, num_microbatches=num_microbatches, axis_name="data"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )
    assert_same(jax.jit(step)(params_of(1), batch_of(0)), expected)


def test_shard_map_without_axis_name_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    step = jax.shard_map(
        partial(whole, three_terms),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )
    with pytest.raises(ValueError, match=r"axis_name=\('data',\)"):
        jax.jit(step)(params_of(1), batch_of(0))


def test_axis_name_of_a_replicated_batch_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    step = jax.shard_map(
        partial(whole, three_terms, axis_name="data"),
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
    )
    with pytest.raises(ValueError, match="the same all along mesh axis 'data'"):
        jax.jit(step)(params_of(1), batch_of(0))


@pytest.mark.parametrize(("minibatches", "place"), [(1, "jit"), (4, "jit"), (1, "map")])
def test_whole_update_on_eight_devices(minibatches, place):
    """Epochs of minibatches, optimiser, guards and metrics, as on one device."""
    of = partial(
        jaxppo.learner,
        LOSSES["token_mean"],
        optax.sgd(0.3),  # Adam would blow the rounding of small gradients up
        num_epochs=2,
        num_minibatches=minibatches,
        minibatch_target_kl=5.0,
    )
    alone, learner = of(), of(axis_name="data" if place == "map" else None)
    key = jax.random.key(4)
    state, metrics = jax.jit(alone.update)(alone.init(params_of(1)), batch_of(0), key)
    expected = (state.params, state.step, jaxppo.finalize(metrics))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    update = learner.update
    if place == "map":
        everywhere, rows = PartitionSpec(), PartitionSpec("data")
        specs = {"in_specs": (everywhere, rows, everywhere), "out_specs": everywhere}
        update = jax.shard_map(update, mesh=mesh, **specs)
    batch = jax.device_put(batch_of(0), NamedSharding(mesh, PartitionSpec("data")))
    state, metrics = jax.jit(update)(learner.init(params_of(1)), batch, key)
    assert state.step == 2 * minibatches
    got = (state.params, state.step, jaxppo.finalize(metrics))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("junk", [np.inf, -np.inf, -1e9])  # NaN is in each batch
def test_padding(loss_fn, expected, junk):
    batch = batch_of(0)
    for name in ("old_log_probs", "returns"):
        batch[name] = jnp.where(batch["mask"], batch[name], junk)
    step = jax.jit(partial(whole, loss_fn, num_microbatches=2))
    assert_same(step(params_of(1), batch), expected)


def test_appended_empty_rows(loss_fn, expected):
    """A batch padded to a round number of rows is the same batch."""
    pad = lambda x: jnp.concatenate([x, jnp.zeros_like(x)])
    step = jax.jit(partial(whole, loss_fn, num_microbatches=4))
    assert_same(step(params_of(1), jax.tree.map(pad, batch_of(0))), expected)


def test_counting_pass_costs_no_forward_pass():
    """The compiler's own count of operations, with and without the counting pass."""
    width = 256

    def loss_fn(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["a"]) @ params["b"]
        loss = jaxppo.token_mean(jnp.sum(hidden**2, -1), batch["mask"])
        return {
            "loss": loss,
            "other": jaxppo.sequence_mean(hidden[..., 0], batch["mask"]),
        }, {}

    params = {k: jnp.ones((width, width)) for k in "ab"}
    batch = {"x": jnp.ones((8, 4, width)), "mask": jnp.ones((8, 4), bool)}

    def flops(f, *args):
        return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]

    forward = flops(
        lambda p, b: loss_fn(p, b)[0], params, jax.tree.map(lambda x: x[:4], batch)
    )
    parts = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), batch)
    count = flops(partial(jaxppo._accumulate._count_pass, loss_fn), params, parts)
    assert forward > 4 * 4 * width**2 * 2
    assert count < 0.001 * forward


@pytest.mark.parametrize("place", ["auto", "explicit", "map"])
def test_estimators_on_eight_devices(place):
    """Trajectories sharded over devices: scans carry what the data's sharding asks."""
    rng = np.random.RandomState(0)
    rewards, values = jnp.asarray(rng.randn(2, ROWS, TIME), jnp.float32)
    mask = jnp.asarray(rng.rand(ROWS, TIME) < 0.7)

    def estimates(rewards, values, mask):
        log_ratio = 0.1 * rewards
        return (
            jaxppo.gae(rewards, values, 0.9, mask=mask),
            jaxppo.gae(rewards, values, 0.9),
            jaxppo.vtrace(log_ratio, rewards, values, 0.9, mask=mask),
            jaxppo.discounted_returns(rewards, 0.9),
        )

    expected = estimates(rewards, values, mask)
    axis_type = AxisType.Explicit if place == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rows = PartitionSpec("data")
    run = estimates
    if place == "map":
        run = jax.shard_map(run, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows)
    sharded = jax.device_put((rewards, values, mask), NamedSharding(mesh, rows))
    with jax.set_mesh(mesh):
        chex.assert_trees_all_close(
            jax.jit(run)(*sharded), expected, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize(
    "estimator", [jaxppo.group_advantages, jaxppo.leave_one_out_advantages]
)
def test_groups_of_explicitly_sharded_rewards(estimator):
    """A mask of ones that nobody passed is sharded as the rewards are."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    rewards = jnp.arange(16.0) ** 2
    expected = estimator(rewards, group_size=2)
    sharded = jax.device_put(rewards, NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        got = jax.jit(partial(estimator, group_size=2))(sharded)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
