"""Which array is spread how over a mesh with axes `data`, `fsdp` and `tensor`.

Rows of a batch go over `data` and `fsdp`; parameters, and with them the optimiser's
state, over `fsdp` and `tensor`, as in Megatron: the first matrix of a pair by columns,
the second by rows, the embedding by words. The rest is the compiler's to place.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))
COLUMNS = ("q", "k", "v", "gate", "up")  # kernels (layer, in, out): out over `tensor`


def of_parameter(path: tuple, x: Any) -> P:
    """The spec of a parameter, or of what an optimiser keeps for it, by its path."""
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    if x.ndim == 2 and ("embed" in names or "head" in names):
        return P("tensor", "fsdp")
    if "stacks" not in names:
        return P()
    first, second = ("fsdp", "tensor") if {*names} & {*COLUMNS} else ("tensor", "fsdp")
    kinds = {
        "lora_a": (first, None),
        "lora_b": (None, second),
        "kernel": (first, second),
        "bias": ("tensor",),
    }
    spec = next((spec for kind, spec in kinds.items() if kind in names), ())
    return P(*(None,) * (x.ndim - len(spec)), *spec)  # layers, if it is a stack of them


def of_parameters(mesh: Mesh, tree: Any) -> Any:
    """A sharding for every leaf; a dimension that does not divide is not spread."""

    def one(path: tuple, x: Any) -> NamedSharding:
        return NamedSharding(mesh, _fitting(mesh, of_parameter(path, x), x))

    return jax.tree_util.tree_map_with_path(one, tree)


def gathered(tree: Any, dtype: Any) -> Any:
    """Matrices in the dtype that they are multiplied in, and whole along `fsdp`.

    Said, and not left to the compiler, so that it is cast before it is moved, and moved
    once for all that use it; the gradient goes back to where the parameter is.
    """
    mesh = jax.sharding.get_abstract_mesh()

    def one(path: tuple, x: jax.Array) -> jax.Array:
        spec = of_parameter(path, x)
        if "fsdp" not in spec:
            return x
        if mesh.empty:
            return x.astype(dtype)
        spec = _fitting(mesh, spec, x)
        if x.dtype != dtype:
            x = jax.lax.with_sharding_constraint(x.astype(dtype), spec)
        whole = P(*(None if name == "fsdp" else name for name in spec))
        return jax.lax.with_sharding_constraint(x, whole)

    return jax.tree_util.tree_map_with_path(one, tree)


def _fitting(mesh: Any, spec: P, x: Any) -> P:
    def fits(axes: Any, size: int) -> bool:
        axes = axes if isinstance(axes, tuple) else (axes,)
        return size % int(np.prod([mesh.shape[name] for name in axes])) == 0

    pairs = zip(spec, x.shape, strict=False)  # a spec may end early
    return P(*(axes if axes and fits(axes, size) else None for axes, size in pairs))


def parameters(mesh: Mesh | None, tree: Any) -> Any:
    """Host arrays as parameters, on one device or over the mesh; always copies."""
    if mesh is None:
        return jax.tree.map(jnp.array, tree)
    return _placed(tree, of_parameters(mesh, tree))


def rows(mesh: Mesh | None, batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Host arrays as a batch, on one device or over the mesh."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)
    return _placed(batch, dict.fromkeys(batch, NamedSharding(mesh, ROWS)))


def whole(x: jax.Array) -> np.ndarray:
    """An array on the host, all of it in every process."""
    if jax.process_count() > 1 and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def _placed(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same in every process, as arrays over all devices."""

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(one, tree, shardings)


def of_tokens(x: jax.Array) -> jax.Array:
    """Says of activations, (prompts, ..., dim), where they are, if there is a mesh.

    Features too are spread: what is kept of each layer for the gradient would else be
    the same all along `tensor`. The sums of Megatron's second matrices become halves of
    sums before a layer, and the other halves after it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = P(*ROWS, *(None,) * (x.ndim - 2), "tensor")
    return jax.lax.with_sharding_constraint(x, _fitting(mesh, spec, x))


def automatic(f: Callable, out: Any) -> Callable:
    """`f` with the compiler's shardings inside, on a mesh of explicit axes too."""
    around = jax.sharding.get_abstract_mesh()
    explicit = [
        name
        for name, kind in zip(around.axis_names, around.axis_types, strict=True)
        if kind == AxisType.Explicit
    ]
    if not explicit:
        return f
    return jax.sharding.auto_axes(f, axes=tuple(explicit), out_sharding=out)
