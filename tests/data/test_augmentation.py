"""Laws of what becomes of an image: normalisation, augmentation by either engine."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from resnet_se.data.augmentation.colour import BRIGHTNESS, CONTRAST, SATURATION
from resnet_se.data.augmentation.custom import apply_custom, apply_custom_batch
from resnet_se.data.augmentation.erasing import Cutout
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.normalisation import channel_statistics, normalise
from resnet_se.utils.errors import UserError

PAPER = Augmentation(rotation=15, shift=0.1, shear=10, zoom=0.1, flip=0.5)
ALL = replace(PAPER, crop_padding=4, jitter=0.2, cutout=5)
SIZES = [(16, 16), (28, 28), (12, 20)]


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
        ({"crop_padding": 17}, "crop_padding: expected an integer 0..16, got 17"),
        ({"rotation": 181}, "rotation: expected 0..180, got 181"),
        ({"rotation": -15}, "rotation: .* got -15"),
        ({"shift": 1.5}, "shift: expected 0..1, got 1.5"),
        ({"shear": 90}, "shear: expected 0..89, got 90"),
        ({"zoom": 1}, "zoom: expected 0..0.99, got 1"),
        ({"flip": 1.1}, "flip: expected 0..1, got 1.1"),
        ({"jitter": -0.1}, "jitter: .* got -0.1"),
        ({"jitter": float("nan")}, "jitter: .* got nan"),
        ({"cutout": -1}, "cutout: expected an integer 0..512, got -1"),
        ({"alternate_flip": True}, "flip: expected 0.5 with alternate_flip.* got 0.0"),
        ({"alternate_flip": True, "flip": 1}, "flip: expected 0.5 .* got 1"),
    ],
)
def test_value_out_of_range_is_named(options, words):
    with pytest.raises(UserError, match=words):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_padding": 12}, "augment.crop_padding: .* side, 12, got 12"),
        ({"cutout": 13}, "augment.cutout: .* side, 12, got 13"),
    ],
)
def test_what_does_not_fit_the_images_is_named(options, words):
    augmentation = Augmentation(**options)
    with pytest.raises(UserError, match=words):
        augmentation.transform(12, 20)
    with pytest.raises(UserError, match=words):
        augmentation.draw(1, 12, 20, seed=0, epoch=0)


# --- the batched engine against torchvision's functions ----------


def reference(image, draws, row, augmentation):
    """`apply` for one image by torchvision's own functions, in float: (3, H, W)."""
    height, width = image.shape[-2:]
    pad = augmentation.crop_padding
    if pad:
        top, left = draws.crop_origin[row].tolist()
        image = TF.pad(image, [pad] * 4, padding_mode="reflect")
        image = TF.crop(image, top, left, height, width)
    x = image.double() / 255
    if augmentation.resamples:
        down, right = draws.affine.shift[row].tolist()
        x = TF.affine(
            x,
            angle=draws.affine.angle[row].item(),
            translate=[right, down],
            scale=draws.affine.scale[row].item(),
            shear=[draws.affine.shear[row].item(), 0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
        )
    if draws.mirror is not None and draws.mirror[row]:
        x = TF.horizontal_flip(x)
    if augmentation.jitter:
        adjust = {
            BRIGHTNESS: TF.adjust_brightness,
            CONTRAST: TF.adjust_contrast,
            SATURATION: TF.adjust_saturation,
        }
        for which in draws.jitter.order[row].tolist():
            x = adjust[which](x, draws.jitter.factors[row, which].item())
    if augmentation.cutout:
        side = augmentation.cutout
        top, left = (draws.cutout_center[row] - side // 2).tolist()
        for i, j in itertools.product(range(side), repeat=2):
            if 0 <= top + i < height and 0 <= left + j < width:
                x[:, top + i, left + j] = 0
    return 255 * x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(crop_padding=4),
        Augmentation(flip=0.5),
        Augmentation(crop_padding=2, flip=0.5),
        Augmentation(cutout=5),
        Augmentation(cutout=8, crop_padding=3, flip=0.5),
    ],
)
def test_moving_pixels_is_exact(augmentation, size):
    images = random_images(60, *size)
    draws = augmentation.draw(60, *size, seed=1, epoch=2)
    found = augmentation.apply(images, draws)
    assert found.dtype == torch.float32
    for row, image in enumerate(images):
        expected = reference(image, draws, row, augmentation)
        assert torch.equal(found[row], expected.round().float())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {"rotation": 180},
        {"shift": 0.3},
        {"shear": 40},
        {"zoom": 0.5},
        {"rotation": 30, "shift": 0.2, "shear": 20, "zoom": 0.3, "flip": 0.5},
    ],
)
def test_affine_map_is_torchvisions(options, size):
    augmentation, images = Augmentation(**options), random_images(40, *size)
    draws = augmentation.draw(40, *size, seed=1, epoch=2)
    found = augmentation.apply(images, draws)
    for row, image in enumerate(images):
        expected = reference(image, draws, row, augmentation)
        # Noise images: neighbours differ by 85 levels, so this is 1e-3 pixels.
        assert (found[row] - expected).abs().max() < 0.1


def test_affine_map_is_torchvisions_on_whole_levels():
    images = random_images(40)
    draws = PAPER.draw(40, 16, 16, seed=1, epoch=2)
    found = PAPER.apply(images, replace(draws, mirror=torch.zeros(40) > 0))
    for row, image in enumerate(images):
        down, right = draws.affine.shift[row].tolist()
        expected = TF.affine(
            image,
            angle=draws.affine.angle[row].item(),
            translate=[right, down],
            scale=draws.affine.scale[row].item(),
            shear=[draws.affine.shear[row].item(), 0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        assert (found[row] - expected).abs().max() < 0.6  # half a level is rounding


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_jitter_is_torchvisions_in_each_order(order):
    augmentation, images = Augmentation(jitter=0.9), random_images()
    draws = augmentation.draw(40, 16, 16, seed=1, epoch=2)
    changed = draws.jitter._replace(order=torch.tensor(order).expand(40, 3))
    draws = replace(draws, jitter=changed)
    found = augmentation.apply(images, draws)
    for row, image in enumerate(images):
        expected = reference(image, draws, row, augmentation)
        assert (found[row] - expected).abs().max() < 0.01


def test_jitter_is_torchvisions_on_whole_levels():
    augmentation, images = Augmentation(jitter=0.2), random_images()
    draws = augmentation.draw(40, 16, 16, seed=1, epoch=2)
    found = augmentation.apply(images, draws)
    adjust = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation]
    for row, image in enumerate(images):
        for which in draws.jitter.order[row].tolist():
            image = adjust[which](image, draws.jitter.factors[row, which].item())
        # It cuts off at whole levels three times: up to 1 + 1.2 + 1.44 of them, of
        # which the middle is 1.5, and nothing where it ended in black or white.
        lost = found[row] - image
        assert lost.min() > -0.5
        assert lost.max() < 3.7
        assert 0.5 < lost.mean() < 2.5


def test_everything_at_once_keeps_its_order():
    for size in SIZES:
        images, draws = random_images(40, *size), ALL.draw(40, *size, seed=1, epoch=2)
        found = ALL.apply(images, draws)
        for row, image in enumerate(images):
            expected = reference(image, draws, row, ALL)
            assert (found[row] - expected).abs().max() < 0.15


def test_both_engines_show_the_same_on_average():
    n, image = 800, random_images(1, 12, 12)
    augmentation = replace(PAPER, crop_padding=2, cutout=4)
    draws = augmentation.draw(n, 12, 12, seed=0, epoch=0)
    torch.manual_seed(0)
    transform = augmentation.transform(12, 12)
    pairs = [
        augmentation.apply(image.expand(n, 3, 12, 12), draws),
        torch.stack([transform(image[0]) for _ in range(n)]).float(),
    ]
    for moment in (1, 2):
        means = [(x**moment).mean(0) for x in pairs]
        errors = [(x**moment).var(0) / n for x in pairs]
        z = (means[0] - means[1]) / (errors[0] + errors[1]).sqrt()
        assert z.abs().max() < 4.5  # of 432 values; the largest of as many is about 3
        assert z.pow(2).mean() < 1.6


# --- the batched engine's draws ----------------------------------

N = 4000


def same_distribution(ours, theirs):
    return stats.ks_2samp(ours.double(), torch.tensor(theirs).double()).pvalue > 1e-3


def test_affine_parameters_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    image = torch.zeros(3, 20, 36, dtype=torch.uint8)
    draws = PAPER.draw(N, 20, 36, seed=0, epoch=0)
    (affine,) = (
        t for t in PAPER.transform(20, 36).transforms if isinstance(t, v2.RandomAffine)
    )
    theirs = [affine.make_params([image]) for _ in range(N)]
    assert same_distribution(draws.affine.angle, [p["angle"] for p in theirs])
    assert same_distribution(draws.affine.scale, [p["scale"] for p in theirs])
    assert same_distribution(draws.affine.shear, [p["shear"][0] for p in theirs])
    assert same_distribution(
        draws.affine.shift[:, 1], [p["translate"][0] for p in theirs]
    )
    assert same_distribution(
        draws.affine.shift[:, 0], [p["translate"][1] for p in theirs]
    )
    assert torch.equal(draws.affine.shift, draws.affine.shift.round())
    # ±2 and ±3.6 pixels: rounding gives the ends of whole numbers half a share.
    found = [sorted(set(draws.affine.shift[:, k].int().tolist())) for k in (0, 1)]
    assert found == [list(range(-2, 3)), list(range(-4, 5))]


def test_jitter_parameters_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    draws = ALL.draw(N, 16, 16, seed=1, epoch=0)
    jitter = v2.ColorJitter(0.2, 0.2, 0.2)
    theirs = [jitter.make_params([]) for _ in range(N)]
    for which, name in enumerate(("brightness", "contrast", "saturation")):
        values = [p[f"{name}_factor"] for p in theirs]
        assert same_distribution(draws.jitter.factors[:, which], values)
    # 0, 1, 2 are theirs too; 3 would be hue, which changes nothing here.
    places = list(itertools.permutations(range(3)))
    orders = [[i for i in p["fn_idx"].tolist() if i < 3] for p in theirs]
    counts = [
        [sum(tuple(order) == place for order in found) for place in places]
        for found in (draws.jitter.order.tolist(), orders)
    ]
    assert sum(counts[0]) == N
    assert stats.chi2_contingency(counts).pvalue > 1e-3


def test_whole_number_draws_are_uniform_over_all_places():
    draws = replace(ALL, flip=0.25).draw(N, 16, 24, seed=0, epoch=0)
    for found, ends in ((draws.crop_origin, (9, 9)), (draws.cutout_center, (16, 24))):
        for column, end in zip(found.T, ends, strict=True):
            counts = torch.bincount(column, minlength=end)
            assert len(counts) == end
            assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(draws.mirror.sum() - N / 4) < 4 * math.sqrt(N * 0.25 * 0.75)


def test_torchvisions_cutout_is_centred_as_the_batched_one():
    torch.manual_seed(0)
    cutout, image = Cutout(4), torch.ones(3, 6, 9, dtype=torch.uint8)
    draws = Augmentation(cutout=4).draw(N, 6, 9, seed=0, epoch=0)
    ours = Augmentation(cutout=4).apply(image.expand(N, 3, 6, 9), draws).mean((0, 1))
    theirs = torch.stack([cutout(image).float() for _ in range(N)]).mean((0, 1))
    # By hand: a pixel is black if the centre is one of those below 4 and 4.
    rows = torch.tensor([3, 4, 4, 4, 3, 2]) / 6
    columns = torch.tensor([3, 4, 4, 4, 4, 4, 4, 3, 2]) / 9
    expected = 1 - rows[:, None] * columns
    for found in (ours, theirs):
        assert (found - expected).abs().max() < 4.5 * math.sqrt(0.25 / N)


def given(draws):
    """{(family, parameter): its values} of those that are not left out."""
    values = {}
    for family, value in vars(draws).items():
        if isinstance(value, tuple):
            values |= {(family, name): part for name, part in value._asdict().items()}
        elif value is not None:
            values[family, None] = value
    return values


def with_value(draws, place, value):
    """The same draws but for one parameter."""
    family, name = place
    if name is not None:
        value = getattr(draws, family)._replace(**{name: value})
    return replace(draws, **{family: value})


def columns(draws):
    """All parameters but the jitter's order as (N, P) of mean 0 and deviation 1."""
    values = given(draws)
    del values["jitter", "order"]
    parts = [value.double().reshape(len(value), -1) for value in values.values()]
    table = torch.cat(parts, dim=1)
    return (table - table.mean(0)) / table.std(0)


def test_parameters_of_neighbours_and_of_one_image_are_independent():
    table = columns(ALL.draw(N, 16, 16, seed=0, epoch=0))
    p = table.shape[1]
    assert p == 13
    limit = 4.5 / math.sqrt(N)  # of 13² values
    within = table.T @ table / N - torch.eye(p)
    assert within.abs().max() < limit
    for lag in (1, 2, 128):
        between = table[lag:].T @ table[:-lag] / N
        assert between.abs().max() < limit
    others = {"seed": (1, 0), "epoch": (0, 1), "both": (1, 1)}
    for what, (seed, epoch) in others.items():
        other = columns(ALL.draw(N, 16, 16, seed, epoch))
        assert (table.T @ other / N).abs().max() < limit, what


def test_draws_repeat_and_do_not_depend_on_what_else_is_done():
    draws, again = (ALL.draw(50, 16, 16, seed=3, epoch=4) for _ in range(2))
    alone = replace(ALL, rotation=0, shift=0, shear=0, zoom=0, jitter=0)
    fewer = alone.draw(50, 16, 16, seed=3, epoch=4)
    repeated, kept = given(again), given(fewer)
    for place, value in given(draws).items():
        assert torch.equal(value, repeated[place]), place
        if place in kept:
            assert torch.equal(value, kept[place]), place
    assert fewer.affine is None
    assert fewer.jitter is None
    assert len(kept) == 3


def test_an_images_draw_changes_that_image_alone():
    images = random_images(1).expand(8, 3, 16, 16)
    draws = ALL.draw(8, 16, 16, seed=0, epoch=0)
    found = ALL.apply(images, draws)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(found, 2))
    for place, value in given(draws).items():
        changed = value.clone()
        changed[3] = changed[5]  # another image's
        if torch.equal(changed, value):
            changed[3] = ~value[3] if value.dtype == torch.bool else value[3].flip(0)
        after = ALL.apply(images, with_value(draws, place, changed))
        rows = [i for i in range(8) if not torch.equal(after[i], found[i])]
        assert rows == [3], place


def test_an_image_does_not_depend_on_its_batch():
    images, draws = random_images(), ALL.draw(40, 16, 16, seed=0, epoch=0)
    together = ALL.apply(images, draws)
    index = torch.tensor([7, 3, 30])
    some = ALL.apply(images[index], draws.select(index))
    torch.testing.assert_close(some, together[index], atol=1e-3, rtol=0)


def test_batched_engine_leaves_the_images_and_torchs_stream_alone():
    images, before = random_images(), random_images()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    for augmentation in (ALL, Augmentation(), Augmentation(cutout=3)):
        augmentation.apply(images, augmentation.draw(40, 16, 16, seed=0, epoch=0))
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(images, before)


def test_batched_engine_reads_no_value_back():
    # Tensors without values: asking for one fails, and so does another device.
    draws = ALL.draw(6, 16, 16, seed=0, epoch=0).to("meta")
    with pytest.raises(RuntimeError):
        draws.affine.angle.max().item()
    found = ALL.apply(random_images(6).to("meta"), draws)
    assert found.shape == (6, 3, 16, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batched_engine_on_a_gpu_gives_the_same_and_waits_for_nothing():
    images, draws = random_images(), ALL.draw(40, 16, 16, seed=0, epoch=0)
    there = images.cuda(), draws.to("cuda")
    ALL.apply(*there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = ALL.apply(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), ALL.apply(images, draws), atol=0.05, rtol=0)


# --- alternating flip --------------------------------------------

ALTERNATING = Augmentation(flip=0.5, alternate_flip=True)


def test_alternating_flip_shows_each_image_both_ways():
    images = random_images()

    def epoch(e, seed=0):
        return ALTERNATING.apply(images, ALTERNATING.draw(40, 16, 16, seed, e))

    first = epoch(0)
    for e in range(1, 6):
        assert torch.equal(epoch(e), first.flip(-1) if e % 2 else first)
    mirrored = (first != images).flatten(1).any(1)
    assert 8 < mirrored.sum() < 32  # 20 ± 3.2
    assert not torch.equal(epoch(0, seed=1), first)


def test_own_transforms_leave_torchs_generator_as_it_was():
    class Noise(torch.nn.Module):
        def forward(self, images):
            return images + torch.randint(0, 2, images.shape, dtype=torch.uint8)

    def fails(_):
        torch.rand(1)
        raise KeyError

    torch.manual_seed(5)
    expected = torch.get_rng_state()
    images, index = random_images(3), torch.arange(3)
    apply_custom_batch(Noise(), images, 0, seed=0, epoch=0)
    apply_custom(Noise(), images, index, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), expected)
    with pytest.raises(KeyError):
        apply_custom_batch(fails, images, 0, seed=0, epoch=0)
    with pytest.raises(KeyError):
        apply_custom(fails, images, index, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), expected)
