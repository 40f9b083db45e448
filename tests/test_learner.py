"""The update step against a plain loop, and everything it promises to survive."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxppo

ROWS, SIZE = 24, 3


def batch_of(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.RandomState(seed)
    obs, noise = rng.randn(ROWS, SIZE), 0.3 * rng.randn(ROWS)
    floats = {
        "obs": obs,
        "old_log_probs": np.log(0.5) + noise,
        "advantages": rng.randn(ROWS),
        "returns": 2 + obs @ [1.0, -2.0, 0.5],
    }
    batch = {k: jnp.asarray(v, jnp.float32) for k, v in floats.items()}
    return batch | {"actions": jnp.asarray(rng.randint(0, 2, ROWS))}


def params_of(seed: int = 1) -> dict[str, jax.Array]:
    rng = np.random.RandomState(seed)
    return {
        "actor": jnp.asarray(0.5 * rng.randn(SIZE, 2), jnp.float32),
        "critic": jnp.asarray(rng.randn(SIZE), jnp.float32),
    }


def loss_of(logits, values, batch, **coefs):
    log_probs, entropy = jaxppo.categorical(logits, batch["actions"])
    return jaxppo.ppo_loss(
        log_probs,
        batch["old_log_probs"],
        batch["advantages"],
        values=values,
        returns=batch["returns"],
        entropy=entropy,
        **({"clip_eps": 0.15, "entropy_coef": 0.02} | coefs),
    )


def loss_fn(params, batch, **coefs):
    logits, values = batch["obs"] @ params["actor"], batch["obs"] @ params["critic"]
    return loss_of(logits, values, batch, **coefs)


def kl_loss_fn(params, batch, *, kl_coef):
    """With a KL penalty to the old policy, as in PPO's adaptive-KL variant."""
    log_probs, _ = jaxppo.categorical(batch["obs"] @ params["actor"], batch["actions"])
    old = batch["old_log_probs"]
    return jaxppo.ppo_loss(
        log_probs, old, batch["advantages"], ref_log_probs=old, kl_coef=kl_coef
    )


def plain_loop(
    tx, key, *, epochs=1, minibatches=1, after=None, mb_kl=None, epoch_kl=None
):
    """PPO's update as CleanRL and SB3 write it: python loops around optax."""
    params, batch = params_of(), batch_of()
    opt_state, steps, losses = tx.init(params), 0, []
    for epoch_key in jax.random.split(key, epochs):
        order = (
            jax.random.permutation(epoch_key, ROWS)
            if minibatches > 1
            else np.arange(ROWS)
        )
        for index in np.split(np.asarray(order), minibatches):
            part = jax.tree.map(lambda x: x[index], batch)
            (loss, metrics), grads = jax.value_and_grad(
                lambda p, b: (lambda loss, m: (loss.value, m))(*loss_fn(p, b)),
                has_aux=True,
            )(params, part)
            losses.append(loss)
            kl = metrics["approx_kl"].value
            if mb_kl is not None and kl > mb_kl:
                return params, steps, losses
            with jax.numpy_dtype_promotion("standard"):
                updates, opt_state = tx.update(grads, opt_state, params)
            params, steps = optax.apply_updates(params, updates), steps + 1
        if epoch_kl is not None and kl > epoch_kl:
            break
    return params, steps, losses


ADAM = optax.adam(0.05)


@pytest.mark.parametrize(
    ("epochs", "minibatches", "microbatches"),
    [(1, 1, 1), (3, 1, 1), (1, 4, 1), (3, 4, 1), (2, 4, 3), (2, 1, 2)],
)
def test_equals_a_plain_loop(epochs, minibatches, microbatches):
    learner = jaxppo.learner(
        loss_fn,
        ADAM,
        num_epochs=epochs,
        num_minibatches=minibatches,
        num_microbatches=microbatches,
    )
    key = jax.random.key(3)
    state, metrics = jax.jit(learner.update)(learner.init(params_of()), batch_of(), key)
    params, steps, losses = plain_loop(
        ADAM, key, epochs=epochs, minibatches=minibatches
    )
    chex.assert_trees_all_close(state.params, params, rtol=2e-5, atol=1e-6)
    assert state.step == steps == epochs * minibatches
    metrics = jaxppo.finalize(metrics)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert metrics["skipped"] == 0 and "stopped" not in metrics


@pytest.mark.parametrize("microbatches", [1, 3])
def test_prepare_sees_a_whole_minibatch(microbatches):
    """What it makes of one is what a loss sees of one that is not cut."""

    def whitened(batch):
        assert batch["advantages"].shape == (ROWS // 4,)
        return batch | {"advantages": jaxppo.whiten(batch["advantages"], ddof=1)}

    counts = dict(num_epochs=2, num_minibatches=4)
    learner = jaxppo.learner(
        loss_fn, ADAM, prepare=whitened, num_microbatches=microbatches, **counts
    )
    inside = jaxppo.learner(lambda p, b: loss_fn(p, whitened(b)), ADAM, **counts)
    key = jax.random.key(3)
    out, wanted = (
        jax.jit(each.update)(each.init(params_of()), batch_of(), key)
        for each in (learner, inside)
    )
    chex.assert_trees_all_close(out, wanted, rtol=2e-5, atol=1e-6)


def test_without_key_where_nothing_is_shuffled():
    learner = jaxppo.learner(loss_fn, ADAM, num_epochs=3)
    state, _ = jax.jit(learner.update)(learner.init(params_of()), batch_of())
    params, *_ = plain_loop(ADAM, jax.random.key(0), epochs=3)
    chex.assert_trees_all_close(state.params, params, rtol=1e-5)


EXPLICIT = pytest.param(
    AxisType.Explicit,
    marks=pytest.mark.skipif(
        jax.__version_info__ < (0, 9), reason="no gradient of x @ w there before 0.9"
    ),
)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, EXPLICIT])
@pytest.mark.parametrize("sizes", [(2, 1), (3, 2)])
def test_rows_on_several_devices(axis_type, sizes):
    """Shuffled into minibatches, and cut into microbatches, over two axes of a mesh."""
    counts = dict(num_epochs=2, num_minibatches=2, num_microbatches=2)
    learner = jaxppo.learner(loss_fn, optax.sgd(0.05), **counts)
    init, key = learner.init(params_of()), jax.random.key(3)
    expected = jax.jit(learner.update)(init, batch_of(), key)
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    mesh = Mesh(devices, ("data", "fsdp"), axis_types=(axis_type,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        got = jax.jit(learner.update)(init, jax.device_put(batch_of(), rows), key)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("limit", [{"mb_kl": 0.24}, {"epoch_kl": 0.2}, {"mb_kl": 9.0}])
def test_target_kl_stops_as_sb3_and_cleanrl_do(limit, eager):
    names = {"mb_kl": "minibatch_target_kl", "epoch_kl": "epoch_target_kl"}
    targets = {names[k]: v for k, v in limit.items()}
    learner = jaxppo.learner(loss_fn, ADAM, num_epochs=4, num_minibatches=3, **targets)
    key = jax.random.key(3)
    update = learner.update if eager else jax.jit(learner.update)
    state, metrics = update(learner.init(params_of()), batch_of(), key)
    params, steps, losses = plain_loop(ADAM, key, epochs=4, minibatches=3, **limit)
    assert (0 < steps < 12) == (limit != {"mb_kl": 9.0})  # the case is what it claims
    chex.assert_trees_all_close(state.params, params, rtol=2e-5, atol=1e-6)
    metrics = jaxppo.finalize(metrics)
    assert state.step == steps
    np.testing.assert_allclose(metrics["stopped"], 1 - len(losses) / 12, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert np.isfinite(metrics["ratio_max"]) and metrics["ratio_min"] > 0


def test_target_kl_under_vmap():
    """Each seed stops at its own time."""

    def train(target, key):
        learner = jaxppo.learner(
            loss_fn, ADAM, num_epochs=4, num_minibatches=3, minibatch_target_kl=target
        )
        return learner.update(learner.init(params_of()), batch_of(), key)[0].step

    targets, keys = jnp.array([0.2, 9.0, 0.25]), jax.random.split(jax.random.key(3), 3)
    together = jax.jit(jax.vmap(train))(targets, keys)
    alone = [jax.jit(train)(t, k) for t, k in zip(targets, keys, strict=True)]
    np.testing.assert_array_equal(together, alone)
    assert len(set(together.tolist())) == 3


def test_sweep_is_one_vmap():
    """Over clip range, learning rate and seed at once; equal to one by one."""

    def train(clip_eps, lr, key):
        learner = jaxppo.learner(
            partial(loss_fn, clip_eps=clip_eps),
            optax.adam(lr),
            num_epochs=2,
            num_minibatches=4,
        )
        return learner.update(learner.init(params_of()), batch_of(), key)

    eps, lr = jnp.array([0.05, 0.2, 0.4]), jnp.array([0.1, 0.01, 0.03])
    keys = jax.random.split(jax.random.key(0), 3)
    together, metrics = jax.jit(jax.vmap(train))(eps, lr, keys)
    for i in range(3):
        alone, _ = jax.jit(train)(eps[i], lr[i], keys[i])
        one = jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_close(one.params, alone.params, rtol=1e-5, atol=1e-6)
    assert jaxppo.finalize(metrics)["loss"].shape == (3,)


def test_inside_scan():
    learner = jaxppo.learner(loss_fn, ADAM, num_epochs=2, num_minibatches=2)
    keys = jax.random.split(jax.random.key(0), 3)
    update = lambda state, key: learner.update(state, batch_of(), key)
    scanned, stacked = jax.jit(partial(jax.lax.scan, update))(
        learner.init(params_of()), keys
    )
    state, losses = learner.init(params_of()), []
    for key in keys:
        state, metrics = jax.jit(update)(state, key)
        losses.append(metrics["loss"].value)
    chex.assert_trees_all_close(scanned.params, state.params, rtol=1e-5)
    np.testing.assert_allclose(jaxppo.finalize(stacked)["loss"], losses, rtol=1e-5)
    merged = jaxppo.finalize({k: m.reduce() for k, m in stacked.items()})
    np.testing.assert_allclose(merged["loss"], np.mean(losses), rtol=1e-5)
    assert merged["ratio_max"] == jaxppo.finalize(stacked)["ratio_max"].max()


def test_schedules_are_read_at_the_step_count():
    seen = []

    def spy(params, batch, *, clip_eps, entropy_coef):
        loss, metrics = loss_fn(
            params, batch, clip_eps=clip_eps, entropy_coef=entropy_coef
        )
        one = jnp.ones(())
        return loss, metrics | {"clip_eps": jaxppo.Mean(clip_eps * one, one)}

    learner = jaxppo.learner(
        spy,
        optax.adam(optax.linear_schedule(0.05, 0.0, 6)),
        num_minibatches=2,
        schedules={
            "clip_eps": optax.linear_schedule(0.2, 0.1, 4),
            "entropy_coef": optax.constant_schedule(0.01),
        },
    )
    state = learner.init(params_of())
    for key in jax.random.split(jax.random.key(0), 3):
        state, metrics = jax.jit(learner.update)(state, batch_of(), key)
        seen.append(float(metrics["clip_eps"].value))
    np.testing.assert_allclose(seen, [0.1875, 0.1375, 0.1], rtol=1e-6)
    before = state.params
    state, _ = jax.jit(learner.update)(state, batch_of(), key)  # the rate is 0 by now
    chex.assert_trees_all_equal(state.params, before)


def test_adaptive_kl_coefficient_is_carried():
    controller = jaxppo.adaptive_kl(target=0.02, init_coef=0.3, gain=0.5, max_error=0.4)
    learner = jaxppo.learner(
        kl_loss_fn, ADAM, num_epochs=2, adaptive={"kl_coef": controller}
    )
    state = learner.init(params_of())
    coef = 0.3
    for _ in range(3):
        state, metrics = jax.jit(learner.update)(state, batch_of())
        kl = float(metrics["kl"].value)
        coef *= 1 + 0.5 * np.clip(kl / 0.02 - 1, -0.4, 0.4)
        np.testing.assert_allclose(state.coefs["kl_coef"], coef, rtol=1e-6)
    assert coef != 0.3


def test_adaptive_kl_moves_towards_its_target():
    controller = jaxppo.adaptive_kl(target=0.02, init_coef=0.3, gain=0.5, max_error=0.4)
    coef = controller.init()
    np.testing.assert_allclose(controller.update(coef, jnp.array(0.04)), 0.3 * 1.2)
    np.testing.assert_allclose(controller.update(coef, jnp.array(0.019)), 0.3 * 0.975)
    np.testing.assert_allclose(controller.update(coef, jnp.array(0.0)), 0.3 * 0.8)
    for bad in (jnp.nan, jnp.inf):
        assert controller.update(coef, jnp.array(bad)) == coef


def test_actor_and_critic_clipped_separately():
    labels = {"actor": "actor", "critic": "critic"}
    clip = optax.clip_by_global_norm(0.5)
    separate = optax.chain(
        optax.partition({"actor": clip, "critic": clip}, labels), optax.sgd(1.0)
    )
    grads, *_ = jaxppo.accumulate_grads(loss_fn, params_of(), batch_of())
    assert np.linalg.norm(grads["critic"]) > 0.5 > np.linalg.norm(grads["actor"])
    learner = jaxppo.learner(loss_fn, separate)
    state, _ = jax.jit(learner.update)(learner.init(params_of()), batch_of())
    step = jax.tree.map(lambda old, new: old - new, params_of(), state.params)
    np.testing.assert_allclose(step["actor"], grads["actor"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(step["critic"]), 0.5, rtol=1e-5)


@pytest.fixture(params=["small", "large"])
def either_size(request, monkeypatch):
    """On CPUs a step of few parameters is chosen in another way than one of many."""
    if request.param == "large":
        monkeypatch.setattr("jaxppo._guard.SMALL", 0)


@pytest.mark.usefixtures("either_size")
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_step_that_is_not_finite_is_skipped(poison, microbatches):
    learner = jaxppo.learner(loss_fn, ADAM, num_microbatches=microbatches)
    update = jax.jit(learner.update)
    state, _ = update(learner.init(params_of()), batch_of())
    bad = batch_of() | {"advantages": batch_of()["advantages"].at[5].set(poison)}
    after, metrics = update(state, bad)
    chex.assert_trees_all_equal(after.params, state.params)
    chex.assert_trees_all_equal(after.opt_state, state.opt_state)
    assert after.step == state.step == 1
    assert after.skipped == 1 and metrics["skipped"].total == 1
    assert not np.isfinite(metrics["loss"].value)  # and it is not hidden
    after, metrics = update(after, batch_of())
    assert after.step == 2 and after.skipped == 0 and metrics["skipped"].value == 0


def test_one_bad_minibatch_leaves_the_other_metrics_readable():
    controller = jaxppo.adaptive_kl(target=0.02, init_coef=0.3, metric="approx_kl")

    def with_coef(params, batch, *, kl_coef):
        return loss_fn(params, batch)

    learner = jaxppo.learner(
        with_coef, ADAM, num_minibatches=4, adaptive={"kl_coef": controller}
    )
    bad = batch_of() | {"advantages": batch_of()["advantages"].at[5].set(jnp.nan)}
    state, metrics = jax.jit(learner.update)(
        learner.init(params_of()), bad, jax.random.key(0)
    )
    assert state.step == 3 and metrics["skipped"].total == 1
    metrics = jaxppo.finalize(metrics)
    assert np.isnan(metrics.pop("loss")) and np.isnan(metrics.pop("grad_norm"))
    assert all(np.isfinite(value) for value in metrics.values())
    assert state.coefs["kl_coef"] != 0.3


def test_numpy_batches():
    batch = jax.tree.map(np.asarray, batch_of())
    learner = jaxppo.learner(loss_fn, ADAM, num_minibatches=2, num_microbatches=2)
    key = jax.random.key(0)
    state, _ = learner.update(learner.init(params_of()), batch, key)
    expected, _ = learner.update(learner.init(params_of()), batch_of(), key)
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-6)


@pytest.mark.usefixtures("either_size")
def test_update_that_is_not_finite_is_skipped():
    """A finite gradient may become an infinite update, and a NaN loss have none."""
    learner = jaxppo.learner(loss_fn, optax.sgd(3e38))
    big = batch_of() | {"returns": 1e3 * batch_of()["returns"]}
    state, metrics = jax.jit(learner.update)(learner.init(params_of()), big)
    chex.assert_trees_all_equal(state.params, params_of())
    assert metrics["skipped"].value == 1 and np.isfinite(metrics["loss"].value)

    def no_gradient(params, batch):
        return jaxppo.token_mean(0 * params["actor"] + jnp.nan), {}

    learner = jaxppo.learner(no_gradient, ADAM)
    state, metrics = jax.jit(learner.update)(learner.init(params_of()), batch_of())
    assert metrics["skipped"].value == 1 and state.step == 0


def test_skips_in_a_row_end_the_run():
    learner = jaxppo.learner(loss_fn, ADAM, num_epochs=2)
    update = jax.jit(learner.update)
    state = learner.init(params_of())
    bad = batch_of() | {"advantages": jnp.full(ROWS, jnp.nan)}
    for _ in range(2):
        state, _ = update(state, bad)
        jaxppo.check_progress(state, max_skipped=5)
    assert state.skipped == 4
    state, _ = update(state, bad)
    with pytest.raises(
        FloatingPointError, match="the last 6 optimiser steps were skip"
    ):
        jaxppo.check_progress(state, max_skipped=6)
    seeds = jax.tree.map(lambda x: jnp.stack([jnp.zeros_like(x), x]), state)
    with pytest.raises(FloatingPointError, match="the last 6"):
        jaxppo.check_progress(seeds, max_skipped=5)


def test_optimiser_is_given_the_loss():
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2))
    learner = jaxppo.learner(loss_fn, tx)
    state, metrics = jax.jit(learner.update)(learner.init(params_of()), batch_of())
    np.testing.assert_allclose(state.opt_state[1].avg_value, 0)
    assert state.step == 1
    np.testing.assert_allclose(state.opt_state[1].best_value, metrics["loss"].value)


def test_terms_of_a_dict_are_reported_by_name():
    def two(params, batch):
        a = jaxppo.token_mean(params["actor"] ** 2)
        return {"a": a, "b": 3.0 * jaxppo.token_mean(params["critic"] ** 2)}, {}

    learner = jaxppo.learner(two, optax.sgd(0.0), num_epochs=2)
    _, metrics = jax.jit(learner.update)(learner.init(params_of()), batch_of())
    metrics, params = jaxppo.finalize(metrics), params_of()
    a, b = np.mean(params["actor"] ** 2), 3 * np.mean(params["critic"] ** 2)
    np.testing.assert_allclose(metrics["a"], a, rtol=1e-6)
    np.testing.assert_allclose(metrics["b"], b, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], a + b, rtol=1e-6)
    norm = np.sqrt(
        np.sum((2 / 6 * params["actor"]) ** 2) + np.sum((2 * params["critic"]) ** 2)
    )
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)


def test_half_precision_parameters():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of())

    def mixed(params, batch):
        return loss_fn(jax.tree.map(lambda x: x.astype(jnp.float32), params), batch)

    whole, *_ = jaxppo.accumulate_grads(mixed, half, batch_of())
    parts, *_ = jaxppo.accumulate_grads(mixed, half, batch_of(), num_microbatches=8)
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(parts))
    to32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    # One rounding of the sum, and one of each part: 8 bits of significand.
    chex.assert_trees_all_close(to32(parts), to32(whole), rtol=2**-6, atol=2**-9)
    learner = jaxppo.learner(mixed, ADAM)
    state, _ = jax.jit(learner.update)(learner.init(half), batch_of())
    assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(state.params))


def test_keys_travel_in_the_batch():
    """For dropout: one key a row, shuffled and cut with the rows."""
    keys = jax.random.split(jax.random.key(7), ROWS)

    def noisy(params, batch):
        noise = jax.vmap(lambda key: jax.random.normal(key))(batch["key"])
        return jaxppo.token_mean(noise * jnp.sum(params["critic"])), {}

    learner = jaxppo.learner(
        noisy, optax.sgd(0.0), num_minibatches=2, num_microbatches=3
    )
    batch = batch_of() | {"key": keys}
    state = learner.init(params_of())
    _, metrics = jax.jit(learner.update)(state, batch, jax.random.key(0))
    noise = jax.vmap(lambda key: jax.random.normal(key))(keys)
    expected = np.mean(noise) * np.sum(params_of()["critic"])
    np.testing.assert_allclose(metrics["loss"].value, expected, rtol=1e-5)


def test_state_can_be_donated():
    learner = jaxppo.learner(loss_fn, ADAM, num_epochs=2, num_minibatches=2)
    update = jax.jit(learner.update, donate_argnums=0)
    state = learner.init(params_of())
    kept, _ = jax.jit(learner.update)(state, batch_of(), jax.random.key(0))
    leaves = jax.tree.leaves((state.params, state.opt_state))
    donated, _ = update(state, batch_of(), jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in leaves)
    chex.assert_trees_all_close(donated.params, kept.params, rtol=1e-6)
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        update(state, batch_of(), jax.random.key(0))


def test_traced_once():
    """Neither a second call nor another hyper-parameter compiles again."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def train(state, batch, key, clip_eps, target_kl):
        learner = jaxppo.learner(
            partial(loss_fn, clip_eps=clip_eps),
            ADAM,
            num_minibatches=2,
            minibatch_target_kl=target_kl,
        )
        return learner.update(state, batch, key)[0]

    state = jaxppo.learner(loss_fn, ADAM).init(params_of())
    for seed in range(3):
        key = jax.random.key(seed)
        state = train(state, batch_of(seed), key, 0.1 + 0.1 * seed, 0.5 + seed)
    assert state.step > 0


def test_merging_metrics():
    a, b = (
        jaxppo.Mean(jnp.array(3.0), jnp.array(1.0)),
        jaxppo.Mean(jnp.array(9.0), jnp.array(5.0)),
    )
    assert (a + b).value == sum([a, b]).value == 2.0
    assert (0.5 * a).value == (a * 0.5).value == 1.5 and (a * 0.5).count == 1
    assert jaxppo.Mean(jnp.array(7.0), jnp.array(0.0)).value == 7.0
    high, low = jaxppo.Max(jnp.array(2.0)), jaxppo.Max(jnp.array(-2.0))
    assert (high + low).value == (low + high).value == 2
    high, low = jaxppo.Min(jnp.array(2.0)), jaxppo.Min(jnp.array(-2.0))
    assert (high + low).value == (low + high).value == -2


@pytest.mark.parametrize("kind", [jaxppo.Max, jaxppo.Min, "mean"])
def test_reducing_stacked_metrics(kind):
    x = np.array([[1.0, -2.0], [5.0, 3.0], [-4.0, 9.0]], np.float32)
    make = (
        (lambda x: jaxppo.Mean(jnp.asarray(x), jnp.ones(x.shape)))
        if kind == "mean"
        else (lambda x: kind(jnp.asarray(x)))
    )
    numpy = {"mean": np.mean, jaxppo.Max: np.max, jaxppo.Min: np.min}[kind]
    where = jnp.array([True, True, False])
    np.testing.assert_allclose(make(x).reduce().value, numpy(x, 0), rtol=1e-6)
    np.testing.assert_allclose(make(x).reduce(where).value, numpy(x[:2], 0), rtol=1e-6)
    one = make(x[:, 0]).reduce(where).value
    np.testing.assert_allclose(one, numpy(x[:2, 0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "fragments"),
    [
        (
            lambda: jaxppo.learner(loss_fn, ADAM, num_epochs=0),
            ValueError,
            ["num_epochs", "at least 1"],
        ),
        (
            lambda: jaxppo.learner(loss_fn, ADAM, num_minibatches=2.0),
            TypeError,
            ["num_minibatches", "integer"],
        ),
        (
            lambda: jaxppo.learner(loss_fn, ADAM, num_microbatches=True),
            TypeError,
            ["num_microbatches"],
        ),
        (
            lambda: jaxppo.learner(loss_fn, ADAM, prepare="whiten"),
            TypeError,
            ["prepare", "prepare(minibatch)"],
        ),
        (
            lambda: jaxppo.learner(loss_fn, ADAM, minibatch_target_kl=0.0),
            ValueError,
            ["minibatch_target_kl", "(0, inf]"],
        ),
        (
            lambda: jaxppo.learner(loss_fn, ADAM, epoch_target_kl=np.nan),
            ValueError,
            ["epoch_target_kl"],
        ),
        (
            lambda: jaxppo.learner(
                loss_fn,
                ADAM,
                schedules={"kl_coef": lambda i: i},
                adaptive={"kl_coef": jaxppo.adaptive_kl(target=1.0)},
            ),
            ValueError,
            ["kl_coef", "both"],
        ),
        (
            lambda: run(num_minibatches=5),
            ValueError,
            [
                "num_minibatches",
                "does not divide the batch's 24 rows; use a",
                "25 rows",
            ],
        ),
        (
            lambda: run(num_minibatches=2, num_microbatches=5),
            ValueError,
            ["num_minibatches", "num_microbatches", "24"],
        ),
        (
            lambda: run(num_minibatches=2, seed=None),
            ValueError,
            [
                "`key` is None, but num_minibatches = 2 shuffles the rows",
                "jax.random.key",
            ],
        ),
        (
            lambda: run(batch=batch_of() | {"obs": jnp.ones((23, SIZE))}),
            ValueError,
            ["batch['obs']", "23", "24"],
        ),
        (lambda: run(batch={}), ValueError, ["batch", "no arrays"]),
        (
            lambda: run(batch=batch_of() | {"scalar": jnp.ones(())}),
            ValueError,
            ["batch['scalar']"],
        ),
        (
            lambda: run(
                loss=lambda p, b: (jaxppo.token_mean(p["actor"]), {}),
                epoch_target_kl=1.0,
            ),
            ValueError,
            ["approx_kl", "no metric"],
        ),
        (
            lambda: run(
                loss=lambda p, b, kl_coef: loss_fn(p, b),
                adaptive={"kl_coef": jaxppo.adaptive_kl(target=1.0)},
            ),
            ValueError,
            ["`kl`", "ref_log_probs"],
        ),
        (
            lambda: run(loss=lambda p, b: (jaxppo.token_mean(p["actor"]), {"x": 1.0})),
            TypeError,
            ["loss_fn", "metric `x`", "float", "token_mean"],
        ),
        (lambda: run(schedules={"x": 0.1}), TypeError, ["schedules['x']", "function"]),
        (lambda: run(adaptive={"x": 0.1}), TypeError, ["adaptive['x']", "adaptive_kl"]),
        (lambda: jaxppo.learner(loss_fn, optax.sgd), TypeError, ["`tx`", "optax"]),
        (lambda: jaxppo.learner(None, ADAM), TypeError, ["`loss_fn`", "function"]),
        (
            lambda: run(loss=lambda p, b: jnp.sum(p["actor"])),
            TypeError,
            ["loss_fn", "(loss, metrics)"],
        ),
        (
            lambda: run(loss=lambda p, b: (jnp.sum(p["actor"]), {})),
            TypeError,
            ["loss_fn", "Mean"],
        ),
        (
            lambda: run(loss=lambda p, b: ({"a": jnp.sum(p["actor"])}, {})),
            TypeError,
            ["loss_fn", "`a`", "Mean"],
        ),
        (
            lambda: jaxppo.accumulate_grads(
                loss_fn, params_of(), batch_of(), num_microbatches=7
            ),
            ValueError,
            ["accumulate_grads", "num_microbatches", "7", "24"],
        ),
        (
            lambda: jaxppo.finalize({"loss": jnp.ones(())}),
            TypeError,
            ["finalize", "`loss`", "Mean"],
        ),
        (
            lambda: jaxppo.adaptive_kl(target=-1.0),
            ValueError,
            ["adaptive_kl", "target"],
        ),
        (
            lambda: jaxppo.check_progress(None, max_skipped=0),
            ValueError,
            ["check_progress", "max_skipped"],
        ),
    ],
)
def test_errors(call, error, fragments, unchecked):
    with pytest.raises(error) as info:
        call()
    for fragment in fragments:
        assert fragment in str(info.value)


def run(loss=loss_fn, batch=None, seed=0, **options):
    learner = jaxppo.learner(loss, ADAM, **options)
    key = None if seed is None else jax.random.key(seed)
    state = learner.init(params_of())
    return jax.eval_shape(
        learner.update, state, batch_of() if batch is None else batch, key
    )


def test_an_update_takes_no_copy_of_the_state():
    params = {str(i): jnp.zeros((512, 512)) for i in range(8)}

    def loss_fn(params, batch):
        for w in params.values():
            batch = jnp.tanh(batch @ w)
        return jaxppo.token_mean(batch), {}

    learner = jaxppo.learner(loss_fn, optax.adamw(1e-3))
    state = jax.eval_shape(learner.init, params)
    update = jax.jit(learner.update, donate_argnums=0)
    compiled = update.lower(state, jnp.ones((4, 512))).compile()
    size = sum(w.nbytes for w in params.values())
    # The gradient, and little else; with a copy of both moments it would be three.
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * size
