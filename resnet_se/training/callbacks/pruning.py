"""Early stopping of a search's trial where others are better at the same epoch.

* successive halving, asynchronous: Li et al. 2020, arXiv 1810.05934
* Hyperband: Li et al. 2018, arXiv 1603.06560

By Optuna's pruners.  Each job reports its epochs to the journal in the search's folder,
so that the trials of any launcher are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L

from resnet_se.training.callbacks.history import History
from resnet_se.training.study import Rule, import_optuna, open_study
from resnet_se.utils import lightning_private as internals
from resnet_se.utils.validation import Count, Natural, Text, validated


class Pruner(L.Callback):
    """Report each epoch's metric to the search, and end training where it is pruned.

    The run's status is then `pruned`; the same command without the search resumes it.

    Args:
        folder: of the search.
        trial: its number.
        metric: one of `METRICS`.
        rule: the pruner's.
        least: epochs of the first rung.
    """

    # No dataclass: Hydra's `instantiate` makes a dict of one among its arguments.
    @validated
    def __init__(
        self,
        folder: Text,
        trial: Natural,
        metric: Literal["val/acc", "val/loss"],
        rule: Rule,
        least: Count,
    ):
        self.folder = Path(folder)
        self.trial = trial
        self.metric = metric
        self.rule = rule
        self.least = least
        self.pruned = False
        self._trial: Any = None  # opened by rank 0

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        last = trainer.current_epoch + 1 >= internals.max_epochs(trainer)
        stop = self._should_prune(trainer) if trainer.is_global_zero else False
        stop = trainer.strategy.broadcast(stop)
        if stop and not last:
            self.pruned = trainer.should_stop = True

    def _should_prune(self, trainer: L.Trainer) -> bool:
        """Report the epochs that the study does not have, and return its decision."""
        if self._trial is None:
            rungs = (self.least, internals.max_epochs(trainer))
            study = open_study(self.folder, self.metric, self.rule, *rungs)
            # Optuna has no public way from a trial's number to the trial.
            frozen = study.get_trials(deepcopy=False)[self.trial]
            self._trial = import_optuna().trial.Trial(study, frozen._trial_id)
            self._reported = set(frozen.intermediate_values)
        history = internals.callback(trainer, History)
        assert history is not None  # it is in every training's callbacks
        for row in history.rows:
            step = int(row["epoch"]) + 1
            if step not in self._reported and self.metric in row:
                self._trial.report(row[self.metric], step)
                self._reported.add(step)
        return bool(self._reported) and self._trial.should_prune()
