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
