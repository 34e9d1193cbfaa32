"""Corruptions against independent references: SciPy, colorsys, Pillow, NumPy."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy import ndimage

from resnet_se.data.test_sets import corruptions
from resnet_se.data.test_sets.corruptions import CORRUPTIONS, MAIN, corrupt
from resnet_se.utils.random_streams import stream

RNG = np.random.default_rng(0)
PIXELS = torch.from_numpy(RNG.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))
X = PIXELS.float() / 255
NUMPY = X.double().numpy()
INDEX = torch.tensor([0, 5, 9])


def streams() -> list[torch.Generator]:
    return [stream("test", i) for i in range(len(X))]


def test_the_15_and_what_stands_beside_them():
    assert len(MAIN) == 15
    assert all(len(constants) == 5 for _, constants in CORRUPTIONS.values())
    assert set(corruptions.OURS) < set(MAIN)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_alone_and_in_any_batch(name):
    whole = corrupt(PIXELS, INDEX, name, 4)
    assert whole.dtype == torch.uint8
    assert whole.shape == PIXELS.shape
    assert not torch.equal(whole, PIXELS)
    backwards = corrupt(PIXELS.flip(0), INDEX.flip(0), name, 4).flip(0)
    off = (whole.int() - backwards.int()).abs()
    assert off.max() <= 1  # sums in another order
    alone = corrupt(PIXELS[1:2], INDEX[1:2], name, 4)
    assert (whole[1:2].int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "motion_blur", "fog", "frost", "elastic_transform"]
)
def test_images_and_severities_have_streams_of_their_own(name):
    same = PIXELS[:1].expand(2, -1, -1, -1)
    first, second = corrupt(same, torch.tensor([0, 1]), name, 3)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "scale"), [("gaussian_noise", 1), ("speckle_noise", 128 / 255)]
)
def test_noise_has_the_deviation_of_its_constant(name, scale):
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    function, constants = CORRUPTIONS[name]
    x = function(grey.float() / 255, constants[0], [stream("n", i) for i in range(20)])
    deviation = float((x - 128 / 255).std())
    assert deviation == pytest.approx(scale * constants[0], rel=0.02)


def test_shot_noise_has_the_variance_of_its_photons():
    x = torch.full((20, 3, 32, 32), 0.5)
    noisy = corruptions.shot_noise(x, 50, [stream("n", i) for i in range(20)])
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(noisy.var()) == pytest.approx(0.5 / 50, rel=0.03)


def test_impulses_are_as_many_as_asked_half_of_them_white():
    x = torch.full((20, 3, 32, 32), 0.5)
    hit = corruptions.impulse_noise(x, 0.07, [stream("n", i) for i in range(20)])
    assert float((hit != 0.5).float().mean()) == pytest.approx(0.07, abs=0.005)
    assert float((hit[hit != 0.5] == 1).float().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1])
def test_gaussian_blur_is_scipy_s(sigma):
    wanted = ndimage.gaussian_filter(NUMPY, (0, 0, sigma, sigma), mode="nearest")
    assert np.allclose(corruptions.gaussian_blur(X, sigma), wanted, atol=1e-6)


def test_a_gaussian_that_reflects_is_scipy_s():
    kernel = corruptions._gaussian(6.4, 3.0, "reflect")
    field = X[0, 0]
    wanted = ndimage.gaussian_filter(field.numpy(), 6.4, mode="reflect", truncate=3)
    assert np.allclose(kernel @ field @ kernel.T, wanted, atol=1e-5)


@pytest.mark.parametrize("c", CORRUPTIONS["defocus_blur"][1])
def test_defocus_is_a_convolution_mirrored_at_the_edges(c):
    radius, sigma = c
    line = np.arange(-8, 9)
    disk = (line[:, None] ** 2 + line**2 <= radius**2) / 1.0
    soft = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    soft = np.outer(soft, soft) / soft.sum() ** 2
    kernel = ndimage.convolve(disk / disk.sum(), soft, mode="constant")
    wanted = [[ndimage.convolve(c, kernel, mode="mirror") for c in im] for im in NUMPY]
    assert np.allclose(corruptions.defocus_blur(X, c, ()), wanted, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1.03, 1.1, 1.25, 2.25])
def test_zoom_is_scipy_s_in_the_middle(factor):
    crop = int(np.ceil(32 / factor))
    top = (32 - crop) // 2
    part = NUMPY[:, :, top : top + crop, top : top + crop]
    big = ndimage.zoom(part, (1, 1, factor, factor), order=1)
    top = (big.shape[-1] - 32) // 2
    wanted = big[..., top : top + 32, top : top + 32]
    assert np.allclose(corruptions._zoomed(X, factor), wanted, atol=1e-5)


def test_zoom_blur_takes_numpy_s_factors():
    """Of which the last, 1.06, is past the end by rounding."""
    wanted = X + sum(corruptions._zoomed(X, 1 + i / 100) for i in range(7))
    assert torch.allclose(corruptions.zoom_blur(X, 1.06, ()), wanted / 8, atol=1e-6)


def test_glass_leaves_the_neighbour_as_the_published_swap_does():
    """NumPy's exchange of two rows of channels, as published, with our moves."""
    x = PIXELS[:1]
    g = [stream("glass", 0)]
    moved = corruptions.glass_blur(x.float() / 255, (0.05, 2), g)
    again = torch.rand((2, 30, 30, 2), generator=stream("glass", 0))
    moves = (again * 2).long() - 1
    wanted = x[0].permute(1, 2, 0).numpy().copy()
    for step in moves.numpy():
        for i, h in enumerate(range(31, 1, -1)):
            for j, w in enumerate(range(31, 1, -1)):
                dx, dy = step[i, j]
                at, to = (h, w), (h + dy, w + dx)
                wanted[at], wanted[to] = wanted[to], wanted[at]
    assert np.array_equal((moved[0] * 255).round().permute(1, 2, 0), wanted)


@pytest.mark.parametrize("degrees", [0.0, 90.0, -45.0])
def test_motion_blur_weighs_the_pixels_ahead(degrees):
    point = torch.zeros(1, 1, 32, 32)
    point[0, 0, 16, 16] = 1
    blurred = corruptions._motion(point, 6, 2.0, torch.tensor([degrees]))[0, 0]
    weights = np.exp(-0.5 * (np.arange(13) / 2.0) ** 2)
    weights /= weights.sum()
    assert float(blurred.sum()) == pytest.approx(1)
    down, right = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    for i in range(6):
        at = 16 - int(np.ceil(i * down - 0.5)), 16 - int(np.ceil(i * right - 0.5))
        assert float(blurred[at]) >= weights[i] * 0.999


def by_colorsys(saturation: tuple[float, float], value: float) -> np.ndarray:
    out = np.empty_like(NUMPY)
    for b, _, i, j in np.ndindex(len(NUMPY), 1, 32, 32):
        h, s, v = colorsys.rgb_to_hsv(*NUMPY[b, :, i, j])
        s = min(max(s * saturation[0] + saturation[1], 0), 1)
        out[b, :, i, j] = colorsys.hsv_to_rgb(h, s, min(v + value, 1))
    return out


@pytest.mark.parametrize("c", [(0.1, 0), (2, 0.1)])
def test_saturation_is_that_of_hsv(c):
    assert np.allclose(corruptions.saturate(X, c, ()), by_colorsys(c, 0), atol=1e-5)


def test_brightness_is_the_value_of_hsv():
    wanted = by_colorsys((1, 0), 0.3)
    assert np.allclose(corruptions.brightness(X, 0.3, ()), wanted, atol=1e-5)


def test_black_and_grey_have_hues_as_in_hsv():
    black, grey = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5)
    assert (
        corruptions.brightness(black, 0.3, ()).flatten().tolist()
        == [pytest.approx(0.3)] * 3
    )
    wanted = colorsys.hsv_to_rgb(0, 0.1, 0.5)
    found = corruptions.saturate(grey, (2, 0.1), ()).flatten().tolist()
    assert found == pytest.approx(wanted)


def test_contrast_keeps_the_mean_and_scales_the_rest():
    x = corruptions.contrast(X, 0.15, ())
    assert torch.allclose(x.mean((2, 3)), X.mean((2, 3)), atol=1e-6)
    assert torch.allclose(x.std((2, 3)), 0.15 * X.std((2, 3)), atol=1e-6)


def test_elastic_places_are_scipy_s():
    rows, columns = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    shift = RNG.uniform(-3, 3, (2, 32, 32))
    at = torch.from_numpy(np.stack([columns + shift[0], rows + shift[1]])).float()
    ours = corruptions._sampled(X[:1], at[:1], at[1:], corners=False)
    wanted = [
        ndimage.map_coordinates(
            c, [rows + shift[1], columns + shift[0]], order=1, mode="reflect"
        )
        for c in NUMPY[0]
    ]
    assert np.allclose(ours[0], wanted, atol=1e-4)


def test_an_affine_map_moves_three_points_to_three_points():
    """A bright spot at (26, 6) lies where the first severity takes that point."""
    spot = torch.zeros(1, 3, 32, 32)
    spot[..., 5:8, 25:28] = 1  # (x, y) = (26, 6)
    draws = torch.rand((3, 2), generator=stream("e", 0))
    moved = -2.56 + 2 * 2.56 * draws[1]
    x = corruptions.elastic_transform(spot, (0, 0, 0.08), [stream("e", 0)])[0, 0]
    weights = x / x.sum()
    line = torch.arange(32.0)
    place = torch.stack([(weights.sum(0) * line).sum(), (weights.sum(1) * line).sum()])
    assert torch.allclose(place, torch.tensor([26.0, 6.0]) + moved, atol=0.3)


def test_fog_and_frost_stay_in_range_and_grow_with_severity():
    for name in ("fog", "frost"):
        off = [
            float((corrupt(PIXELS, INDEX, name, s).float() - PIXELS).abs().mean())
            for s in (1, 5)
        ]
        assert off[0] < off[1]
