"""Duplicates among images: of exactly the same pixels, and near matches.

A near match has the same fine structure, mirrored or not: the correlation of both
images, without their margins and in grey, at 13×13, less what is left of them at 3×3.
So brightness, contrast, hue, JPEG, noise and a frame do not hide it, and two clear
skies or two frames are no pair.  `experiments/robustness` compares with the pairs that
ciFAIR's authors found by a network and by hand (Barz & Denzler 2020, arXiv 1902.00423).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 0.88  # correlation; below it the eye sees other pictures
FINE, COARSE = 13, 3
MARGIN = 0.1  # of height and width, left out: frames are alike
ROWS = 2000


class Pair(NamedTuple):
    """Two images, first < second; `exact`: of the same pixels."""

    first: int
    second: int
    similarity: float
    exact: bool


def structure(images: Tensor) -> Tensor:
    """Return the fine structure (N, 169), of length one, of uint8 (N, 3, H, W)."""
    parts = []
    for batch in images.split(ROWS):
        grey = batch.float().mean(dim=1, keepdim=True)
        top, left = (int(MARGIN * n) for n in grey.shape[2:])
        grey = grey[..., top : grey.shape[2] - top, left : grey.shape[3] - left]
        fine = F.adaptive_avg_pool2d(grey, FINE)
        coarse = F.adaptive_avg_pool2d(grey, COARSE)
        coarse = F.interpolate(coarse, size=(FINE, FINE), mode="bilinear")
        parts.append((fine - coarse).flatten(1))
    x = torch.cat(parts)
    x = x - x.mean(dim=1, keepdim=True)
    length = x.norm(dim=1, keepdim=True)
    # An image of one colour is no one's near duplicate.
    return torch.where(length > 1, x / length, 0.0)


def digests(images: Tensor) -> list[bytes]:
    """Return a hash of each image's pixels, uint8 (N, 3, H, W)."""
    pixels = images.contiguous().numpy()
    return [hashlib.sha256(image).digest()[:16] for image in pixels]


def find_pairs(images: Tensor, near: float = NEAR) -> list[Pair]:
    """Return all pairs of duplicates, the most similar first.

    Compares N²/2 pairs, twice: 60,000 images are 1.2 TFLOP.

    Args:
        images: uint8 (N, 3, H, W).
        near: least correlation of a near match, in (0, 1].
    """
    plain = structure(images)
    mirrored = structure(images.flip(-1))
    found: dict[tuple[int, int], float] = {}
    for begin in range(0, len(plain), ROWS):
        rows = plain[begin : begin + ROWS]
        for others in (plain, mirrored):
            similarity = rows @ others[begin:].T  # (R, N - begin)
            for i, j in (similarity >= near).nonzero().tolist():
                if i < j:
                    pair = begin + i, begin + j
                    value = float(similarity[i, j])
                    found[pair] = max(value, found.get(pair, 0.0))
    names = digests(images)
    same: dict[bytes, list[int]] = {}
    for i, name in enumerate(names):
        same.setdefault(name, []).append(i)
    for members in same.values():  # also those of one colour
        for place, i in enumerate(members):
            found |= {(i, j): 1.0 for j in members[place + 1 :]}
    pairs = [Pair(i, j, s, names[i] == names[j]) for (i, j), s in found.items()]
    return sorted(pairs, key=lambda p: (not p.exact, -p.similarity, p.first, p.second))
