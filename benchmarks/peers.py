"""The heads of torch libraries, their own code, as far as they are installed.

Each is `head(hidden, unembed, targets) -> (log_probs, entropy)`, entropy None where it
has no gradient. What they import and do not use here may be a stand-in of the tests'.
"""

import contextlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))

from parity.live import stubs


def heads() -> tuple[dict[str, Callable], dict[str, str]]:
    """By name and version; and why the others are not there."""
    found, missing = {}, {}
    for name, (package, make) in HEADS.items():
        try:
            with stubs.stubbed():
                import torch  # so that without it all are missing

                torch.set_num_threads(1)
                found[f"{name} {version_of(package)}".strip()] = make()
        except Exception as why:  # of any kind: their imports do as they please
            missing[name] = f"{type(why).__name__}: {why}"
    return found, missing


def version_of(package: str) -> str:
    """Empty if it is on the path without having been installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def torch_naive():
    """What everyone writes first."""

    def head(hidden, unembed, targets):
        log_p = (hidden @ unembed.T).log_softmax(-1)
        log_probs = log_p.gather(-1, targets[:, None])[:, 0]
        return log_probs, -(log_p.exp() * log_p).sum(-1)

    return head


def verl():
    """Chunks of 512 tokens."""
    from verl.utils.experimental import torch_functional

    if isinstance(sys.modules.get("flash_attn"), stubs.EmptyModule):
        torch_functional._FLASH_ATTN_CROSS_ENTROPY_AVAILABLE = False
    return torch_functional.FusedLinearForPPO()


def trl():
    """Tiles of 4096 tokens and 32768 words, as `add_fused_lm_head` calls it."""
    import trl.trainer.utils as utils
    from trl.kernels import chunked_logprob

    # It asks transformers whether DeepSpeed has sharded the weights, at every call.
    utils.maybe_gather_lm_head_ctx = lambda *weights: contextlib.nullcontext()
    apply = chunked_logprob.ChunkedLogProbFunction.apply
    size = utils._CHUNKED_LOGPROB_CHUNK_SIZE

    def head(hidden, unembed, targets):
        args = hidden, unembed, None, targets, 1.0, size, None, 1.0, ("entropy",)
        return apply(*args)[:2]

    return head


def prime_rl():
    """Chunks of 8192 tokens and 8192 words; no gradient to entropy."""
    import prime_rl
    import torch

    # By its file: its package imports every model.
    name = "prime_rl.trainer.models.layers.lm_head"
    path = pathlib.Path(*prime_rl.__path__, *name.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    apply = module._SequenceChunkedLogProbEntropyFn.apply

    def head(hidden, unembed, targets):
        ones = torch.ones(len(targets))
        return apply(hidden, unembed, targets, ones, 8192)[0], None

    return head


def liger():
    """The log-probs inside its fused GRPO loss: 2048 tokens, 4096 words; no entropy."""
    from liger_kernel.chunked_loss import fused_linear_ppo

    apply = fused_linear_ppo._ChunkedSelectiveLogProbFunction.apply
    size = fused_linear_ppo._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
    return lambda h, w, targets: (apply(h, w, targets, None, 1.0, size), None)


HEADS = {
    "torch, float32 logits": ("torch", torch_naive),
    "verl FusedLinearForPPO": ("verl", verl),
    "TRL ChunkedLogProb": ("trl", trl),
    "prime-rl FusedOutputLinear": ("prime-rl", prime_rl),
    "Liger chunked log-prob": ("liger-kernel", liger),
}
