"""Policies on batches: torchvision's operations pixel by pixel, its distribution."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from resnet_se.data.augmentation import policies
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.augmentation.policies import OPERATIONS
from tests.data.test_augmentation import random_images

POLICIES = ("trivial", "randaugment", "autoaugment")
N = 3000


def smooth_images(n: int, height: int, width: int) -> torch.Tensor:
    """With large areas and few levels in some, as photographs have them."""
    small = random_images(n, 4, 5).float()
    images = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    images[::3] = images[::3] / 4 + 60
    return images.round().to(torch.uint8)


@pytest.mark.parametrize("size", [(32, 32), (20, 28)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions(name, size):
    """Each image with a magnitude of its own, in one call."""
    theirs = v2.AutoAugment() if name == "Invert" else v2.TrivialAugmentWide()
    magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
    values = magnitudes(31, *size)
    values = torch.zeros(31) if values is None else values.float()
    if signed:
        values = torch.cat([values, -values])
    images = smooth_images(len(values), *size)
    before = images.clone()
    number = torch.full((len(values), 1), OPERATIONS.index(name))
    found = policies.apply(images, number, values[:, None])
    assert found.dtype == torch.uint8
    assert torch.equal(images, before)
    expected = torch.stack(
        [
            theirs._apply_image_or_video_transform(
                image, name, float(value), "nearest", theirs._fill
            )
            for image, value in zip(images, values, strict=True)
        ]
    )
    differs = (found != expected).any(1)  # (B, H, W)
    if name in policies.MOVES:  # a place half-way between two pixels may go either way
        assert differs.float().mean() < 0.002
    else:
        assert (found.int() - expected.int()).abs().max() <= 1
        assert differs.float().mean() < 0.01  # the last digit before the cut
    if name != "Identity":
        assert not torch.equal(found, images)


def recorded(policy: str, n: int, size: tuple[int, int]) -> list[tuple]:
    """What torchvision's transform does to n images: ((operation, magnitude), …)."""
    transform, rows = policies.transform(policy), []

    def note(image, name, magnitude, **_):
        if name != "Identity":
            rows[-1] += ((name, round(magnitude, 4)),)
        return image

    transform._apply_image_or_video_transform = note
    image = torch.zeros(3, *size, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(n):
            rows.append(())
            transform(image)
    return rows


def ours(policy: str, n: int, size: tuple[int, int]) -> list[tuple]:
    drawn = policies.draw(policy, n, *size, torch.Generator().manual_seed(0))
    return [
        tuple((OPERATIONS[o], round(m, 4)) for o, m in zip(*row, strict=True) if o)
        for row in zip(*(d.tolist() for d in drawn), strict=True)
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_draws_are_distributed_as_torchvisions(policy):
    """Operations with their magnitudes, and which of them come together."""
    found, expected = (draw(policy, N, (32, 24)) for draw in (ours, recorded))
    for view in (
        lambda row: row,
        lambda row: tuple(name for name, _ in row),
        lambda row: tuple(m > 0 for _, m in row),
    ):
        a, b = (Counter(map(view, rows)) for rows in (found, expected))
        common = [k for k in a | b if a[k] + b[k] >= 10]
        rest = [N - sum(c[k] for k in common) for c in (a, b)]
        table = [
            [c[k] for k in common] + [r] for c, r in zip((a, b), rest, strict=True)
        ]
        table = [row for row in zip(*table, strict=True) if sum(row)]
        assert stats.chi2_contingency(table).pvalue > 1e-3
    values = [{step for row in rows for step in row} for rows in (found, expected)]
    assert len(values[0] ^ values[1]) < 0.1 * len(values[1])  # the rarest aside


def test_erased_rectangles_are_distributed_as_torchvisions():
    augmentation, size = Augmentation(erase=0.6), (12, 16)
    draws = augmentation.draw(N, *size, seed=0, epoch=0).erased
    theirs, image = v2.RandomErasing(0.6), torch.ones(3, *size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        erased = [1 - theirs(image)[0] for _ in range(N)]
    rows = [
        [*(place[0].tolist()), *(place[-1] - place[0] + 1).tolist()]
        if len(place)
        else [0] * 4
        for place in (e.nonzero() for e in erased)
    ]
    expected = torch.tensor(rows)
    assert abs((draws[:, 2] > 0).float().mean() - 0.6) < 0.05
    for column in range(4):
        a, b = (d[d[:, 2] > 0][:, column] for d in (draws, expected))
        assert stats.ks_2samp(a, b).pvalue > 1e-3
    x = augmentation.apply(
        torch.full((N, 3, *size), 9, dtype=torch.uint8),
        Augmentation(erase=0.6).draw(N, *size, 0, 0),
    )
    black = (x == 0).all(1).sum((1, 2))
    assert torch.equal(black, draws[:, 2] * draws[:, 3])


@pytest.mark.parametrize("policy", POLICIES)
def test_an_image_does_not_depend_on_its_batch(policy):
    augmentation = Augmentation(crop_padding=4, flip=0.5, policy=policy, erase=0.5)
    images = smooth_images(30, 16, 16)
    draws = augmentation.draw(30, 16, 16, seed=3, epoch=1)
    whole = augmentation.apply(images, draws)
    index = torch.tensor([21, 4, 4, 13])
    assert torch.equal(
        augmentation.apply(images[index], draws.select(index)), whole[index]
    )
    assert not torch.equal(whole, images.float())
