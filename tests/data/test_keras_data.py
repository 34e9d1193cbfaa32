"""Moved pixels, split and last batch held against what was measured in Keras."""

import pytest
import torch

from resnet_se.data.augmentation.geometry import AffineDraws, resample
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.loaders import ShuffledBatches
from resnet_se.data.splits import tail_split
from resnet_se.utils.errors import UserError
from tests.keras_reference import KERAS

AFFINE = KERAS["affine"]
IMAGE = torch.tensor(AFFINE["image"], dtype=torch.float32)[None, None]  # (1, 1, H, W)
NAMES = [f"{row['fill']}-{sorted(row['arguments'])}" for row in AFFINE["rows"]]


def draws_of(tx=0.0, ty=0.0, theta=0.0, shear=0.0, zx=1.0, zy=1.0):
    """Keras's arguments in our terms: its shift and angle count the other way."""
    return AffineDraws(
        angle=torch.tensor([-theta]),
        shear=torch.tensor([shear]),
        scale=torch.tensor([[1 / zx, 1 / zy]]),
        shift=torch.tensor([[-ty, -tx]]),
    )


@pytest.mark.parametrize("row", AFFINE["rows"], ids=NAMES)
def test_moved_pixels_are_keras(row):
    draws = draws_of(**row["arguments"])
    moved = resample(IMAGE, draws, None, row["fill"], "keras")[0, 0]
    torch.testing.assert_close(moved, torch.tensor(row["moved"]), atol=2e-3, rtol=0)


def test_the_order_of_torchvision_is_another_where_more_than_one_moves():
    row = AFFINE["rows"][-1]
    assert len(row["arguments"]) == 6
    draws = draws_of(**row["arguments"])
    moved = resample(IMAGE, draws, None, row["fill"])[0, 0]
    assert (moved - torch.tensor(row["moved"])).abs().max() > 10


def test_one_zoom_is_two_equal_ones():
    draws = draws_of(theta=10.0, ty=1.0, shear=5.0)
    one = draws._replace(scale=torch.tensor([1.1]))
    two = draws._replace(scale=torch.tensor([[1.1, 1.1]]))
    assert torch.equal(resample(IMAGE, one, None), resample(IMAGE, two, None))
    # Across alone: a row of equal values stays, a column of them moves.
    stripes = torch.arange(12.0).expand(1, 1, 12, 12)
    across = draws_of()._replace(scale=torch.tensor([[2.0, 1.0]]))
    expected = 5.5 + (torch.arange(12.0) - 5.5) / 2
    moved = resample(stripes, across, None, "nearest")
    torch.testing.assert_close(moved, expected.expand(1, 1, 12, 12))


def test_black_keeps_the_image_and_nearest_repeats_its_edge():
    draws = draws_of(tx=3.0)
    for fill, edge in (("black", 0.0), ("nearest", IMAGE[0, 0, :, -1:])):
        moved = resample(IMAGE, draws, None, fill, "keras")[0, 0]
        torch.testing.assert_close(moved[:, :9], IMAGE[0, 0, :, 3:], atol=1e-3, rtol=0)
        expected = torch.zeros(12, 3) + edge
        torch.testing.assert_close(moved[:, 9:], expected, atol=1e-3, rtol=0)


# --- both engines ------------------------------------------------


KERAS_LIKE = {
    "fill": "nearest",
    "zoom_axes": 2,
    "whole_shifts": False,
    "affine": "keras",
}


def test_draws_have_keras_ranges():
    row = KERAS["generator_draws"]
    augmentation = Augmentation(
        rotation=15, shift=0.1, shear=0.1, zoom=0.1, flip=0.5, **KERAS_LIKE
    )
    height, width = row["size"]
    draws = augmentation.draw(4000, height, width, seed=0, epoch=0)
    zoom = 1 / draws.affine.scale
    columns = {
        "theta": draws.affine.angle,
        "tx": draws.affine.shift[
            :, 0
        ],  # of the height, though Keras moves columns by it
        "ty": draws.affine.shift[:, 1],
        "shear": draws.affine.shear,
        "zx": zoom[:, 0],
        "zy": zoom[:, 1],
    }
    for name, values in columns.items():
        extent = row["most"][name] - row["least"][name]
        assert float(values.min()) == pytest.approx(
            row["least"][name], abs=0.01 * extent
        )
        assert float(values.max()) == pytest.approx(
            row["most"][name], abs=0.01 * extent
        )
    assert row["whole_shifts"] == 0
    assert not (draws.affine.shift % 1 == 0).any()
    correlation = torch.corrcoef(zoom.T)[0, 1]
    assert abs(float(correlation)) < 0.06
    assert abs(row["correlation_of_zooms"]) < 0.06
    assert float(draws.mirror.float().mean()) == pytest.approx(
        row["mean_flips"], abs=0.04
    )


def test_idle_values_draw_what_they_drew():
    plain = {"rotation": 15, "shift": 0.1, "shear": 10, "zoom": 0.1}
    draws = Augmentation(**plain).draw(50, 8, 12, seed=1, epoch=2).affine
    other = Augmentation(**plain, **KERAS_LIKE).draw(50, 8, 12, seed=1, epoch=2).affine
    assert torch.equal(draws.angle, other.angle)
    assert draws.scale.shape == (50,)
    assert torch.equal(draws.shift, other.shift.round())


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": 30, "fill": "nearest"},
        {"zoom": 0.5, "zoom_axes": 2, "fill": "nearest"},
        {"shift": 0.2, "whole_shifts": False, "fill": "reflect"},
        {"rotation": 20, "shift": 0.1, "shear": 20, "zoom": 0.2, **KERAS_LIKE},
    ],
    ids=str,
)
def test_the_engines_draw_from_the_same_distribution(options):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    augmentation = Augmentation(**options)
    n = 1500
    draws = augmentation.draw(n, 8, 12, seed=0, epoch=0)
    batched = augmentation.apply(image.expand(n, 3, 8, 12), draws)
    transform = augmentation.transform(8, 12)
    single = torch.stack([transform(image) for _ in range(n)])
    assert single.dtype == torch.uint8
    assert single.unique(dim=0).shape[0] > n / 2
    spread = batched.std(dim=0) + 1
    error = (batched.mean(dim=0) - single.float().mean(dim=0)) / spread
    assert error.abs().max() < 5 * (2 / n) ** 0.5
    ratio = single.float().std(dim=0).add(1) / spread
    assert ratio.min() > 0.85
    assert ratio.max() < 1.15


def test_a_bad_fill_is_refused():
    with pytest.raises(UserError, match="fill"):
        Augmentation(fill="constant")


# --- split and last batch ----------------------------------------


def test_tail_split_is_keras_validation_split():
    row = KERAS["validation_split"]
    labels = torch.arange(row["size"]) % 3
    train, val = tail_split(labels, row["fraction"])
    assert [int(train[0]), int(train[-1])] == row["train"]
    assert [int(val[0]), int(val[-1])] == row["val"]
    assert torch.equal(torch.cat([train, val]), torch.arange(row["size"]))


def test_tail_of_sorted_images_is_refused():
    labels = torch.arange(10).repeat_interleave(10)
    with pytest.raises(UserError, match="class 9 lies in the last 10 images alone"):
        tail_split(labels, 0.1)
    with pytest.raises(UserError, match="got 0 to train on and 1 held out"):
        tail_split(torch.zeros(1), 0.5)


def test_a_last_batch_that_is_kept_makes_keras_steps():
    row = KERAS["steps_per_epoch"]
    kept = ShuffledBatches(row["images"], row["batch"], seed=0, drop_last=False)
    dropped = ShuffledBatches(row["images"], row["batch"], seed=0)
    assert len(kept) == row["steps"]
    assert len(dropped) == row["steps"] - 1
    assert sorted(kept.indices().tolist()) == list(range(row["images"]))
    sizes = [len(batch) for batch in kept]
    assert sizes[:-1] == [128] * 351
    assert sizes[-1] == 45000 - 351 * 128


@pytest.mark.parametrize("world", [1, 2, 3])
def test_kept_rests_are_shared_evenly_and_resumed(world):
    ranks = [
        ShuffledBatches(53, 8, 4, rank, world, epoch=1, drop_last=False)
        for rank in range(world)
    ]
    full = 53 // (8 * world)
    rest = (53 - full * 8 * world) // world
    seen = [rank.indices() for rank in ranks]
    assert {len(part) for part in seen} == {full * 8 + rest}
    together = torch.cat(seen)
    assert len(together.unique()) == len(together)
    assert len(list(ranks[0])) == len(ranks[0]) == full + (rest > 0)
    dropped = ShuffledBatches(53, 8, 4, 0, world, epoch=1).indices()
    assert torch.equal(seen[0][: full * 8], dropped)
    resumed = ShuffledBatches(53, 8, 4, 0, world, epoch=1, done=full, drop_last=False)
    assert torch.equal(resumed.indices(), seen[0][full * 8 :])
