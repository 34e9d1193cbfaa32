"""Laws of progressive resizing: sizes, the filter, both engines, a run."""

import pytest
import torch
import torch.nn.functional as F

from resnet_se.analysis import cost
from resnet_se.data.resolution import Resolution, downsample
from resnet_se.utils.errors import UserError
from tests.conftest import TINY
from tests.data.test_datamodule import Source, epoch_of, module, same, together
from tests.training.test_training_techniques import (
    Stopped,
    assert_same_run,
    interrupt,
    only,
)

TWO = ((24, 0.3), (28, 0.6))
ONE_STAGE = ("model.widths=[8]", "model.strides=[1]")


def test_phases_end_with_an_epoch_and_the_last_ones_are_whole():
    def sides(epochs):
        return [height for height, _ in Resolution(TWO, epochs).sizes((32, 32))]

    assert sides(10) == [24] * 3 + [28] * 3 + [32] * 4
    assert sides(4) == [24, 28, 32, 32]
    assert sides(1) == [32]
    assert Resolution((), 2).sizes((8, 12)) == [(8, 12)] * 2


def test_the_shorter_side_is_given_and_the_shape_is_kept():
    assert Resolution(((16, 0.5),), 2).sizes((32, 48)) == [(16, 24), (32, 48)]


@pytest.mark.parametrize("phases", [((28, 0.3), (24, 0.6)), ((24, 0.6), (28, 0.6))])
def test_phases_that_do_not_ascend_are_refused(phases):
    with pytest.raises(UserError, match=r"^data.resolution: .* both ascending, got"):
        Resolution(phases, 10)


def test_a_side_of_the_images_or_over_is_refused():
    with pytest.raises(UserError, match="expected sides below the images' 24, got 28"):
        Resolution(TWO, 10).size(9, (24, 32))


def test_downsampling_is_torchs_antialiased_bilinear():
    images = torch.rand(5, 3, 20, 32, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(images, (15, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(downsample(images, (15, 24)), expected)
    assert downsample(images, (20, 32)) is images


@pytest.mark.parametrize("engine", ["batched", "torchvision"])
def test_either_engine_resizes_what_it_has_augmented(engine):
    def images_of(**options):
        data = module(engine, source=Source(size=(16, 24)), **options)
        levels = [together(epoch_of(data, epoch))[0] for epoch in (0, 1)]
        return [x * 255 * data.std[:, None, None] for x in levels]

    whole = images_of()
    small, late = images_of(resolution=[[12, 0.5]], epochs=2)
    assert torch.equal(late, whole[1])
    assert small.shape[-2:] == (12, 18)
    # The torchvision engine's pixels are whole grey levels after rows and columns.
    atol = 1e-3 if engine == "batched" else 1.01
    torch.testing.assert_close(small, downsample(whole[0], (12, 18)), atol=atol, rtol=0)


@pytest.mark.parametrize("engine", ["batched", "torchvision"])
def test_the_rest_of_an_epoch_has_its_size(engine):
    options = {"resolution": [[12, 0.5]], "epochs": 2, "source": Source(size=(16, 16))}
    whole = epoch_of(module(engine, **options), 0)
    data = module(engine, **options)
    data._place = {"epoch": 0, "done": 3}
    rest = [data.on_after_batch_transfer(b, 0) for b in data.train_dataloader()]
    assert all(same(a, b) for a, b in zip(rest, whole[3:], strict=True))


@pytest.mark.slow
def test_a_training_goes_on_in_its_first_phase_bit_for_bit(
    train, run_dirs, monkeypatch, tmp_path
):
    """In its second: `test_all_together_go_on_bit_for_bit`."""
    every = ("data.resolution=[[16,0.5]]", "+callbacks.checkpoint.every_n_steps=3")
    assert train("runs_dir=whole", *every) == 0
    Stopped(monkeypatch, (0, 4), interrupt)
    assert train(*every) == 130
    assert train(*every) == 0
    (reference,) = tmp_path.glob("whole/*/*")
    assert_same_run(only(run_dirs())[0], reference)


def test_a_record_counts_the_operations_of_each_size(train, run_dirs):
    assert train("data.resolution=[[16,0.5]]", "model.depths=[1]", *ONE_STAGE) == 0
    _, record = only(run_dirs())
    # Convolutions 3 → 8 and twice 8 → 8; an SE of 8 → 2 → 8; a head 8 → 10.
    macs = {side: side**2 * 9 * (24 + 64 + 64) + 32 + 80 for side in (16, 32)}
    assert record["model"]["macs"] == macs[32]
    images = 32 * record["train"]["steps"] // 2  # of each of two epochs
    flop = 6 * images * sum(macs.values())
    assert record["train"]["pflop"] == pytest.approx(flop / 1e15, rel=1e-5)
    first = 6e-15 * images * macs[16]
    assert record["history"]["pflop"] == pytest.approx([first, flop / 1e15], rel=1e-5)
    assert record["setting"]["data.resolution"] == [[16, 0.5]]


def test_a_network_that_cannot_take_a_size_is_refused_with_those_that_it_can(
    command, capsys
):
    pools = ("+model.downsample=pool", "model.strides=[8,4,1]")
    small = ("data.resolution=[[8,0.5]]", *pools)
    for name in ("train", "plan"):
        assert command(name, *TINY, *small) == 2
        message = capsys.readouterr().err
        assert "ResNet does not take images of 8 × 8; below 32 pixels it" in message


def test_a_plan_counts_the_phases(command, capsys, monkeypatch):
    def timed(call, device):  # a step of images of a side takes as many seconds
        return getattr(call, "args", ((0,),))[0][0]

    monkeypatch.setattr(cost, "_timed", timed)
    phases = ("trainer.max_epochs=10", "data.resolution=[[16,0.9]]")
    assert command("plan", *TINY, *phases) == 0
    minutes = float(capsys.readouterr().out.split()[-2])  # of 1 job
    steps = 216 // 32
    assert minutes == pytest.approx(steps * (9 * 16 + 32) / 60, abs=0.051)
