"""The metrics of a training: the names that are logged, and which way is better."""

from __future__ import annotations

from typing import Literal

from resnet_se.utils.errors import UserError, nearest

Mode = Literal["min", "max"]

# None: neither way is.
METRICS: dict[str, Mode | None] = {
    "train/loss": "min",
    "train/acc": "max",
    "train/lr": None,
    "val/loss": "min",
    "val/acc": "max",
    "test/loss": "min",
    "test/acc": "max",
    "test/acc_tta": "max",
    "test/ece": "min",
}
# Those of training and validation: the others come once, after it.
MONITORED = [name for name in METRICS if not name.startswith("test/")]


def direction(metric: str, mode: str | None = None, owner: str = "metric") -> Mode:
    """Return the direction in which a metric improves during training.

    Args:
        mode: the direction that was asked for, to be checked; None: the metric's own.
        owner: what monitors it, for the message.

    Raises:
        UserError: a metric that is never logged, or not while training; a mode that
            would keep the worst; none, for a metric without a direction.
    """
    if metric not in METRICS:
        hint = nearest(str(metric), MONITORED)
        raise UserError(f"{owner}.monitor: {metric!r} is never logged; {hint}")
    if metric not in MONITORED:
        raise UserError(
            f"{owner}.monitor: {metric} is known only after training; "
            f"{nearest(metric.replace('test', 'val'), MONITORED)}"
        )
    own = METRICS[metric]
    if mode not in (None, "min", "max"):
        raise UserError(f"{owner}.mode: expected min or max, got {mode!r}")
    if own is None and mode is None:
        raise UserError(
            f"{owner}.mode: {metric} has no better end; add mode=min or max"
        )
    if own is not None and mode not in (None, own):
        raise UserError(
            f"{owner}.mode: expected {own} for {metric}, got {mode}, which would keep "
            "the worst; leave it out"
        )
    return own or mode  # type: ignore[return-value]
