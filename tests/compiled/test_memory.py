"""What the head takes on a GPU and a TPU, by their compilers; none needs to be there.

`python3 run.py test-compiled` installs the compilers and runs this.
"""

import functools
import os

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for a cloud

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxppo

MIB = 2**20
QWEN = dict(d=4096, vocab=151_936)
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 141000000000
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""


@functools.cache
def device(platform):
    """A description of one that is not here."""
    if platform == "gpu":
        pytest.importorskip("jax_plugins.xla_cuda12")
        jax.config.update("jax_platforms", "cpu")  # do not look for CUDA itself
        kind = dict(platform="cuda", topology="1x1x1", target_config=H200)
        return topologies.get_topology_desc("one", **kind).devices[0]
    pytest.importorskip("libtpu")
    kind = dict(platform="tpu", topology_name="v6e:2x2")
    return topologies.get_topology_desc(**kind).devices[0]


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

    where = SingleDeviceSharding(device(platform))
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
