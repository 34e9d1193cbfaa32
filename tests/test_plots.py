"""Pictures of a run: torchmetrics' matrix, the surest mistakes, any class names."""

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_confusion_matrix

from resnet_se import plots


def numbers(figure):
    return [int(text.get_text()) for text in figure.axes[0].texts]


def test_confusion_shows_torchmetrics_matrix_in_per_cent_of_the_row():
    torch.manual_seed(0)
    labels, predicted = torch.randint(4, (2, 200))
    labels[labels == 2] = 0  # a class that the test set lacks
    figure = plots.confusion(labels, predicted, "abcd")
    counts = multiclass_confusion_matrix(predicted, labels, 4)
    expected = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    assert numbers(figure) == expected.round().int().flatten().tolist()
    plt.close(figure)


def test_mistakes_are_the_surest_wrong_ones_in_order():
    logits = torch.tensor([[9.0, 0], [2, 0], [0, 1], [5, 0]])
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    figure = plots.mistakes(images, torch.tensor([0, 1, 0, 1]), logits, ["cat", "dog"])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["cat (0.99)\ndog", "cat (0.88)\ndog", "dog (0.73)\ncat"]
    plt.close(figure)


def test_plots_are_written_whatever_the_classes_are_called(tmp_path):
    history = [{"epoch": 0, "train/loss": 2.0, "train/lr": 0.1, "val/acc": 0.5}]
    before = plt.get_fignums()
    plots.save_run_plots(
        tmp_path,
        history=history,
        images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([0, 1, 1]),  # only the first batches were tested
        logits=torch.eye(2)[[1, 1, 0]],
        classes=["$^$", "_ #%"],  # no formula
    )
    for name in ("curves", "confusion", "mistakes"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.convert("L").getextrema() != (255, 255)
    assert plt.get_fignums() == before  # nothing is left open


def test_confusion_of_many_classes_fits_into_memory():
    labels = torch.arange(500)
    figure = plots.confusion(labels, labels.flip(0), [f"class {i}" for i in labels])
    assert max(figure.get_size_inches()) <= 50  # 6000 pixels, 150 MB to draw on
    plt.close(figure)
