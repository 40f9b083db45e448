"""Checkpoints that a killed process cannot tear and a changed number cannot pass.

Orbax writes each one to a temporary folder and renames it when it is whole; arrays that
are spread over devices and processes, each process its own part. What it does not do is
notice damage to a finished one, so a checksum goes with it; a checkpoint that does not
match is passed over for the one before it. The run's options go with it, too: a file of
options that was changed, or damaged, does not make another run of this one.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

Tree = TypeVar("Tree")
Read = TypeVar("Read")


class Checkpoints:
    """The checkpoints of one run, in one folder; the last few are kept."""

    def __init__(self, folder: Path, options: dict[str, Any], keep: int = 3):
        """Open the folder, or make it.

        Args:
            folder: for the checkpoints alone.
            options: what determines the run, as JSON has it.
            keep: how many of them to keep.

        Raises:
            ValueError: a checkpoint's own description is damaged.
        """
        self._folder, self._options = folder.absolute(), options
        self._passed_over: list[int] = []
        how = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=how)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"a checkpoint in {self._folder} is damaged such that it can't even be "
                f"passed over ({error}). Delete it to go on from the one before."
            ) from error

    def save(self, step: int, state: Any) -> None:
        """Write a pytree of arrays; when this returns, it is on disk.

        Raises:
            OSError: it could not be written; those before it are as they were.
        """
        for damaged in self._passed_over:
            self._manager.delete(damaged)
        self._passed_over = []
        if step in self._manager.all_steps():
            return  # a run that was stopped again where it was resumed
        leaves = _leaves(state)
        meta = json.dumps(
            {
                "checksum": _checksum(leaves),
                "tree": _layout(state),
                "options": self._options,
            }
        )
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves),
            meta=ocp.args.JsonSave({"of": meta, "sha256": _sha256(meta)}),
        )
        try:
            # Orbax cuts up each device's part by itself: JAX 0.8 refuses it on a mesh.
            with jax.set_mesh(Mesh(np.empty((), object), ())):
                saved = self._manager.save(step, args=args)
        except jax.errors.JaxRuntimeError:  # a device's, or another process's
            raise
        except Exception as error:  # its writer has errors of its own for a full disk
            raise OSError(self._unwritten(step, str(error))) from error
        if not saved:
            raise OSError(self._unwritten(step, "Orbax would not"))

    def restore(self, like: Tree) -> tuple[int, Tree] | None:
        """The newest sound checkpoint and its step; None if there are none at all.

        Args:
            like: a pytree as it was saved, of arrays or of their shapes and shardings:
                they may be spread in another way than those that were saved.

        Raises:
            ValueError: a checkpoint is sound but of other options or arrays, or none
                is sound.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                meta = _in_all(lambda step=step: self._meta(step, like))
                leaves = _in_all(lambda step=step: self._arrays(step, like))
                if _checksum(leaves) != meta["checksum"]:
                    raise _Damaged("its checksum does not match")
            except _Damaged as error:
                warnings.warn(
                    f"checkpoint {step} is damaged ({error}); trying the one before it",
                    stacklevel=2,
                )
                self._passed_over.append(step)
                continue
            return step, _tree(like, leaves)
        if steps:
            raise ValueError(
                f"none of the checkpoints {steps} in {self._folder} can be read, as "
                "the warnings say. To begin again, start a run in another folder."
            )
        return None

    def close(self) -> None:
        """Let go of the folder."""
        self._manager.close()

    def _meta(self, step: int, like: Any) -> dict[str, Any]:
        """What goes with the arrays, if it is of this run."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=args)["meta"]
        if _sha256(meta["of"]) != meta["sha256"]:
            raise _Damaged("the checksum of its description does not match")
        meta = json.loads(meta["of"])
        for name, then in meta["options"].items():  # new ones have been stated
            if (now := self._options.get(name)) != then:
                raise _OtherRun(
                    f"checkpoint {step} is of a run with {name} = {then}, not {now}. "
                    "If config.json was changed, change it back."
                )
        if meta["tree"] != _layout(like):
            raise _OtherRun(
                f"checkpoint {step} in {self._folder} is of a run of another version: "
                "its arrays differ in name, shape or dtype."
            )
        return meta

    def _arrays(self, step: int, like: Any) -> dict[str, jax.Array]:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_wanted(like)))
        return self._manager.restore(step, args=args)["state"]

    def _unwritten(self, step: int, why: str) -> str:
        kept = sorted(self._manager.all_steps(read=True))
        return (
            f"checkpoint {step} could not be written to {self._folder} ({why}). "
            f"Checkpoints {kept} are intact. Free space, then continue with --resume "
            f"{self._folder.parent}"
        )


class _OtherRun(ValueError):
    """Not damage: a checkpoint of something else."""


class _Damaged(ValueError):
    """Not as it was written."""


def _in_all(attempt: Callable[[], Read]) -> Read:
    """What it gives; damage if any process found some, so that all pass it over."""
    result, error = None, None
    try:
        result = attempt()
    except (_OtherRun, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as found:  # whatever a damaged file makes its reader raise
        # A file that may not be read, or one too many, is no damage.
        if isinstance(found, OSError) and not isinstance(found, FileNotFoundError):
            raise
        error = str(found)
    everywhere = np.asarray(
        multihost_utils.process_allgather(np.asarray(error is not None))
    )
    if np.any(everywhere):
        raise _Damaged(error or "in another process")
    return cast(Read, result)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _leaves(state: Any) -> dict[str, jax.Array]:
    leaves = jax.tree.leaves(state)
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in leaves]
    return {f"{i:04d}": x for i, x in enumerate(leaves)}


def _wanted(like: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what was saved, and where they are to go."""
    shapes = jax.eval_shape(_leaves, like)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def one(shape: jax.ShapeDtypeStruct, x: Any) -> jax.ShapeDtypeStruct:
        place = getattr(x, "sharding", None) or here
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    pairs = zip(shapes.items(), jax.tree.leaves(like), strict=True)
    return {name: one(shape, x) for (name, shape), x in pairs}


def _tree(like: Tree, leaves: dict[str, jax.Array]) -> Tree:
    old, structure = jax.tree.flatten(like)
    new = [leaves[name] for name in sorted(leaves)]
    new = [
        jax.random.wrap_key_data(n) if _is_key(o) else n
        for o, n in zip(old, new, strict=True)
    ]
    return jax.tree.unflatten(structure, new)


def _layout(state: Any) -> dict[str, str]:
    """Name, shape and dtype of every array."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in paths
    }


def _checksum(leaves: dict[str, jax.Array]) -> dict[str, int]:
    """Of every array, on its devices: the same however it is spread."""
    return {name: int(_sum_of_bits(x)) for name, x in leaves.items()}


@jax.jit
def _sum_of_bits(x: jax.Array) -> jax.Array:
    """Its words, each times an odd number of its place, modulo 2^32.

    Every single flipped bit changes it (an odd multiple of a power of 2 is not 0).
    """
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    size = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, size).astype(jnp.uint32)
    odd = jnp.ones((), jnp.uint32)
    for axis in range(words.ndim):  # a place is mixed of its coordinates
        step = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        odd = odd * jnp.uint32(2654435761) + jnp.uint32(2) * step
    return jnp.sum(words * odd, dtype=jnp.uint32)
