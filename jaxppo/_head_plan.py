"""How a language model's head is computed: which mode, in blocks of what size."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax

from . import _checks

Mode = Literal["auto", "recompute", "cached", "reference"]
PLATFORMS = "cpu", "gpu", "tpu", "cuda", "rocm"


class HeadPlan(NamedTuple):
    """How a head is computed: what `head_plan` returns.

    Attributes:
      mode: "recompute", "cached" or "reference".
      vocab_block: words whose logits exist at a time.
      token_block: tokens, likewise; masked tokens are left out in units of it.

    Example:
      >>> import jaxppo
      >>> plan = jaxppo.head_plan(8192, 151_936, 4096, platform="gpu")
      >>> plan.mode, plan.vocab_block * plan.token_block * 4 // 2**20  # MiB of logits
      ('recompute', 64)
    """

    mode: str
    vocab_block: int
    token_block: int


def head_plan(
    num_tokens: int,
    vocab_size: int,
    hidden_size: int,
    *,
    masked: bool = False,
    mode: Mode = "auto",
    vocab_block: int | None = None,
    token_block: int | None = None,
    cache_bytes: int = 2**30,
    platform: str | None = None,
) -> HeadPlan:
    """How `token_log_probs` goes about a head of this size, on one device.

    Args:
      num_tokens: on this device, all leading axes together.
      vocab_size: on this device.
      hidden_size: d.
      masked: whether there is a mask.
      mode: as there.
      vocab_block: as there.
      token_block: as there.
      cache_bytes: as there.
      platform: "cpu", "gpu" or "tpu"; None: JAX's default.

    Returns:
      `HeadPlan(mode, vocab_block, token_block)`.

    Raises:
      TypeError: a size is not an integer.
      ValueError: a size is below 1, or there is no such mode.

    Example:
      >>> import jaxppo
      >>> jaxppo.head_plan(8192, 151936, 4096, platform="gpu")
      HeadPlan(mode='recompute', vocab_block=4096, token_block=4096)
    """
    fn = "head_plan"
    for name, size in [
        ("num_tokens", num_tokens),
        ("vocab_size", vocab_size),
        ("hidden_size", hidden_size),
    ]:
        _checks.count(fn, name, size)
    if platform not in (None, *PLATFORMS):
        raise ValueError(
            f"{fn}: `platform` = {platform!r}; expected one of {PLATFORMS}."
        )
    check_options(fn, mode, vocab_block, token_block, cache_bytes)
    on_cpu = (platform or jax.default_backend()) == "cpu"
    if mode == "auto":
        # Where d is small, a product costs less than its result's way to memory.
        worth = hidden_size >= (512 if on_cpu else 1)
        fits = 4 * num_tokens * vocab_size <= cache_bytes
        mode = "cached" if worth and fits else "recompute"
    # Masked tokens are left out a block at a time: smaller ones leave out more.
    if on_cpu:  # 2 MiB stay in the processor's cache
        tokens, words = (128, 4096) if masked else (1024, 512)
    else:
        tokens, words = (2048 if masked else 4096), 4096
    return HeadPlan(
        mode,
        min(vocab_block or words, vocab_size),
        min(token_block or tokens, num_tokens),
    )


def check_options(
    fn: str,
    mode: str,
    vocab_block: int | None,
    token_block: int | None,
    cache_bytes: int,
) -> None:
    """Raises, in the name of the function called, if there is no such plan."""
    _checks.count(fn, "cache_bytes", cache_bytes)
    for name, block in [("vocab_block", vocab_block), ("token_block", token_block)]:
        if block is not None:
            _checks.count(fn, name, block)
    if mode not in (modes := get_args(Mode)):
        raise ValueError(f"{fn}: `mode` = {mode!r}; expected one of {modes}.")
