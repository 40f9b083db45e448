"""Devices: a mesh from text, and several processes that share one."""

import math
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from .signals import Left


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Become one of several processes; call it before anything runs on JAX.

    Args:
        coordinator: address of process 0, such as 10.0.0.1:1234; None if it is alone.
        processes: how many there are, or None where the cluster says so.
        process: which of them this is, likewise.
    """
    if coordinator:
        # JAX would take SIGTERM for itself, and not end by it; see signals.py.
        jax.config.update("jax_enable_preemption_service", False)
        # One that is silent for so long is gone, and the others end.
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=50
        )
    elif (processes, process) != (None, None):
        raise ValueError(
            "--processes and --process, but no --coordinator for them to meet at."
        )


def mesh(text: str, axes: tuple[str, ...], explicit: bool = False) -> Mesh | None:
    """A mesh from text such as "data=2,tensor=4"; an axis left out has size 1.

    Args:
        text: axes and their sizes, whose product is the number of devices.
        axes: the names there are, the last between devices that are closest.
        explicit: shardings are part of the arrays' types.

    Returns:
        The mesh; None if none is asked for and one process is all there is.
    """
    if not text and jax.process_count() == 1:
        return None
    sizes = dict.fromkeys(axes, 1)
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if name not in axes or not size.isdecimal() or int(size) < 1:
            example = f"{axes[0]}=2,{axes[-1]}=4"
            raise ValueError(f"--mesh {text!r}: expected something like {example}.")
        sizes[name] = int(size)
    needed, there = math.prod(sizes.values()), jax.device_count()
    if needed != there:
        on_cpu = f"XLA_FLAGS=--xla_force_host_platform_device_count={needed}"
        cores = jax.default_backend() == "cpu" and jax.process_count() == 1
        raise ValueError(
            f"--mesh {text!r} has {needed} devices, and there are {there}. Fix: sizes "
            f"whose product is {there}"
            + (f"; or set {on_cpu}, for devices that share a CPU." if cores else ".")
        )
    kind = AxisType.Explicit if explicit else AxisType.Auto
    return jax.make_mesh(tuple(sizes.values()), axes, axis_types=(kind,) * len(axes))


@contextmanager
def together() -> Iterator[None]:
    """Of several processes, one that fails ends at once, and so do the others.

    Else it would wait, as it ends, for the others, and they for it.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1 or isinstance(error, Left):
            raise
        traceback.print_exc()
        # Such as "UNKNOWN: Gloo all-reduce failed", which may be a ValueError, too.
        if re.match(r"[A-Z_]+: ", str(error)):
            print("Another process may have ended, or be out of reach.")
        here = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"{here} ends. Start all of them again, with --resume.", flush=True)
        os._exit(1)


def agreed(path: Path) -> Path:
    """The path that process 0 has, in every process."""
    if jax.process_count() == 1:
        return path
    name = np.frombuffer(str(path.absolute()).encode().ljust(4096), np.uint8)
    name = np.asarray(multihost_utils.broadcast_one_to_all(name))
    return Path(name.tobytes().decode().rstrip())
