"""Meshes: the axes a value varies over, and code that runs on each shard by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AxisName = str | tuple[str, ...]


def names(axis_name: AxisName | None) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    if axis_name is None:
        return ()
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def varies(*xs: Any) -> frozenset[str]:
    """The mesh axes that arrays vary over inside a `shard_map` that tracks them."""

    def one(x: Any) -> frozenset[str]:
        aval = jax.typeof(x)
        manual = getattr(aval, "manual_axis_type", None)  # from JAX 0.10
        return getattr(aval, "vma", frozenset()) if manual is None else manual.varying

    return frozenset().union(*map(one, jax.tree.leaves(xs)))


def varying(tree: Any, axes: Iterable[str]) -> Any:
    """Marks arrays as each device's own along the axes; the gradient is then added."""

    def mark(x: Any) -> Any:
        missing = tuple(sorted(set(axes) - varies(x)))
        if not missing:
            return x
        if pvary := getattr(jax.lax, "pvary", None):  # before JAX 0.9
            return pvary(x, missing)  # pragma: no cover
        return jax.lax.pcast(x, missing, to="varying")

    return jax.tree.map(mark, tree)


class Shards(NamedTuple):
    """How tokens and words are spread over a mesh that is not manual yet."""

    mesh: AbstractMesh | Mesh
    tokens: tuple[AxisName | None, ...]  # an entry per leading axis
    words: tuple[str, ...]

    def run(self, f: Callable, tokens: Any, words: Any, rest: Any, out: str) -> Any:
        """`f(tokens, words, rest)` on each shard; trees of arrays, None left out.

        `words`: pairs of an array and its vocabulary axis. `out` says what f returns:
        "tokens", or "sums" that are the same everywhere.
        """
        axes = [axis for _, axis in words]
        arrays = [x for x, _ in words]
        spec_of_tokens = PartitionSpec(*self.tokens)
        of_tokens = lambda x: PartitionSpec(*self.tokens[: x.ndim])
        entry = self.words or None
        specs = (
            jax.tree.map(of_tokens, tokens),
            [
                None if x is None else PartitionSpec(*[None] * axis, entry)
                for x, axis in words
            ],
            jax.tree.map(lambda _: PartitionSpec(), rest),
        )
        tokens, arrays, rest = jax.tree.map(
            lambda x, spec: self._reshard(x, spec), (tokens, arrays, rest), specs
        )

        def on_shard(tokens, arrays, rest):
            return f(tokens, list(zip(arrays, axes, strict=True)), rest)

        return jax.shard_map(
            on_shard,
            mesh=self.mesh,
            in_specs=specs,
            out_specs=spec_of_tokens if out == "tokens" else PartitionSpec(),
        )(tokens, arrays, rest)

    def _reshard(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        """What has a type for its sharding must have the one that is asked for."""
        explicit = explicit_axes(self.mesh)
        if not explicit:
            return x
        entries = [tuple(n for n in names(e) if n in explicit) or None for e in spec]
        return jax.sharding.reshard(
            x, NamedSharding(self.mesh, PartitionSpec(*entries))
        )


def explicit_axes(mesh: AbstractMesh | Mesh) -> set[str]:
    """The names of the mesh's axes whose sharding is part of an array's type."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind == AxisType.Explicit}


def entries(x: jax.Array) -> list[tuple[str, ...]]:
    """The explicit axes each dimension of an array is sharded over."""
    sharding = jax.typeof(x).sharding
    found = [names(entry) for entry in sharding.spec]
    found += [()] * (x.ndim - len(found))
    explicit = explicit_axes(sharding.mesh)
    return [tuple(name for name in entry if name in explicit) for entry in found]


def take_rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows by distinct indices, spread as all of them are."""
    chosen = dict(mode="promise_in_bounds", unique_indices=True)
    return x.at[index].get(**chosen, out_sharding=_typed(x, *entries(x)))


def split_rows(x: jax.Array, parts: int) -> jax.Array:
    """Rows as (parts, rows, ...): strided, so that they stay on their devices."""
    sizes = len(x) // parts, parts, *x.shape[1:]
    first, *rest = entries(x)
    out = _typed(x, first, (), *rest)
    return jax.lax.reshape(x, sizes, out_sharding=out).swapaxes(0, 1)


def _typed(x: jax.Array, *spec: tuple[str, ...]) -> NamedSharding | None:
    """A sharding over the explicit axes that x is on; None if it is on none."""
    entries = PartitionSpec(*(entry or None for entry in spec))
    return NamedSharding(jax.typeof(x).sharding.mesh, entries) if any(spec) else None


def shards(
    fn: str,
    hidden: jax.Array,
    targets: jax.Array,
    unembed: jax.Array,
    vocab_dim: int,
    vocab_axis: AxisName | None,
    token_spec: PartitionSpec | None,
) -> Shards | None:
    """How this call is sharded; None: not at all, or by the `shard_map` around it."""
    asked = names(vocab_axis)
    if manual := jax.sharding.get_abstract_mesh().manual_axes:
        if token_spec is not None:
            raise ValueError(
                f"{fn}: `token_spec` = {token_spec} inside `shard_map`, where the "
                "tokens are this shard's already; leave it out."
            )
        if missing := set(asked) - varies(unembed):
            raise ValueError(
                f"{fn}: `vocab_axis` = {vocab_axis!r}, but `unembed` does not vary "
                f"over {sorted(missing)} (manual axes: {sorted(manual)}): each device "
                "would count the same words. Shard its words (`in_specs`), "
                "leave `vocab_axis` out, or, if they are sharded, do not turn off "
                "`shard_map`'s `check_vma`: gradients would be divided by the axis."
            )
        if missing := varies(unembed) - varies(hidden, targets) - set(asked):
            raise ValueError(
                f"{fn}: `unembed` varies over {sorted(missing)}, but neither the "
                "tokens nor `vocab_axis` do: each device would take its words for all. "
                "Pass "
                f"`vocab_axis={tuple(sorted(missing))!r}`."
            )
        return None
    if not isinstance(token_spec, PartitionSpec | None):
        raise TypeError(
            f"{fn}: `token_spec` = {token_spec!r}; expected a "
            "`jax.sharding.PartitionSpec`, an entry an axis of the tokens."
        )
    mesh = mesh_of(hidden, targets, unembed)
    if mesh is None:
        if asked or token_spec is not None:
            raise ValueError(
                f"{fn}: `vocab_axis` and `token_spec` name axes of a mesh, but none is "
                "set; call under `jax.set_mesh(mesh)`."
            )
        return None
    spec = tuple(token_spec or ())
    for name in [*asked, *(n for entry in spec for n in names(entry))]:
        if name not in mesh.axis_names:
            raise ValueError(
                f"{fn}: no axis {name!r} in the mesh, which has {mesh.axis_names}."
            )
    if len(spec) > targets.ndim:
        raise ValueError(
            f"{fn}: `token_spec` = {token_spec} has {len(spec)} entries, but the "
            f"tokens have shape {targets.shape}; give an entry an axis."
        )
    explicit = explicit_axes(mesh)
    typed = [()] * targets.ndim
    if explicit:
        both = zip(entries(hidden), entries(targets), strict=False)
        typed = [first or second for first, second in both]
    given = [names(entry) for entry in spec] + [()] * (targets.ndim - len(spec))
    tokens = [
        (*a, *(n for n in b if n not in a)) for a, b in zip(typed, given, strict=True)
    ]
    over_tokens = {name for entry in tokens for name in entry}
    words = entries(unembed)[vocab_dim] if explicit else ()
    if missing := (set(asked) & explicit) - set(words):
        raise ValueError(
            f"{fn}: `vocab_axis` = {vocab_axis!r}, but `unembed` is of type "
            f"{jax.typeof(unembed)}, its words not sharded over {sorted(missing)}; "
            "shard them, or leave `vocab_axis` out."
        )
    words = [*words, *(name for name in asked if name not in words)]
    if both := set(asked) & over_tokens:
        raise ValueError(
            f"{fn}: both tokens and words are sharded over {sorted(both)}; each device "
            "needs all words of its tokens, or all tokens for its words."
        )
    words = tuple(name for name in words if name not in over_tokens)
    if not words and not over_tokens and not explicit:
        return None
    for name, size, axes in [
        *(("tokens", *pair) for pair in zip(targets.shape, tokens, strict=True)),
        ("words", unembed.shape[vocab_dim], words),
    ]:
        count = math.prod(mesh.shape[axis] for axis in axes)
        if size % count:
            raise ValueError(
                f"{fn}: {size} {name} do not divide over the {count} devices of "
                f"{axes}; pad them to {size + -size % count}"
                + (" with a bias of -inf." if name == "words" else " with mask 0.")
            )
    return Shards(mesh, tuple(entry or None for entry in tokens), words)


def mesh_of(*arrays: Any) -> AbstractMesh | Mesh | None:
    """The mesh of explicitly sharded arrays, or else the one that is set; or None."""
    for x in arrays:
        if isinstance(x, jax.Array) and not (mesh := jax.typeof(x).sharding.mesh).empty:
            return mesh
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh
