"""The study of a hyperparameter search: Optuna's, in a folder that processes share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnet_se.training.metrics import direction
from resnet_se.utils.errors import UserError

if TYPE_CHECKING:
    import optuna

METRICS = ("val/acc", "val/loss")
Rule = Literal["halving", "hyperband"]
FACTOR = 3  # one trial of so many continues from a rung, to so many times its epochs


def import_optuna() -> Any:
    """Return Optuna, an optional dependency, without its line for every trial.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "hparams_search=optuna: not installed; uv sync --extra optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(
    folder: Path, metric: str, rule: Rule | None = None, least: int = 1, most: int = 1
) -> optuna.Study:
    """Return the study in `folder`, new or continued; many processes may share it.

    Args:
        metric: one of `METRICS`.
        rule: of the pruner, or None.
        least, most: epochs of the first rung and of a whole training.
    """
    optuna = import_optuna()
    pruner = optuna.pruners.NopPruner()
    if rule == "halving":
        pruner = optuna.pruners.SuccessiveHalvingPruner(least, FACTOR)
    elif rule == "hyperband":
        pruner = optuna.pruners.HyperbandPruner(least, max(least, most), FACTOR)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.log"))
    return optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=folder.name,
        direction=f"{direction(metric)}imize",
        pruner=pruner,
        load_if_exists=True,
    )
