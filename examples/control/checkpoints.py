"""Checkpoints that a killed process cannot tear and a flipped bit cannot pass.

Orbax writes each one to a temporary folder and renames it when it is whole. What it
does not do is notice damage to a finished one, so a checksum goes with it; a checkpoint
that does not match is passed over for the one before it.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

Tree = TypeVar("Tree")


class Checkpoints:
    """The checkpoints of one run, in one folder; the last few are kept."""

    def __init__(self, folder: Path, keep: int = 3):
        """Open the folder, or make it."""
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False
            ),
        )

    def save(self, step: int, state: Any) -> None:
        """Write a pytree of arrays; when this returns, it is on disk."""
        if step in self._manager.all_steps():  # a damaged one that was passed over
            self._manager.delete(step)
        leaves = _leaves(state)
        meta = {"sha256": _checksum(leaves), "tree": _layout(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(self, like: Tree) -> tuple[int, Tree] | None:
        """The newest sound checkpoint and its step; None if there is none.

        Args:
            like: a pytree of arrays (or of their shapes) as it was saved.

        Raises:
            ValueError: a checkpoint is sound but of another layout.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                items = ocp.args.Composite(
                    state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
                )
                saved = self._manager.restore(step, args=items)
                leaves = saved["state"]
                if _checksum(leaves) != saved["meta"]["sha256"]:
                    raise ValueError("its checksum does not match")
            except Exception as error:  # whatever a damaged file makes its reader raise
                warnings.warn(
                    f"checkpoint {step} is damaged ({error}); trying the one before it",
                    stacklevel=2,
                )
                continue
            if saved["meta"]["tree"] != _layout(like):
                raise ValueError(
                    f"checkpoint {step} is of a run with other options or of another "
                    "version: its arrays differ in name, shape or dtype."
                )
            return step, _tree(like, leaves)
        return None

    def close(self) -> None:
        """Let go of the folder."""
        self._manager.close()


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _leaves(state: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves(state)
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in leaves]
    return {f"{i:04d}": np.asarray(x) for i, x in enumerate(leaves)}


def _tree(like: Tree, leaves: dict[str, np.ndarray]) -> Tree:
    old, structure = jax.tree.flatten(like)
    new = [jnp.asarray(leaves[name]) for name in sorted(leaves)]
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


def _checksum(leaves: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(leaves.items()):
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
