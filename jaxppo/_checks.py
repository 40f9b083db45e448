"""The door: names what is wrong with an input, then hands it on, clean.

Every public function sends its arrays through `arrays`, which checks dtype and shape,
brings half precision up to float32, and replaces what the mask leaves out by zero.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def arrays(
    fn: str,
    mask: Any = None,
    per_sequence: Any = (),
    **named: Any,
) -> list[jax.Array]:
    """Floating arrays of one shape (the first one's), in float32 at least, 0 off-mask.

    Args:
      fn: the caller's public name, for the message.
      mask: what counts, of the first array's shape, or None.
      per_sequence: names whose last axis may also be 1.
      **named: the arrays, by the caller's names for them.
    """
    first = next(iter(named))
    shape = _shape(fn, first, named[first])
    for name, x in named.items():
        _floating(fn, name, x)
        same_shape(fn, name, x, first, shape, one_per_sequence=name in per_sequence)
    dtype = wide(*named.values())
    keep = valid(fn, mask, **{first: named[first]})
    out = [jax.lax.convert_element_type(x, dtype) for x in named.values()]
    return out if keep is None else [jnp.where(keep, x, 0) for x in out]


def wide(*xs: jax.Array) -> Any:
    """The dtype to compute in: float32, or float64 if any of them is and x64 is on."""
    widest = np.float64 if any(x.dtype == np.float64 for x in xs) else np.float32
    return jax.dtypes.canonicalize_dtype(widest)


def valid(fn: str, mask: Any, /, **named: Any) -> jax.Array | None:
    """`mask` as booleans of the named array's shape; None stays None."""
    if mask is None:
        return None
    (first, like), *_ = named.items()
    shape = _shape(fn, "mask", mask)
    if mask.dtype != np.bool_ and not jnp.issubdtype(mask.dtype, np.integer):
        raise TypeError(
            f"{fn}: `mask` has dtype {mask.dtype}; expected bool or integers, nonzero "
            "counts. Pass `mask.astype(bool)` (or `mask > 0`); fractional weights are "
            "multiplied into the terms instead."
        )
    if shape != like.shape:
        raise ValueError(
            f"{fn}: `mask` has shape {shape}, but `{first}` has shape {like.shape}; "
            f"pass a mask of shape {like.shape}{_hint('mask', shape, like.shape)}."
        )
    return jax.lax.convert_element_type(mask, bool)


def kept(fn: str, mask: Any, /, **named: Any) -> jax.Array:
    """As `valid`, but None becomes all of the array, sharded as it is."""
    keep = valid(fn, mask, **named)
    (like,) = named.values()
    return jnp.ones_like(like, bool) if keep is None else keep


def per_step(
    fn: str, name: str, value: Any, interval: str, mask: Any = None, **like: Any
) -> jax.Array:
    """A number, or an array of `like`'s shape (last axis may be 1), spread over it."""
    ((first, x),) = like.items()
    if np.ndim(value) == 0:
        return jnp.broadcast_to(number(fn, name, value, interval, x.dtype), x.shape)
    _floating(fn, name, value)
    same_shape(fn, name, value, first, x.shape, one_per_sequence=True)
    value = jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)
    keep = valid(fn, mask, **{first: x})
    return value if keep is None else jnp.where(keep, value, 0)


def number(fn: str, name: str, value: Any, interval: str, dtype: Any) -> jax.Array:
    """A hyper-parameter as a scalar of `dtype`, checked wherever its value is known.

    What is traced passes unseen, to be swept or scheduled; for any other array of JAX's
    the program waits. `interval` is written as in mathematics: "(0, 1)", "[0, inf)".
    NaN is in none.
    """
    if not isinstance(value, (int, float, np.number, np.ndarray, jax.Array)):
        raise TypeError(
            f"{fn}: `{name}` is a {type(value).__name__} ({value!r}); expected a "
            "number."
        )
    if np.ndim(value):
        raise ValueError(
            f"{fn}: `{name}` has shape {np.shape(value)}; expected a number. To try "
            "several, `jax.vmap` over it."
        )
    kind = getattr(value, "dtype", np.float64)
    real = jnp.issubdtype(kind, np.floating) or jnp.issubdtype(kind, np.integer)
    if not real and kind != np.bool_:
        raise TypeError(f"{fn}: `{name}` has dtype {kind}; expected a real number.")
    if isinstance(value, jax.core.Tracer):
        return value.astype(dtype)
    low, high = map(float, interval[1:-1].split(","))
    try:
        known = float(value)
    except OverflowError:  # an integer that no float holds
        known = math.nan
    above = low <= known if interval[0] == "[" else low < known
    below = known <= high if interval[-1] == "]" else known < high
    if not (above and below):
        raise ValueError(f"{fn}: `{name}` = {value}; expected a number in {interval}.")
    return jnp.asarray(value, dtype)


def upwards(low: Any, *, positive: bool = False) -> str:
    """The interval from a checked number on; a traced one may be anything from 0."""
    if isinstance(low, jax.core.Tracer):
        least = 0
    else:
        least = low + 0 if isinstance(low, int) else float(low)  # True is 1
    return "(0, inf]" if positive and not least else f"[{least}, inf]"


def count(fn: str, name: str, value: Any) -> None:
    """Checks a static count: a Python or NumPy integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{fn}: `{name}` = {value!r}; expected a Python integer.")
    if value < 1:
        raise ValueError(f"{fn}: `{name}` = {value}; expected at least 1.")


def _shape(fn: str, name: str, x: Any) -> tuple[int, ...]:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(
            f"{fn}: `{name}` is a {type(x).__name__}; expected an array. "
            f"Pass `jnp.asarray({name})`."
        )
    return tuple(x.shape)


def _floating(fn: str, name: str, x: Any) -> None:
    _shape(fn, name, x)
    if not jnp.issubdtype(x.dtype, np.floating):
        raise TypeError(
            f"{fn}: `{name}` has dtype {x.dtype}; expected floating point. "
            f"Pass `{name}.astype(jnp.float32)`."
        )


def same_shape(
    fn: str,
    name: str,
    x: Any,
    first: str,
    shape: tuple[int, ...],
    *,
    one_per_sequence: bool,
) -> None:
    if tuple(x.shape) == shape:
        return
    one = (*shape[:-1], 1)
    if one_per_sequence and shape and tuple(x.shape) == one:
        return
    either = f"{shape} or {one}" if one_per_sequence and shape else f"{shape}"
    raise ValueError(
        f"{fn}: `{name}` has shape {tuple(x.shape)}, but `{first}` has shape {shape}; "
        f"pass shape {either}{_hint(name, tuple(x.shape), shape, one_per_sequence)}."
    )


def _hint(
    name: str, got: tuple[int, ...], want: tuple[int, ...], one_per_sequence=False
) -> str:
    if want and got == want[:-1]:
        column = f"{name}[..., None]"
        fix = column if one_per_sequence else f"jnp.broadcast_to({column}, {want})"
    elif len(got) == len(want) and all(
        g in (1, w) for g, w in zip(got, want, strict=True)
    ):
        fix = f"jnp.broadcast_to({name}, {want})"
    elif len(got) > 1 and got[::-1] == want:
        fix = f"{name}.T"
    else:
        return ""
    return f" (did you mean `{fix}`?)"


def axis(fn: str, value: Any, **named: Any) -> None:
    """Checks that an array has this axis, or that None is asked for."""
    ((name, x),) = named.items()
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{fn}: `axis` = {value!r}; expected an integer or None.")
    if not -x.ndim <= value < x.ndim:
        raise ValueError(
            f"{fn}: `axis` = {value}, but `{name}` has shape {x.shape}; pass one of "
            "its axes (-1 is time), or None for all."
        )


def has_time(fn: str, **named: Any) -> None:
    """Checks that an array has at least one axis, the last one being time."""
    for name, x in named.items():
        if not x.shape:
            raise ValueError(
                f"{fn}: `{name}` has shape (); expected (*batch, time). For one step "
                f"pass `{name}[None]`."
            )


def integers(fn: str, **named: Any) -> None:
    """Checks that arrays are of an integer dtype."""
    for name, x in named.items():
        _shape(fn, name, x)
        if not jnp.issubdtype(x.dtype, np.integer):
            raise TypeError(
                f"{fn}: `{name}` has dtype {x.dtype}; expected integers. "
                f"Pass `{name}.astype(jnp.int32)`."
            )


def rows(fn: str, batch: Any, **parts: int) -> int:
    """The batch's number of rows, which all leaves share and the parts divide."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError(f"{fn}: `batch` has no arrays.")
    sizes = {
        f"batch{jax.tree_util.keystr(path)}": np.shape(x)[:1] for path, x in leaves
    }
    (first, common), *_ = sizes.items()
    for name, size in sizes.items():
        if size != common or not size:
            raise ValueError(
                f"{fn}: `{name}` has {size} rows, but `{first}` has {common}; every "
                "leaf needs the same leading axis, the rows."
            )
    names = " * ".join(f"`{name}` = {count}" for name, count in parts.items())
    product = int(np.prod(list(parts.values())))
    if common[0] % product:
        raise ValueError(
            f"{fn}: {names} does not divide the batch's {common[0]} rows; use a "
            f"divisor, or pad to {-common[0] % product + common[0]} rows with mask 0."
        )
    return common[0]


def floating(fn: str, **named: Any) -> None:
    """Checks that arrays are of a floating-point dtype."""
    for name, x in named.items():
        _floating(fn, name, x)


def function(fn: str, name: str, value: Any, example: str) -> None:
    """Checks that something can be called."""
    if not callable(value):
        raise TypeError(
            f"{fn}: `{name}` is {value!r}; expected a function, such as `{example}`."
        )
