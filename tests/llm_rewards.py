"""Rewards as users write them; a process of their own has to find them by name."""

import os
import sys
import time


def by_name(answer, completion):
    """What the completion asks for."""
    if completion == "raise":
        raise KeyError("no such thing")
    if completion == "hang":
        time.sleep(60)
    if completion == "slow":
        time.sleep(0.2)
    if completion == "die":
        os._exit(3)
    if completion == "exit":
        sys.exit(3)
    if completion == "unsendable":
        raise Unsendable(1, 2)
    odd = {"nan": float("nan"), "none": None, "inf": float("inf"), "huge": 1e300}
    odd |= {"many": [1.0, 2.0], "one of many": [1.0], "text": "1"}
    return odd.get(completion, answer)


class Unsendable(Exception):
    """As in many a client of a service: it can't be unpickled."""

    def __init__(self, status, reason):
        super().__init__(f"{status} {reason}")


def at_times(answer, completion):
    """Fails in every way, by the completion's first letter."""
    kind = ord(completion[:1] or "a") % 8
    if kind < 6:
        ways = ["raise", "hang", "nan", "die", "many", "text"]
        return by_name(answer, ways[kind])
    return float(kind > 6)
