"""Pictures of a run: what they show, any class names; drawn again by `plots`."""

import json
import shutil

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix

from resnet_se.analysis import run_figures
from resnet_se.analysis.canvas import confusion
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.synthetic import Synthetic

PICTURES = {"curves", "confusion", "per_class", "reliability", "mistakes", "augmented"}


def numbers(figure):
    return [int(text.get_text()) for text in figure.axes[0].texts]


def test_confusion_shows_torchmetrics_matrix_in_per_cent_of_the_row():
    torch.manual_seed(0)
    labels, predicted = torch.randint(4, (2, 200))
    labels[labels == 2] = 0  # a class that the test set lacks
    figure = confusion(labels.numpy(), predicted.numpy(), "abcd")
    counts = multiclass_confusion_matrix(predicted, labels, 4)
    expected = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    assert numbers(figure) == expected.round().int().flatten().tolist()


def test_mistakes_are_the_surest_wrong_ones_in_order():
    logits = torch.tensor([[9.0, 0], [2, 0], [0, 1], [5, 0]])
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    figure = run_figures.mistakes(
        images, torch.tensor([0, 1, 0, 1]), logits, ["cat", "dog"]
    )
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["cat (0.99)\ndog", "cat (0.88)\ndog", "dog (0.73)\ncat"]


def test_plots_are_written_whatever_the_classes_are_called(tmp_path):
    history = [{"epoch": 0, "train/loss": 2.0, "train/lr": 0.1, "val/acc": 0.5}]
    run_figures.save_run_plots(
        tmp_path,
        "custom $eed0",
        history=history,
        images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([0, 1, 1]),  # only the first batches were tested
        logits=torch.eye(2)[[1, 1, 0]],
        val_labels=torch.tensor([0, 1]),
        val_logits=torch.eye(2),
        classes=["$^$", "_ #%"],  # no formula
    )
    for name in PICTURES - {"augmented"}:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.convert("L").getextrema() != (255, 255)
    assert plt.get_fignums() == []  # pyplot would keep what is drawn


def test_every_picture_names_its_run_and_accuracy(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: titles.append(figure.get_suptitle())
    )
    names = run_figures.save_run_plots(
        tmp_path,
        "custom seed0",
        history=history([2.0], loss=[1.0]),
        images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([0, 1, 1, 1]),
        logits=torch.eye(2)[[1, 1, 0, 1]],
        classes=["a", "b"],
        augmented=torch.zeros(3, 2, 3, 8, 8, dtype=torch.uint8),
    )
    assert set(names) == PICTURES
    heads = [title.split("\n")[0] for title in titles]
    assert set(heads) == {"custom seed0: 50.00% of 4 test images"}


def test_the_reliability_picture_counts_its_images():
    logits = torch.tensor([[3.0, 0.0]] * 3 + [[0.0, 0.1]])
    figure = run_figures.reliability_diagram(logits, torch.tensor([0, 0, 1, 1]))
    counts = [text.get_text() for text in figure.axes[1].texts]
    assert sorted(filter(None, counts)) == ["1", "3"]


def test_confusion_of_many_classes_fits_into_memory():
    labels = torch.arange(500)
    figure = confusion(
        labels.numpy(), labels.flip(0).numpy(), [f"class {i}" for i in labels]
    )
    assert max(figure.get_size_inches()) <= 50  # 6000 pixels, 150 MB to draw on


# --- curves ------------------------------------------------------


def history(losses, **columns):
    rows = [{"epoch": i, "train/loss": loss} for i, loss in enumerate(losses)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[f"val/{name}"] = value
    return rows


def test_the_best_epoch_is_marked_where_it_is():
    rows = history([3.0, 2.0, 1.0], loss=[2.5, 1.5, 1.75], acc=[0.1, 0.5, 0.6])
    figure = run_figures.curves(rows, best_epoch=1)
    for axis, value in zip(figure.axes, (1.5, 0.5), strict=False):
        (star,) = [line for line in axis.lines if line.get_marker() == "*"]
        assert (list(star.get_xdata()), list(star.get_ydata())) == ([2], [value])


def test_a_soft_training_loss_is_told_apart_and_a_long_one_smoothed():
    losses = [float(i % 2) + 1 for i in range(40)]
    figure = run_figures.curves(history(losses, loss=losses), 0, soft_targets=True)
    axis = figure.axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels[0] == "train, of soft targets: not comparable; bold: mean of 5 epochs"
    (bold,) = [x.get_ydata() for x in axis.lines if x.get_linestyle() == "--"]
    assert list(bold[:3]) == pytest.approx([4 / 3, 1.5, 1.4])
    assert list(bold[10:12]) == pytest.approx([1.4, 1.6])


def test_loss_axes_survive_what_diverged_and_say_so():
    losses = [2.0, 1.5, 1e30, float("inf"), float("nan"), 1.0, 0.9, 0.02]
    figure = run_figures.curves(history(losses))
    figure.canvas.draw()
    axis = figure.axes[0]
    low, high = axis.get_ylim()
    assert 0.01 < low < 0.02
    assert 2 < high < 3
    assert axis.get_yscale() == "log"
    assert axis.get_ylabel() == "log axis, crosses: 3 above 15 or not finite"
    crosses = [line for line in axis.lines if line.get_marker() == "x"]
    assert list(crosses[0].get_xdata()) == [3, 4, 5]
    calm = run_figures.curves(history([2.0, 1.5, 1.0]))
    assert calm.axes[0].get_yscale() == "linear"
    assert calm.axes[0].get_ylabel() == ""


# --- again -------------------------------------------------------


@pytest.mark.slow
def test_plots_are_made_again_and_what_is_missing_is_named(
    finished, command, tmp_path, capsys
):
    there = {path.stem: path.read_bytes() for path in finished.folder.glob("plots/*")}
    assert there.keys() == PICTURES
    name = finished.folder.name  # which stands on the pictures
    run = shutil.copytree(finished.folder, tmp_path / name)
    shutil.rmtree(run / "plots")
    assert command("plots", f"run={name}") == 0
    again = {path.stem: path.read_bytes() for path in run.glob("plots/*.png")}
    assert again == there
    assert "left out" not in capsys.readouterr().out
    # Other data, no predictions, and not finished.
    (run / "predictions.npz").unlink()
    record = json.loads((run / "result.json").read_text())
    record |= {"status": "interrupted", "best_epoch": None}
    record["data"]["fingerprint"] = "another"
    (run / "result.json").write_text(json.dumps(record))
    assert command("plots", f"run={name}", "out=few") == 0
    assert [path.stem for path in (tmp_path / "few").iterdir()] == ["curves"]
    said = capsys.readouterr().out
    assert f"reliability and mistakes: no {name}/predictions.npz" in said
    assert f"augmented images: {name}: trained on data with fingerprint another" in said
    (run / "metrics.csv").write_text("epoch,val/loss\n0,what\n")
    assert command("plots", f"run={name}", "out=none") == 2
    assert "nothing to draw in a run that is interrupted" in capsys.readouterr().err


def test_a_picture_that_fails_does_not_lose_the_run(
    train, run_dirs, monkeypatch, capsys
):
    def fail(*_):
        raise ValueError("what a transform of one's own may say of eight images")

    monkeypatch.setattr(run_figures, "augmented", fail)
    assert train("plots=true", "trainer.max_epochs=1") == 0
    ((_, result),) = run_dirs().items()
    assert result["status"] == "finished"
    assert "no pictures: ValueError: what a transform" in capsys.readouterr().out


def test_plots_of_no_run_are_refused(command, capsys):
    assert command("plots", "run=nowhere") == 2
    assert "run: expected a run directory, got 'nowhere'" in capsys.readouterr().err


def test_the_sheet_shows_what_training_sees():
    source = Synthetic(num_train=100, num_test=20)
    for engine in ("batched", "torchvision"):
        augment = Augmentation(flip=0.5, alternate_flip=True)
        data = ImageDataModule(source, augment, engine=engine, batch_size=10)
        data.setup()
        first, *epochs = run_figures.augmented(data, 4, 4)
        images = data.train_part[0]
        assert torch.equal(first, images[torch.arange(4) * len(images) // 4])
        for i in range(4):  # two epochs show each image both ways
            seen = {bytes(epoch[i].numpy().tobytes()) for epoch in epochs[:2]}
            assert seen == {
                bytes(x.contiguous().numpy().tobytes())
                for x in (first[i], first[i].flip(-1))
            }


def test_the_picture_of_corruptions_names_its_run(monkeypatch, tmp_path):
    drawn, real = [], run_figures.subplots
    keep = lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1]  # noqa: E731
    monkeypatch.setattr(run_figures, "subplots", keep)
    by = {"fog": {"1": {"acc": 0.5}, "2": {"acc": 0.25}}}
    run_figures.draw_corruptions("mine: 37.50%", by, tmp_path / "c.png")
    assert drawn[0][0].get_suptitle() == "mine: 37.50%"
