"""Logits of transformers for tests/test_llm_model.py; where it is installed:

PYTHONPATH=examples:tests python -m hf.record
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from llm import tiny, weights
from llm.model import Training
from llm_models import FAMILIES, TEXT, built, tiny_ids

OUT = Path(__file__).parents[1] / "data" / "llm_logits.npz"


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor(ids)).logits.numpy()


def exported(family, folder):
    """A tiny model as a folder of ours, read by transformers."""
    _, params = built(family)
    config = FAMILIES[family]
    weights.export(folder, config, Training(), params, tiny.tokenizer(), (0, 1))
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )


def smollm2():
    path = weights.smollm2()
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )


def smollm2_ids():
    return weights.read(weights.smollm2()).tokenizer.encode(TEXT).ids


def main():
    import tempfile

    found = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found[family] = logits(exported(family, Path(folder)), tiny_ids())
    ids = smollm2_ids()
    (real,) = logits(smollm2(), [ids])
    found["smollm2_ids"] = np.array(ids)
    found["smollm2"] = real[:, ::97]  # every 97th word
    found["smollm2_likeliest"] = real.argmax(-1)
    np.savez_compressed(OUT, **found)
    print({k: v.shape for k, v in found.items()}, "->", OUT.name)


if __name__ == "__main__":
    main()
