"""Rewards as users write them; a process of their own has to find them by name."""

import os
import time


def by_name(answer, completion):
    """What the completion asks for."""
    if completion == "raise":
        raise KeyError("no such thing")
    if completion == "hang":
        time.sleep(60)
    if completion == "die":
        os._exit(3)
    return {"nan": float("nan"), "none": None, "inf": float("inf")}.get(
        completion, answer
    )


def at_times(answer, completion):
    """Fails in every way, by the completion's first letter."""
    kind = ord(completion[:1] or "a") % 8
    if kind < 4:
        return by_name(answer, ["raise", "hang", "nan", "die"][kind])
    return float(kind > 5)
