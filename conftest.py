"""Strict from the start: 8 devices, no promotion of dtypes or ranks behind our back."""

import os

# One thread an operation: XLA's pool of threads deadlocks now and then on small graphs.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"
)

import jax
import jaxtyping
import numpy as np
import pytest

collect_ignore = ["tests/hf/record.py"]  # it imports torch, which few have
# With JAX_ENABLE_X64 the tests' own arrays are float64, beside recorded float32.
promotion = "standard" if jax.config.jax_enable_x64 else "strict"
jax.config.update("jax_numpy_dtype_promotion", promotion)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Processors differ in the last bit: in the docstrings' examples it would be printed.
np.set_printoptions(precision=5)


@pytest.fixture
def x64():
    """Float64 inside the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Shapes are not checked by jaxtyping, so that our own messages are heard."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def relaxed():
    """Promotion as a user has it: for code that is not the library's."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def gigabytes(tmp_path_factory):
    """One at a time of the tests that take 6 of them, whatever worker they are on."""
    import fcntl

    with (tmp_path_factory.getbasetemp().parent / "gigabytes").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A user's environment, with a cache that spares the later runs the compiling."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    cache = tmp_path_factory.getbasetemp() / "compiled"
    return env | {
        "PYTHONWARNINGS": "error",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "COLUMNS": "100",
    }
