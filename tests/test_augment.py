"""Laws of what becomes of an image: split, order, augmentation, normalisation."""

import itertools
import math
from collections import Counter
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from resnet_se.augment import (
    Augmentation,
    channel_statistics,
    derive_seed,
    kept_stream,
    normalise,
)
from resnet_se.datamodule import AugmentedImages, ShuffledBatches, stratified_split
from resnet_se.errors import UserError

PAPER = Augmentation(rotation=15, shift=0.1, shear=10, zoom=0.1, flip=0.5)


def random_images(n=40, height=16, width=16):
    generator = torch.Generator().manual_seed(0)
    shape = (n, 3, height, width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


# --- normalisation -----------------------------------------------


def test_channel_statistics_are_the_float_ones():
    images = random_images()
    images[:, 1] //= 7
    scaled = images.double().div(255).transpose(0, 1).flatten(1)  # (C, N·H·W)
    mean, std = channel_statistics(images)
    torch.testing.assert_close(mean, scaled.mean(1).float())
    torch.testing.assert_close(std, scaled.std(1, correction=0).float())


def test_normalised_images_have_mean_zero_and_deviation_one():
    images = random_images() // 3 + 40
    mean, std = channel_statistics(images)
    x = normalise(images, mean, std)
    formula = (images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(x, formula, atol=1e-5, rtol=1e-5)
    found = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        found.mean(1), torch.zeros(3).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.std(1), torch.ones(3).double(), atol=1e-3, rtol=0)


def test_statistics_of_a_constant_channel():
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    torch.testing.assert_close(mean, torch.full((3,), 0.2))
    assert std.max() < 1e-6


# --- augmentation ------------------------------------------------


def test_nothing_to_do_is_no_transform():
    assert Augmentation().transform(32, 32) is None


def test_flip_of_one_mirrors():
    image = random_images(1)[0]
    mirrored = Augmentation(flip=1).transform(16, 16)(image)
    assert torch.equal(mirrored, image.flip(-1))


def test_flip_is_a_coin_of_its_probability():
    torch.manual_seed(0)
    image, flip = random_images(1)[0], Augmentation(flip=0.25).transform(16, 16)
    mirrored = sum(not torch.equal(flip(image), image) for _ in range(400))
    assert abs(mirrored - 100) < 5 * math.sqrt(400 * 0.25 * 0.75)  # five deviations


def test_crop_is_a_window_of_the_reflected_image():
    torch.manual_seed(0)
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    padded = F.pad(image.float()[None], (4, 4, 4, 4), mode="reflect")[0].byte()
    windows = {
        padded[:, y : y + 16, x : x + 16].numpy().tobytes(): (y, x)
        for y, x in itertools.product(range(9), repeat=2)
    }
    crop = Augmentation(crop_padding=4).transform(16, 16)
    found = [windows[crop(image).numpy().tobytes()] for _ in range(500)]
    assert len(set(found)) > 70  # of 81: each is as likely as another


def dot_after(augmentation, dy, dx, draws=150):
    """Where a bright dot at (dy, dx) from the centre of 65×65 lands in each draw."""
    torch.manual_seed(0)
    image = torch.zeros(3, 65, 65, dtype=torch.uint8)
    image[:, 31 + dy : 34 + dy, 31 + dx : 34 + dx] = 255
    transform = augmentation.transform(65, 65)
    axis = torch.arange(65.0) - 32
    for _ in range(draws):
        weight = transform(image)[0].float()
        weight /= weight.sum()
        yield (weight.sum(1) @ axis).item(), (weight.sum(0) @ axis).item()


def assert_fills(values, low, high, tolerance):
    """All within low..high, and both ends nearly reached."""
    values = list(values)
    reach = 0.1 * (high - low) + tolerance
    assert low - tolerance <= min(values) <= low + reach
    assert high - reach <= max(values) <= high + tolerance


def test_rotation_turns_within_its_range():
    found = list(dot_after(Augmentation(rotation=15), 0, 20))
    angles = [math.degrees(math.atan2(-y, x)) for y, x in found]
    assert_fills(angles, -15, 15, 0.5)
    assert all(abs(math.hypot(y, x) - 20) < 0.3 for y, x in found)


def test_shift_moves_within_its_range():
    ys, xs = zip(*dot_after(Augmentation(shift=0.1), 0, 0), strict=True)
    assert_fills(ys, -6.5, 6.5, 0.6)
    assert_fills(xs, -6.5, 6.5, 0.6)


def test_shear_moves_along_x_only():
    found = list(dot_after(Augmentation(shear=10), 20, 0))
    edge = 20 * math.tan(math.radians(10))
    assert_fills([x for _, x in found], -edge, edge, 0.3)
    assert all(abs(y - 20) < 0.3 for y, _ in found)


def test_zoom_scales_within_its_range():
    found = list(dot_after(Augmentation(zoom=0.2), 0, 20))
    assert_fills([x / 20 for _, x in found], 0.8, 1.2, 0.02)
    assert all(abs(y) < 0.3 for y, _ in found)


def test_jitter_scales_brightness_within_its_range():
    torch.manual_seed(0)
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)  # of no contrast or colour
    jitter = Augmentation(jitter=0.2).transform(4, 4)
    assert_fills((jitter(grey).float().mean().item() for _ in range(200)), 80, 120, 2)


def test_what_moves_in_from_outside_is_black():
    white = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    turned = Augmentation(rotation=180).transform(16, 16)
    torch.manual_seed(0)
    assert min(turned(white)[:, 0, 0].max().item() for _ in range(20)) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_padding": 17}, "crop_padding: expected 0..16, got 17"),
        ({"rotation": 181}, "rotation: expected 0..180, got 181"),
        ({"rotation": -15}, "rotation: .* got -15"),
        ({"shift": 1.5}, "shift: expected 0..1, got 1.5"),
        ({"shear": 90}, "shear: expected 0..89, got 90"),
        ({"zoom": 1}, "zoom: expected 0..0.99, got 1"),
        ({"flip": 1.1}, "flip: expected 0..1, got 1.1"),
        ({"jitter": -0.1}, "jitter: .* got -0.1"),
        ({"jitter": float("nan")}, "jitter: .* got nan"),
    ],
)
def test_value_out_of_range_is_named(options, words):
    with pytest.raises(UserError, match=words):
        Augmentation(**options)


# --- random streams ----------------------------------------------


def test_seeds_differ_across_parts_and_their_order():
    parts = [
        p for n in (1, 2, 3, 4) for p in itertools.product((0, 1, 2**32), repeat=n)
    ]
    seeds = [derive_seed(purpose, *p) for p in parts for purpose in ("a", "b")]
    assert len(set(seeds)) == 2 * len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("a", 3, 4) == derive_seed("a", 3, 4)


def test_stream_gives_the_state_back_even_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with kept_stream() as stream:
        stream.manual_seed(6)
        assert not torch.equal(torch.rand(4), expected)
    with suppress(KeyError), kept_stream():
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.rand(4), expected)


# --- what training sees ------------------------------------------


def test_an_image_depends_on_seed_epoch_and_index_alone():
    images = random_images(1).expand(6, 3, 16, 16).clone()
    labels = torch.arange(6)
    data = AugmentedImages(images, labels, PAPER, seed=3)
    together, found = data[[(0, 4), (1, 2), (0, 1)]]
    assert found.tolist() == [4, 2, 1]
    torch.rand(1)  # whatever torch's own stream does between
    alone, _ = data[[(0, 1)]]
    assert torch.equal(alone[0], together[2])
    others = {
        "epoch": data[[(1, 1)]],
        "index": data[[(0, 2)]],
        "seed": AugmentedImages(images, labels, PAPER, seed=4)[[(0, 1)]],
    }
    for what, (other, _) in others.items():
        assert not torch.equal(other, alone), what


def test_augmenting_leaves_the_images_and_torchs_stream_alone():
    images, before = random_images(), random_images()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    AugmentedImages(images, torch.zeros(40), PAPER, seed=0)[[(0, i) for i in range(8)]]
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(images, before)


def test_without_augmentation_the_images_are_the_images():
    images, labels = random_images(), torch.arange(40)
    found, theirs = AugmentedImages(images, labels, Augmentation(), 0)[[(0, 7), (9, 2)]]
    assert torch.equal(found, images[[7, 2]])
    assert theirs.tolist() == [7, 2]


def test_order_differs_between_epochs_and_repeats_within_one():
    def order(epoch, seed=0):
        batches = ShuffledBatches(50, 8, seed)
        batches.set_epoch(epoch)
        found = list(batches)
        assert len(found) == len(batches) == 6  # two images are left out
        assert {len(batch) for batch in found} == {8}
        assert {e for batch in found for e, _ in batch} == {epoch}
        return [i for batch in found for _, i in batch]

    assert order(1) == order(1)
    assert len({tuple(order(*which)) for which in [(0,), (1,), (2,), (1, 1)]}) == 4
    for epoch in range(3):
        assert len(set(order(epoch)) & set(range(50))) == 48  # none twice


def test_every_image_comes_up_though_a_rest_is_dropped():
    batches, seen = ShuffledBatches(50, 8, 0), Counter()
    for epoch in range(20):
        batches.set_epoch(epoch)
        seen.update(i for batch in batches for _, i in batch)
    assert set(seen) == set(range(50))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12's
@pytest.mark.filterwarnings("ignore:.*create 2 worker processes")  # on one core
def test_batches_do_not_depend_on_the_workers():
    data = AugmentedImages(random_images(), torch.arange(40), PAPER, seed=1)
    batches = ShuffledBatches(40, 16, seed=1)
    batches.set_epoch(2)
    here, apart = (
        list(DataLoader(data, batch_size=None, sampler=batches, num_workers=n))
        for n in (0, 2)
    )
    assert len(here) == len(apart) == 2
    for ours, theirs in zip(here, apart, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


# --- split -------------------------------------------------------


def test_split_is_disjoint_complete_and_stratified():
    sizes = {0: 38, 1: 26, 5: 12, 9: 8}
    labels = torch.tensor([c for c, n in sizes.items() for _ in range(n)])
    labels = labels[torch.randperm(84)]
    train, val = stratified_split(labels, 0.1, seed=7)
    assert sorted(train.tolist() + val.tolist()) == list(range(84))
    for part in (train, val):
        assert part.tolist() == sorted(part.tolist())
    assert Counter(labels[val].tolist()) == {0: 4, 1: 3, 5: 1, 9: 1}  # 3.8 2.6 1.2 0.8


def test_a_small_class_gives_one_image():
    _, val = stratified_split(torch.tensor([0] * 50 + [1] * 2), 0.1, seed=0)
    assert (val >= 50).sum() == 1


def test_split_depends_on_its_seed_alone():
    labels = torch.arange(300) % 3

    def split(seed):
        torch.rand(1)  # whatever torch's own stream does between
        return stratified_split(labels, 0.2, seed)[1].tolist()

    first = split(0)
    assert split(1) != first
    assert split(0) == first
    assert first != list(range(60))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_share_out_of_range_is_named(fraction):
    with pytest.raises(UserError, match=f"val_fraction: .* got {fraction}"):
        stratified_split(torch.arange(10) % 2, fraction, 0)


def test_a_class_left_without_training_images_is_named():
    with pytest.raises(UserError, match="class 1 has 1 images"):
        stratified_split(torch.tensor([0, 0, 0, 1]), 0.1, 0)
