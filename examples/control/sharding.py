"""Which array is spread how over a mesh with axes `seeds` and `envs`.

Seeds share nothing, environments the parameters. What a run computes is what it
computes on one device: this says where arrays lie, and the compiler does the rest.
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

AXES = ("seeds", "envs")
OF_SEEDS: Any = P("seeds")  # stand for all arrays of a part, whatever its type
OF_ENVS: Any = P("seeds", "envs")
EVERYWHERE: Any = P()


def of_rows(rows: Any) -> Any:
    """A minibatch, spread over `envs`, so that its gradient is a part of each device's.

    A shuffled row comes from any environment: the compiler would give every device all
    of them, and all of the work.
    """
    size = jax.sharding.get_abstract_mesh().shape.get("envs", 1)

    def one(x: jax.Array) -> jax.Array:
        if size == 1 or len(x) % size:
            return x
        return jax.lax.with_sharding_constraint(x, P("envs"))

    return jax.tree.map(one, rows)


def check(seeds: int, num_envs: int) -> None:
    """Refuse what does not divide over the mesh that is set, if one is."""
    shape = jax.sharding.get_abstract_mesh().shape
    given = {"seeds": ("--seeds", seeds), "envs": ("--num-envs", num_envs)}
    for axis, (option, count) in given.items():
        size = shape.get(axis, 1)
        if count % size:
            raise ValueError(
                f"{option} {count} on a mesh of {axis}={size}; expected a multiple. "
                f"Fix: {option} {math.ceil(count / size) * size}, or another --mesh."
            )
