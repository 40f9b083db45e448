"""What a run leaves to look at: its learning curve, and an episode before and after."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import curves
from PIL import Image, ImageDraw

HEALTH = ("approx_kl", "clip_fraction", "entropy", "explained_variance")


def curve(name: str, rows: list[dict[str, Any]], goal: float, path: Path) -> None:
    """The learning curve, of all seeds."""
    keys = ["eval_return", *HEALTH]
    names = [key.replace("_", " ") for key in keys]
    # Another system's loss has other metrics.
    found = [[row[key] for row in rows] if key in rows[0] else None for key in keys]
    steps = [row["step"] for row in rows]
    figure = curves.draw(steps, dict(zip(names, found, strict=True)))
    main, seeds = figure.axes[0], len(rows[0]["eval_return"])
    main.axhline(goal, color="tab:red", lw=1, ls="--")
    at = steps[0], goal  # in sight, however short the run
    main.annotate(f"goal {goal:g}", at, color="tab:red", fontsize=9, va="bottom")
    main.set_title(
        f"{name}: mean return of 100 fresh episodes"
        + (f", median and quartiles of {seeds} seeds" if seeds > 1 else ""),
        loc="left",
    )
    main.set_xlabel("environment steps")
    figure.savefig(path, dpi=120)


SIZE = 240  # of a frame, in points
FINER = 3  # drawn so many times as large, for smooth edges
INK, RED, GREY = (40, 40, 48), (205, 70, 60), (190, 190, 198)


def episodes(name: str, before: np.ndarray, after: np.ndarray, path: Path) -> None:
    """Two episodes side by side, as they go.

    Args:
        name: a key of `DRAWN`.
        before: observations `(time, size)` up to the end of the episode.
        after: those of another.
        path: of the GIF.
    """
    frames = []
    for time in range(0, max(len(before), len(after)), 2):
        frame = Image.new("RGB", (2 * SIZE * FINER, SIZE * FINER), "white")
        for place, obs in enumerate((before, after)):
            pen = Pen(ImageDraw.Draw(frame), place)
            DRAWN[name](pen, obs[min(time, len(obs) - 1)])
            when = min(time, len(obs) - 1)
            pen.text(f"{('before', 'after')[place]}: step {when}")
        frames.append(frame.resize((2 * SIZE, SIZE), Image.Resampling.LANCZOS))
    first, *rest = (frame.quantize(32) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=40, loop=0)


class Pen:
    """Draws in units of the scene: (0, 0) in the middle, 1 to each edge."""

    def __init__(self, draw: ImageDraw.ImageDraw, place: int):
        """On the first or the second half of a frame."""
        self.draw, self.place = draw, place

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of the frame."""
        half = SIZE * FINER / 2
        return half * (1 + x) + self.place * 2 * half, half * (1 - y)

    def line(
        self, points: Sequence[tuple[float, float]], width: int, color: Any
    ) -> None:
        """Through the points."""
        self.draw.line([self.at(*p) for p in points], color, width * FINER)

    def dot(self, x: float, y: float, size: int, color: Any) -> None:
        """A filled circle."""
        x, y = self.at(x, y)
        size *= FINER
        self.draw.ellipse((x - size, y - size, x + size, y + size), color)

    def text(self, words: str) -> None:
        """In the corner."""
        self.draw.text(self.at(-0.95, 0.95), words, INK, font_size=11 * FINER)


def cartpole(pen: Pen, obs: np.ndarray) -> None:
    """The track, the cart and the pole."""
    x, angle = obs[0] / 2.4, obs[2]
    pen.line([(-1, -0.5), (1, -0.5)], 1, GREY)
    pen.line([(x - 0.18, -0.42), (x + 0.18, -0.42)], 16, INK)
    tip = x + 0.9 * math.sin(angle), -0.38 + 0.9 * math.cos(angle)
    pen.line([(x, -0.38), tip], 5, RED)


def pendulum(pen: Pen, obs: np.ndarray) -> None:
    """The rod; upright is the goal."""
    cos, sin, _ = obs
    pen.line([(0, 0), (-0.8 * sin, 0.8 * cos)], 9, RED)
    pen.dot(0, 0, 5, INK)


def acrobot(pen: Pen, obs: np.ndarray) -> None:
    """Both links, and the line that the tip must reach."""
    cos1, sin1, cos2, sin2, *_ = obs
    pen.line([(-1, 0.45), (1, 0.45)], 1, GREY)
    elbow = 0.45 * sin1, -0.45 * cos1
    sin, cos = sin1 * cos2 + cos1 * sin2, cos1 * cos2 - sin1 * sin2
    tip = elbow[0] + 0.45 * sin, elbow[1] - 0.45 * cos
    pen.line([(0, 0), elbow, tip], 6, RED)
    for x, y in ((0, 0), elbow):
        pen.dot(x, y, 5, INK)


def mountain_car(pen: Pen, obs: np.ndarray) -> None:
    """The valley, the car and the flag."""
    place = lambda x: ((x + 0.3) / 0.95, 0.55 * math.sin(3 * x) - 0.1)
    pen.line([place(x) for x in np.linspace(-1.2, 0.6, 60)], 2, GREY)
    x, y = place(0.5)
    pen.line([(x, y), (x, y + 0.25)], 2, INK)
    x, y = place(float(obs[0]))
    pen.dot(x, y + 0.04, 8, RED)


DRAWN: dict[str, Callable[[Pen, np.ndarray], None]] = {
    "cartpole": cartpole,
    "pendulum": pendulum,
    "acrobot": acrobot,
    "mountain_car": mountain_car,
}
"""How an observation looks, by the name of a run."""
