"""The figures of a trained network on a test set other than its run's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_se.data.loaders import EVAL_BATCH_SIZE
from resnet_se.data.test_sets.base import LabelledImages
from resnet_se.data.test_sets.corruptions import MAIN
from resnet_se.inference.pretrained import Pretrained
from resnet_se.models.tta import TTA
from resnet_se.runs.record import pack_labels, round_significant
from resnet_se.training.reliability import reliability
from resnet_se.utils.errors import UserError

# Shares of people that chose the commonest class, lower ends of bins.
AGREEMENT = (0.95, 0.8, 0.0)
SHOWN = 20  # images on which people disagree most


class Outputs(NamedTuple):
    """Of every image in order, on the CPU: logits (N, K), and with TTA (N, K)."""

    logits: Tensor
    tta: Tensor | None  # probabilities


def outputs(model: Pretrained, images: Tensor, views: TTA | None) -> Outputs:
    """Return the network's outputs for uint8 images (N, 3, H, W).

    Raises:
        UserError: the network gives no finite numbers.
    """
    logits, means = [], []
    for batch in images.split(EVAL_BATCH_SIZE):
        with torch.inference_mode():
            logits.append(model(batch.to(model.mean.device)).cpu())
        if views is not None:
            means.append(model.probabilities(batch, views).cpu())
    if not all(part.isfinite().all() for part in logits):
        raise UserError(f"{model.source}: the network gives no finite numbers")
    return Outputs(torch.cat(logits), torch.cat(means) if means else None)


def figures(
    model: Pretrained, parts: Iterable[LabelledImages], views: TTA | None = None
) -> dict[str, Any]:
    """Return the figures of a test set: of its one part, or by corruption.

    Those of one part have the names of `result.json`'s `test`; `acc_95` is Wilson's
    interval.  Of several, `by` is {corruption: {severity: figures}}, and `acc` the mean
    over those of the mean corruption error (over all, where none of these is there).
    """
    several: dict[str, dict[str, Any]] = {}
    right: dict[str, list[Tensor]] = {}
    for part in parts:
        found = outputs(model, part.images, views)
        if not part.name:
            return _of_part(model, part, found)
        severities = several.setdefault(part.name, {})
        severities[str(part.severity)] = _plain(part.labels, found)
        correct = found.logits.argmax(dim=1) == part.labels
        right.setdefault(part.name, []).append(correct.double())
    if not several:
        raise UserError("data: expected a test set with images, got none")
    return _by_corruption(several, right)


def _plain(labels: Tensor, found: Outputs) -> dict[str, Any]:
    hits = int((found.logits.argmax(dim=1) == labels).sum())
    by_tta = None
    if found.tta is not None:
        by_tta = round_significant(
            float((found.tta.argmax(dim=1) == labels).double().mean())
        )
    return {
        "images": len(labels),
        "acc": round_significant(hits / len(labels)),
        "acc_95": _interval(hits, len(labels)),
        "acc_tta": by_tta,
        "loss": round_significant(float(F.cross_entropy(found.logits, labels))),
        "ece": round_significant(reliability(found.logits, labels).ece),
    }


def _interval(hits: int, n: int) -> list[float | None]:
    from scipy.stats import binomtest

    ends = binomtest(hits, n).proportion_ci(method="wilson")
    return [round_significant(ends.low), round_significant(ends.high)]


def _of_part(model: Pretrained, part: LabelledImages, found: Outputs) -> dict[str, Any]:
    labels, predicted = part.labels, found.logits.argmax(dim=1)
    recall = {}
    for i, name in enumerate(model.classes):  # null: no image of that class
        members = labels == i
        share = (predicted[members] == i).double().mean()
        recall[name] = round_significant(float(share)) if members.any() else None
    record = {
        **_plain(labels, found),
        "per_class": recall,
        "labels": pack_labels(labels),
        "predicted": pack_labels(predicted),
        "predicted_tta": None
        if found.tta is None
        else pack_labels(found.tta.argmax(dim=1)),
    }
    if part.people is not None:
        record["people"] = of_people(found.logits, labels, part.people)
    return record


def _by_corruption(
    several: Mapping[str, Mapping[str, Any]], right: Mapping[str, list[Tensor]]
) -> dict[str, Any]:
    """Return the means; the interval is for other images, the corruptions these."""
    main = [name for name in several if name in MAIN] or list(several)
    correct = torch.stack([part for name in main for part in right[name]])  # (P, N)
    of_image = correct.mean(dim=0)  # (N,)
    mean, n = float(of_image.mean()), len(of_image)
    half = 1.96 * float(of_image.std()) / n**0.5 if n > 1 else 1.0
    means = {
        name: round_significant(sum(f["acc"] for f in by.values()) / len(by))
        for name, by in several.items()
    }
    return {
        "images": n,
        "parts": correct.shape[0],
        "acc": round_significant(mean),
        "acc_95": [
            round_significant(max(0.0, mean - half)),
            round_significant(min(1.0, mean + half)),
        ],
        "mean_corruption_error": round_significant(1 - mean),
        "averaged": main,
        "by_corruption": means,
        "by": several,
    }


def of_people(logits: Tensor, labels: Tensor, people: Tensor) -> dict[str, Any]:
    """Return how a network does against the shares (N, K) of people.

    `cross_entropy` of the network's probabilities under theirs is at least their own
    `entropy`; `by_agreement` has accuracies where they agree much, or little.
    """
    log_p = logits.double().log_softmax(dim=1)
    theirs = people.double()
    most = theirs.amax(dim=1)
    correct = (logits.argmax(dim=1) == labels).double()
    bins = []
    above = 2.0
    for least in AGREEMENT:
        members = (most >= least) & (most < above)
        acc = (
            round_significant(float(correct[members].mean())) if members.any() else None
        )
        bins.append({"at_least": least, "images": int(members.sum()), "acc": acc})
        above = least
    return {
        "cross_entropy": round_significant(float(-(theirs * log_p).sum(dim=1).mean())),
        "entropy": round_significant(
            float(torch.special.entr(theirs).sum(dim=1).mean())
        ),
        "acc_of_people": round_significant(
            float((theirs.argmax(dim=1) == labels).double().mean())
        ),
        "by_agreement": bins,
        "least_agreed": most.argsort(stable=True)[:SHOWN].tolist(),
    }
