"""Evaluation of a network: the figures of the record and the saved predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from resnet_se.data.datamodule import ImageDataModule
from resnet_se.runs import checkpoint
from resnet_se.runs.record import pack_labels, round_significant
from resnet_se.training.module import Classifier
from resnet_se.utils.errors import UserError


def score(
    trainer: L.Trainer, model: Classifier, data: ImageDataModule
) -> dict[str, Any]:
    """Return the `val` and `test` fields of a record, for the present weights."""
    trainer.loggers, loggers = [], trainer.loggers  # no second val/acc in a dashboard
    trainer.validate(model, datamodule=data, verbose=False)
    trainer.loggers = loggers
    val = {k: round_significant(float(v)) for k, v in trainer.callback_metrics.items()}
    trainer.test(model, datamodule=data, verbose=False)
    test = {k: round_significant(float(v)) for k, v in trainer.callback_metrics.items()}
    outputs = model.predictions
    predicted = outputs["logits"].argmax(dim=1)
    assert data.images is not None  # set up by the test
    tested = outputs["labels"].bincount(minlength=data.num_classes).tolist()
    per_class = [  # the recall of a class without images is undefined
        round_significant(float(v)) if n else None
        for v, n in zip(model.per_class, tested, strict=True)
    ]
    return {
        "val": {"acc": val["val/acc"], "loss": val["val/loss"]},
        "test": {
            "acc": test["test/acc"],
            "acc_tta": test.get("test/acc_tta"),
            "loss": test["test/loss"],
            "ece": test["test/ece"],
            "per_class": dict(zip(data.images.classes, per_class, strict=True)),
            "images": len(predicted),
            "labels": pack_labels(outputs["labels"]),
            "predicted": pack_labels(predicted),
            "predicted_tta": pack_labels(outputs["tta"].argmax(dim=1))
            if "tta" in outputs
            else None,
        },
    }


def load_weights(
    module: Classifier, data: ImageDataModule, path: Path
) -> dict[str, Any]:
    """Fill `module` with a checkpoint's weights; return the checkpoint.

    Raises:
        UserError: unreadable, of another architecture, or trained on other pixels.
    """
    loaded = checkpoint.read(path)
    checkpoint.check_weights(loaded, path, module)
    module.load_state_dict(loaded["state_dict"])
    if "fingerprint" not in loaded.get(checkpoint.DATA, {}):
        raise UserError(f"{path}: it does not say on which data it was trained")
    data.load_state_dict(loaded[checkpoint.DATA])
    return loaded
