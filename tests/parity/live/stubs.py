"""Stand-ins for what the systems import beside their losses, and never call there.

A launcher, a tokenizer, an inference engine: all absent here. A stand-in answers any
import and any attribute, may be subclassed, used as a decorator, a context or a type.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types

ABSENT = frozenset(
    """
    PIL accelerate aiohttp bitsandbytes codetiming colorlog comet_ml datasets deepspeed
    flash_attn flask grain httpx huggingface_hub hydra lark loguru megatron metrax
    mlflow numba openai pandas peft perfetto psutil pyarrow pybase64 pylatexenc qwix ray
    requests ring_flash_attn safetensors sentencepiece swanlab tabulate tenacity
    tensorboardX torchdata tqdm trackio transformers triton urllib3 uvloop vllm
    vllm_router wandb werkzeug zmq
    """.split()
)
SYSTEMS = frozenset("areal liger_kernel openrlhf prime_rl tunix trl verl".split())


class Answering(type):
    """A class whose every public attribute is one more stand-in class."""

    def __getattr__(cls, name):
        return stand_in(name)

    def __or__(cls, other):
        return cls

    __ror__ = __or__

    def __add__(cls, other):
        return other

    __radd__ = __add__

    def __iter__(cls):
        return iter(())

    def __len__(cls):
        return 0


class StandIn(metaclass=Answering):
    """Callable, subscriptable, usable in `with`; decorating leaves a function as is."""

    def __init__(self, *args, **kwargs):
        pass

    def __init_subclass__(cls, **kwargs):
        pass

    def __class_getitem__(cls, parameters):
        return cls

    def __call__(self, *args, **kwargs):
        return next(filter(callable, args[:1]), self)

    def __getattr__(self, name):
        return stand_in(name)()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return False


def stand_in(name):
    """A fresh stand-in class; special names stay missing, so that probing works."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Answering(name, (StandIn,), {})


class EmptyModule(types.ModuleType):
    """A package with every sub-module and every attribute."""

    __version__ = "99.0"

    def __getattr__(self, name):
        return stand_in(name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, so that a package which is installed stays itself.

    Answers the systems alone: to pandas, say, that looks for pyarrow, none is there.
    """

    def find_spec(self, name, path=None, target=None):
        """Ours, if one of the systems imports one of the absent packages."""
        if root(name) in ABSENT and root(importer(sys._getframe())) in SYSTEMS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        """Without content."""
        return EmptyModule(spec.name)

    def exec_module(self, module):
        """Has nothing to run."""


def root(name):
    """The package that a module is in."""
    return name.partition(".")[0]


def importer(frame):
    """The module whose code, by however many steps of importlib, imports something."""
    while (frame := frame.f_back) and root(frame.f_globals["__name__"]) == "importlib":
        pass
    return frame.f_globals["__name__"] if frame else ""


@contextlib.contextmanager
def stubbed():
    """Within it, what the systems want and is not installed is a stand-in."""
    finder = Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        ours = [name for name, m in sys.modules.items() if isinstance(m, EmptyModule)]
        for name in ours:
            del sys.modules[name]
