"""Draw the gallery of docs/gallery.md: losses, gradients, estimators and weights.

    python examples/gallery.py
    python examples/gallery.py --out docs  # the pictures that the documentation shows
    python examples/gallery.py --old-prob 0.1 --samples 1000

Every curve and number is computed by the library as it is drawn; how, is in
examples/pictures/.
"""

import dataclasses
import io
import pathlib
from collections.abc import Callable

import tyro
from matplotlib.figure import Figure
from pictures import aggregation, critics, divergences, surrogates
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Options:
    """Where to draw it, of which token, and from how many samples."""

    out: pathlib.Path = pathlib.Path("runs/gallery")
    """The folder of the pictures."""
    old_prob: float = 0.3
    """Probability of the token under the old policy."""
    samples: int = 100_000
    """Samples that estimate the KL divergence."""


PICTURES: dict[str, Callable[[Options], Figure]] = {
    "gallery.png": lambda o: surrogates.everything(o.old_prob),
    "gallery/clip.png": lambda o: surrogates.family("clip", o.old_prob),
    "gallery/weigh.png": lambda o: surrogates.family("weigh", o.old_prob),
    "gallery/bound.png": lambda o: surrogates.family("bound", o.old_prob),
    "gallery/values.png": lambda o: critics.values(),
    "gallery/critics.png": lambda o: critics.distributions(),
    "gallery/kl.png": lambda o: divergences.along_the_ratio(),
    "gallery/kl_sampled.png": lambda o: divergences.sampled(o.samples),
    "gallery/aggregation.png": lambda o: aggregation.draw(),
}


def save(figure: Figure, path: pathlib.Path) -> None:
    """As 96 colours, which the eye does not tell from all: a third of the size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as file:
        figure.savefig(file)
        picture = Image.open(file).convert("RGB").quantize(96)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    for name, draw in PICTURES.items():
        path = options.out / name
        save(draw(options), path)
        print(f"Drawn: {path}")
