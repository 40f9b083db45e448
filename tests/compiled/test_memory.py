"""What head and update take on a GPU and a TPU, by their compilers; without either.

`python3 run.py test-compiled` installs the compilers and runs this.
"""

import functools
import os
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for a cloud

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import jaxppo

MIB = 2**20
QWEN = dict(d=4096, vocab=151_936)
H200 = Path(__file__).parents[2] / "benchmarks" / "h200.textproto"


@functools.cache
def devices(platform):
    """Descriptions of four that are not here."""
    jax.config.update("jax_platforms", "cpu")  # do not look for CUDA itself
    jax.devices()  # now the plugins are known
    if platform == "gpu":
        pytest.importorskip("jax_plugins.xla_cuda12")
        kind = dict(platform="cuda", topology="1x1x4", target_config=H200.read_text())
        return topologies.get_topology_desc("four", **kind).devices
    pytest.importorskip("libtpu")
    kind = dict(platform="tpu", topology_name="v6e:2x2")
    return topologies.get_topology_desc(**kind).devices


def naive(hidden, unembed, targets, mask):
    contract = (((1,), (1,)), ((), ()))
    logits = jax.lax.dot_general(
        hidden, unembed, contract, preferred_element_type=jnp.float32
    )
    log_p = jax.nn.log_softmax(logits)
    log_probs = jnp.take_along_axis(log_p, targets[:, None], 1)[:, 0]
    return log_probs, -jnp.sum(jnp.exp(log_p) * log_p, -1)


def rematerialised(hidden, unembed, targets, mask, chunk=1024):
    one = jax.checkpoint(lambda x: naive(x[0], unembed, x[1], None))
    split = lambda x: x.reshape(-1, chunk, *x.shape[1:])
    log_probs, entropy = jax.lax.map(one, (split(hidden), split(targets)))
    return log_probs.ravel(), entropy.ravel()


def ours(platform, masked, hidden, unembed, targets, mask):
    plan = jaxppo.head_plan(
        *(len(hidden), *unembed.shape), masked=masked, platform=platform
    )
    out = jaxppo.token_log_probs(
        hidden, unembed, targets, mask=mask if masked else None, **plan._asdict()
    )
    return out.log_probs, out.entropy


@functools.cache
def temporaries(head, platform, n, d, vocab):
    """MiB beside inputs and outputs, forward and backward, of a bfloat16 head."""

    def loss(hidden, unembed, targets, weights, mask):
        log_probs, entropy = head(hidden, unembed, targets, mask)
        return jnp.sum(weights * log_probs) - 0.01 * jnp.sum(entropy)

    where = SingleDeviceSharding(devices(platform)[0])
    of = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
    half = jnp.bfloat16
    args = of((n, d), half), of((vocab, d), half), of((n,), jnp.int32)
    args += of((n,), jnp.float32), of((n,), jnp.bool_)
    with jax.numpy_dtype_promotion("standard"):
        lowered = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args)
    return lowered.compile().memory_analysis().temp_size_in_bytes / MIB


OURS = {
    (platform, masked): functools.partial(ours, platform, masked)
    for platform in ("gpu", "tpu")
    for masked in (False, True)
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_thirtieth_of_the_logits_way(platform, masked):
    size = dict(n=8192, **QWEN)
    taken = temporaries(OURS[platform, masked], platform, **size)
    print(f"{platform} n=8192 masked={masked}: {taken:.0f} MiB")
    assert taken <= temporaries(naive, platform, **size) / 30
    assert taken <= temporaries(rematerialised, platform, **size) / 4


@pytest.mark.parametrize("masked", [False, True])
def test_a_fiftieth_for_more_tokens(masked):
    """On the GPU: a TPU's compiler refuses to compile the other at this size."""
    size = dict(n=32768, **QWEN)
    taken = temporaries(OURS["gpu", masked], "gpu", **size)
    print(f"gpu n=32768 masked={masked}: {taken:.0f} MiB")
    assert taken <= temporaries(naive, "gpu", **size) / 50


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_update_keeps_its_state_in_place_and_spread(platform):
    """With gradients and nothing else of the parameters' size beside it."""
    mesh = Mesh(np.array(devices(platform)), "x", axis_types=(AxisType.Auto,))
    layers, dim = 64, 1024

    def spread(x, *spec):
        of = NamedSharding(mesh, P(*spec[: x.ndim]))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of)

    def loss_fn(params, b):
        def layer(x, w):
            whole = jax.lax.with_sharding_constraint(w, P())  # one at a time
            return jnp.tanh(x @ whole), None

        out, _ = jax.lax.scan(jax.checkpoint(layer), b["x"], params["w"])
        return jaxppo.token_mean(jnp.sum(out**2, -1), b["mask"]), {}

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    learner = jaxppo.learner(loss_fn, tx)
    w = jax.ShapeDtypeStruct((layers, dim, dim), jnp.float32)
    state = jax.eval_shape(learner.init, {"w": w})
    state = jax.tree.map(lambda x: spread(x, None, "x"), state)
    batch = {"x": jnp.zeros((8, 2, dim)), "mask": jnp.ones((8, 2), bool)}
    batch = jax.tree.map(lambda x: spread(x, "x"), batch)
    with jax.set_mesh(mesh):
        update = jax.jit(learner.update, donate_argnums=0)
        held = update.lower(state, batch).compile().memory_analysis()
    own = layers * dim**2 * 4 / 4  # bytes of parameters a device
    assert held.alias_size_in_bytes > 2.99 * own
    assert held.temp_size_in_bytes < 1.5 * own
    assert held.output_size_in_bytes < 3.01 * own
