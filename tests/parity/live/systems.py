"""Every recorded call of the systems that are on PyPI, on inputs of our choice."""

import contextlib
import importlib
import logging
import traceback
import warnings
from types import SimpleNamespace
from unittest import mock

import numpy as np

from parity.live import stubs

# In a module each: `losses(b)` and `values(b)`, names and what to call for them.
TORCH = ["verl", "openrlhf", "trl", "liger", "areal", "torchrl"]
JAX = ["tunix", "rlax"]


def reference(inputs, dtype="float32", systems=(*TORCH, *JAX)):
    """The inputs as `dtype` holds them, the outputs, and why others are missing.

    The mask stays float32, as recorded: so products with it are float32 too.
    """
    with unmodified():
        outputs, skipped = {}, {}
        for system in systems:
            run(system, inputs, dtype, outputs, skipped)
    held = {name: plain(x) for name, x in rounded(inputs, dtype).items()}
    return {"inputs": held, "outputs": outputs, "skipped": skipped}


@contextlib.contextmanager
def unmodified():
    """The surroundings the systems expect: no strictness of ours, no compiler."""
    import jax
    import torch

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with (
        stubs.stubbed(),
        warnings.catch_warnings(action="ignore"),
        mock.patch.object(torch, "compile", eager),
        torch.random.fork_rng(devices=[]),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        try:
            yield
        finally:
            logging.disable(before)


def eager(function=None, **options):
    """In place of `torch.compile`, which wants the real Triton."""
    return eager if function is None else function


def run(system, inputs, dtype, outputs, skipped):
    """All calls of one system; one that fails is skipped, with its reason."""
    module, b, gradient = prepared(system, inputs, dtype)
    try:
        losses, values = module.losses(b), module.values(b)
    except Exception as error:
        skipped[f"{system}/*"] = reason(error)
        return
    calls = {name: lambda fn=fn: gradient(fn, b.logp) for name, fn in losses.items()}
    calls |= {name: lambda fn=fn: (fn(), {}) for name, fn in values.items()}
    for name, call in calls.items():
        try:
            outputs[name] = record(*call())
        except Exception as error:
            skipped[name] = reason(error)


def prepared(system, inputs, dtype):
    """Its module, the batch as its framework's arrays, and how to differentiate."""
    module = importlib.import_module(f"parity.live.call_{system}")
    if system in TORCH:
        return module, torch_batch(inputs, dtype), torch_gradient
    return module, jax_batch(inputs, dtype), jax_gradient


def torch_batch(inputs, dtype):
    """The inputs as tensors."""
    import torch

    torch.set_num_threads(1)
    kind = lambda name: getattr(torch, np.dtype(name).name)
    return batch(inputs, lambda x, name: torch.tensor(x).to(kind(name)), dtype)


def jax_batch(inputs, dtype):
    """The inputs as JAX arrays."""
    import jax.numpy as jnp

    return batch(inputs, jnp.asarray, dtype)


def batch(inputs, convert, dtype):
    """What the calls read, among it one advantage a token and one outcome a row.

    The groups stay a NumPy array.
    """
    arrays = {name: np.asarray(x, np.float32) for name, x in inputs.items()}
    rows, time = arrays["mask"].shape
    arrays["advantages"] = np.repeat(arrays["adv"][:, None], time, 1)
    arrays["outcomes"] = arrays["token_rewards"].sum(1)
    b = SimpleNamespace(**{name: convert(x, dtype) for name, x in arrays.items()})
    b.mask = convert(arrays["mask"], "float32")
    b.group = arrays["group"].astype(np.int64)
    b.group_size = int(np.sum(b.group == b.group[0]))
    b.rows, b.time = rows, time
    return b


def torch_gradient(loss, logp):
    """Loss, metrics and gradient of a function of log pi."""
    import torch

    logp = logp.clone().requires_grad_()
    value, aux = pair(loss(logp))
    (grad,) = torch.autograd.grad(value, logp)
    return (value, aux), {"grad": plain(grad)}


def jax_gradient(loss, logp):
    """Loss, metrics and gradient of a function of log pi."""
    import jax

    value, grad = jax.value_and_grad(loss)(logp)
    return value, {"grad": plain(grad)}


def record(out, more):
    """In the form of the reference values."""
    value, aux = pair(out)
    aux = {str(key): plain(x) for key, x in aux.items() if x is not None}
    return {"value": plain(value), **more, **({"aux": aux} if aux else {})}


def pair(out):
    """Of a value with or without metrics."""
    return out if isinstance(out, tuple) else (out, {})


def plain(x):
    """A float, or lists of them."""
    x = x.detach().float().numpy() if hasattr(x, "detach") else x
    return np.asarray(x).astype(np.float64).tolist()


def rounded(inputs, dtype):
    """The inputs as the systems saw them; mask and groups are whole numbers."""
    import jax.numpy as jnp

    exact = {name: np.asarray(x) for name, x in inputs.items()}
    return {
        name: x if name in ("mask", "group") else x.astype(jnp.dtype(dtype))
        for name, x in exact.items()
    }


def reason(error):
    """One line of why: the message, or the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = str(error).strip().partition("\n")[0] or last.line
    return f"{type(error).__name__}: {message[:200]}"
