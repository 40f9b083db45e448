"""Which array is spread how over a mesh with axes `data`, `fsdp` and `tensor`.

Rows of a batch go over `data` and `fsdp`; parameters, and with them the optimiser's
state, over `fsdp` and `tensor`, as in Megatron: the first matrix of a pair by columns,
the second by rows, the embedding by words. The rest is the compiler's to place.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))
COLUMNS = ("q", "k", "v", "gate", "up")  # kernels (layer, in, out): out over `tensor`


def mesh(text: str, explicit: bool = False) -> Mesh:
    """A mesh from text such as "data=2,tensor=4"; an axis left out has size 1.

    Args:
        text: axes and their sizes, whose product is the number of devices.
        explicit: shardings are part of the arrays' types.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if name not in AXES or not size.isdecimal() or int(size) < 1:
            raise ValueError(f"mesh {text!r}: expected something like data=2,tensor=4.")
        sizes[name] = int(size)
    needed = int(np.prod(list(sizes.values())))
    if needed != jax.device_count():
        raise ValueError(
            f"mesh {text!r} has {needed} devices, and there are {jax.device_count()}."
        )
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(kind,) * 3)


def of_parameter(path: tuple, x: Any) -> P:
    """The spec of a parameter, or of what an optimiser keeps for it, by its path."""
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    if x.ndim == 2 and ("embed" in names or "head" in names):
        return P("tensor", "fsdp")
    if "stacks" not in names or x.ndim < 2:
        return P()
    ends = ("fsdp", "tensor") if {*names} & {*COLUMNS} else ("tensor", "fsdp")
    if "lora_a" in names:
        return P(None, ends[0])
    if "lora_b" in names:
        return P(None, None, ends[1])
    if "kernel" in names:
        return P(None, *ends)
    return P(None, "tensor") if "bias" in names else P()


def of_parameters(mesh: Mesh, tree: Any) -> Any:
    """A sharding for every leaf; a dimension that does not divide is not spread."""

    def one(path: tuple, x: Any) -> NamedSharding:
        spec = of_parameter(path, x)
        fits = [
            n if n and x.shape[i] % mesh.shape[n] == 0 else None
            for i, n in enumerate(spec)
        ]
        return NamedSharding(mesh, P(*fits))

    return jax.tree_util.tree_map_with_path(one, tree)


def placed(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same in every process, as arrays over all devices."""

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(one, tree, shardings)


def of_tokens(x: jax.Array) -> jax.Array:
    """Says of activations, rows first, where they are, if there is a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, ROWS)


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
