"""SIGTERM and Ctrl-C: a run ends at its next step, saved, instead of where it is."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held() -> Iterator[Callable[[], int]]:
    """Holds signals back; what it yields tells which has come, 0 if none has.

    The second one ends the process at once. Of several processes, all must ask, and
    all get one answer, whichever of them the signal came to.
    """
    came = 0

    def note(number: int, _: Any) -> None:
        nonlocal came
        came = number
        for each, handler in before.items():
            signal.signal(each, handler)
        name = signal.Signals(number).name
        said = f"\n{name}: will save, and end, after this step.\n"
        with suppress(OSError):  # a handler must neither raise nor wait for a lock
            os.write(2, said.encode())

    def asked() -> int:
        if jax.process_count() == 1:
            return came
        return int(np.max(multihost_utils.process_allgather(np.int32(came))))

    # Python leaves signals to its main thread; elsewhere there is nothing to hold.
    main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in SIGNALS if main}
    for each in before:
        signal.signal(each, note)
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


class Left(SystemExit):
    """Saved, and gone as the signal would have it.

    Its exit code is not 0: what comes after a finished run must not come after this.
    """


def leave(number: int, out: Path) -> None:
    """Ends the process, saying how to go on."""
    tqdm.write(f"saved. Go on with --resume {out}")
    raise Left(128 + number)
