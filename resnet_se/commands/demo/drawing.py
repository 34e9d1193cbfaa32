"""Answers as HTML, their pictures inside: nothing of a visitor's lies on disk.

Class names and messages may be untrusted: the template escapes them.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from resnet_se.analysis.canvas import COVER, EVIDENCE
from resnet_se.commands.demo.panels import Answer, ModelPanel

TOP = 5  # classes
PHOTO = 480  # pixels of a photograph's longer side: twice what it takes on the page
SCALE = 6  # of small pictures, so that a map's shades have room
INK = "#8a8f98"  # legible on white and on black
STAGES = ("#4c8fd6", "#e0852b", "#4aa564", "#a56cc1")


def invitation(panel: ModelPanel) -> str:
    """Return a network's card before it has a picture."""
    return _TEMPLATE.render(title=panel.title, facts=panel.facts, classes=panel.classes)


def card(panel: ModelPanel, answer: Answer, photo: Image.Image, missing: str) -> str:
    """Return a network's answer on a photograph.

    Args:
        missing: why there are no mistakes, where there are none.
    """
    height, width = answer.picture.shape[1:]
    return _TEMPLATE.render(
        title=panel.title,
        facts=panel.facts,
        photo=uri(_fitted(photo)),
        chances=list(answer.chances.items())[:TOP],
        picture=uri(picture(answer.picture)),
        size=f"{width} × {height}",
        maps=[(name, uri(overlay(answer.picture, m))) for name, m in answer.maps],
        gates=uri(gates_figure(answer.gates)) if answer.gates else "",
        nearest=[
            {**m._asdict(), "image": uri(picture(m.image))} for m in answer.nearest
        ],
        missing=missing or "it makes none in this test set, or has seen another",
    )


_TEMPLATE = jinja2.Environment(autoescape=True).from_string(
    Path(__file__).with_name("answer.html.j2").read_text(encoding="utf-8")
)


def uri(image: Image.Image) -> str:
    """Return a PNG inside of an HTML page."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(pixels: Tensor) -> Image.Image:
    """Return pixels, uint8 (3, H, W), as an image."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())  # (H, W, 3)


def _fitted(photo: Image.Image) -> Image.Image:
    """Return it no longer than PHOTO; a small one larger, its pixels whole."""
    longer = max(photo.size)
    if longer > PHOTO:
        shrunk = photo.copy()
        shrunk.thumbnail((PHOTO, PHOTO))
        return shrunk
    times = PHOTO // longer
    size = photo.width * times, photo.height * times
    return photo.resize(size, Image.Resampling.NEAREST)


def overlay(pixels: Tensor, evidence: Tensor) -> Image.Image:
    """Blend pixels, uint8 (3, h, w), with a map (H, W) in 0..1: bright is evidence."""
    size = [side * SCALE for side in evidence.shape]
    below = F.interpolate(pixels[None].float() / 255, size, mode="nearest")[0]
    smooth = F.interpolate(evidence[None, None], size, mode="bilinear")[0, 0]
    colours = matplotlib.colormaps[EVIDENCE](smooth.numpy())[..., :3]  # (H, W, 3)
    mixed = (1 - COVER) * below.permute(1, 2, 0).numpy() + COVER * colours
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def gates_figure(stages: list[list[Tensor]]) -> Image.Image:
    """Draw a column a block: each channel's gate a dot, their mean a bar."""
    blocks = sum(map(len, stages))
    figure = Figure(figsize=(4.6, 2.4), layout="constrained")
    axis = figure.subplots()
    at, ticks = 0, []
    # A gate may be up to `gate_scale`.
    top = max(1.0, *(float(gates.max()) for stage in stages for gates in stage))
    for number, stage in enumerate(stages):
        colour = STAGES[number % len(STAGES)]
        ticks.append((at + (len(stage) - 1) / 2, f"stage {number + 1}"))
        for gates in stage:
            # Spread by order, not by chance: the same picture gives the same plot.
            spread = (torch.arange(len(gates)) * 0.618 % 1 - 0.5) * 0.7
            axis.scatter(at + spread, gates, 14, colour, alpha=0.45, linewidths=0)
            axis.hlines(gates.mean(), at - 0.42, at + 0.42, INK, lw=2)
            at += 1
    axis.set(xlim=(-0.6, blocks - 0.4), ylim=(-0.02, 1.02 * top), ylabel="gate")
    axis.set_xticks(*zip(*ticks, strict=True))
    axis.tick_params(colors=INK, length=0)
    axis.yaxis.label.set_color(INK)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.grid(axis="y", color=INK, alpha=0.25)
    file = io.BytesIO()
    figure.savefig(file, dpi=150, transparent=True)
    return Image.open(file)
