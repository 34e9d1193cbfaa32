"""A search over hyperparameters: Optuna proposes, any Hydra launcher trains.

    python -m resnet_se.train hparams_search=optuna launcher=joblib
    python -m resnet_se.train hparams_search=optuna hydra.sweeper.pruner=null

hydra-optuna-sweeper needs an Optuna below 3, so this is a Hydra sweeper over today's:
tree-structured Parzen estimator (Bergstra et al. 2011) by ask and tell.

A search lies in `<runs_dir>/searches/<experiment>-seed<k>-<hash of what it searches>`:
`study.log` (Optuna's journal: trials, values, failures), each trial's `outcome.json`,
`optimization_results.yaml` and `importance.png` (which settings set the best
trials apart: PED-ANOVA, Watanabe et al. 2023, arXiv 2304.10255).  Trials that are
worse than others of their epoch stop early (`pruning`).  The same command goes on from
there: trials that were running are run again, and training is idempotent.  Trial k
draws from a generator of its own, by (seed, k): an interrupted search proposes what an
uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

from resnet_se.commands.sweep.lost_jobs import enduring
from resnet_se.commands.sweep.multirun import (
    PRUNER,
    SweepTable,
    outcomes,
    print_outcomes,
)
from resnet_se.config.compose import as_mapping, plain_values
from resnet_se.config.recipe import Recipe
from resnet_se.training.study import (
    FACTOR,
    METRICS,
    Rule,
    import_optuna,
    open_study,
)
from resnet_se.utils.errors import UserError, nearest
from resnet_se.utils.files import atomic_file, exclusive
from resnet_se.utils.random_streams import derive_seed

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

RESULTS = "optimization_results.yaml"  # as Hydra's own sweepers call it
IMPORTANCE = "importance.png"
LEAST = 10  # trials that importances are told of
BEST = 0.3  # share of the trials; Optuna's 0.1 is two of twenty, which often mislead


class OptunaSearch(Sweeper):
    """Hydra's sweeper of `hparams_search=optuna`.

    Args:
        n_trials: in all, failed ones and those of earlier starts included.
        metric: one of `METRICS`.
        max_batch_size: trials launched at once.
        pruner: `halving`, `hyperband`, or None: every trial has all its epochs.
        min_epochs: that a trial has before it may be stopped, >= 1; None: a 27th of
            all, so that the rule has three occasions, each with thrice the epochs.
        params: {override: sweep in Hydra's grammar}; the command line beats it.

    Raises:
        UserError: a setting is wrong.
    """

    config: DictConfig  # with `launcher`, from `setup` on
    launcher: Launcher

    def __init__(
        self,
        n_trials: int,
        metric: str,
        max_batch_size: int,
        params: Mapping[str, str],
        pruner: Rule | None = None,
        min_epochs: int | None = None,
    ) -> None:
        if metric not in METRICS:
            why = " (a pruner compares trials by it)" if metric is None else ""
            hint = nearest(str(metric), METRICS)
            raise UserError(f"metric: got {metric!r}{why}; {hint}")
        if pruner not in (None, *get_args(Rule)):
            hint = nearest(str(pruner), get_args(Rule))
            raise UserError(f"pruner: got {pruner!r}; {hint}, or null")
        counts = {
            "n_trials": n_trials,
            "max_batch_size": max_batch_size,
            "min_epochs": 1 if min_epochs is None else min_epochs,
        }
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name}: expected an integer >= 1, got {value!r}")
        self.n_trials = n_trials
        self.metric = metric
        self.max_batch_size = max_batch_size
        self.params = params
        self.pruner = pruner
        self.min_epochs = min_epochs

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        """Reads the space, names the search's directory, and makes the launcher.

        Raises:
            UserError: Optuna is missing, or there is nothing to search.
        """
        self.hydra_context, self.config = hydra_context, config
        if self.min_epochs is None:
            self.min_epochs = max(1, config.trainer.max_epochs // FACTOR**3)
        typed = [f"{key}={value}" for key, value in self.params.items()]
        typed += _as_typed(config.hydra.overrides.task)
        parsed = OverridesParser.create(hydra_context.config_loader).parse_overrides(
            typed
        )
        last = {o.get_key_element(): o for o in parsed}  # the command line's
        last.pop("hparams_search", None)  # a job, or its ranks, must not search again
        searched = {k: o for k, o in last.items() if o.is_sweep_override()}
        if not searched:
            raise UserError("hydra.sweeper.params: nothing to search")
        self.space = {key: _distribution(o) for key, o in searched.items()}
        self.fixed = [_text(o) for k, o in last.items() if k not in searched]
        self.folder = Path(config.runs_dir) / "searches" / self._name(searched)
        # The launcher reads the configuration; the jobs compose theirs anew.
        typed_to_hydra = _as_typed(config.hydra.overrides.hydra)
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(self.folder)
            config.hydra.overrides.hydra = [
                o for o in typed_to_hydra if not o.startswith("hydra.sweeper.")
            ] + ["hydra.mode=MULTIRUN", f"hydra.sweep.dir='{self.folder}'"]
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.launcher = enduring(launcher, self.folder)

    def _name(self, searched: Mapping[str, Override]) -> str:
        """`<experiment>-seed<k>-<hash>`; the hash: fixed settings, space, metric."""
        plain = as_mapping(OmegaConf.to_container(self.config))
        del plain["hydra"]
        cfg = OmegaConf.create(plain)
        # What the machine and the data settle is a matter of each job.
        from resnet_se.config.settle import recipe_hash

        fixed = recipe_hash(Recipe(plain_values(cfg)))
        space = {key: _text(override) for key, override in searched.items()}
        rule = [self.pruner, self.min_epochs] if self.pruner else []
        what = json.dumps([fixed, space, self.metric, *rule], sort_keys=True)
        experiment = self.config.hydra.runtime.choices.get("experiment") or "custom"
        digest = hashlib.sha256(what.encode()).hexdigest()[:8]
        return f"{experiment}-seed{cfg.seed}-{digest}"

    def sweep(self, arguments: Sequence[str]) -> None:
        """Trains until there are `n_trials`; `setup` has read the arguments.

        Raises:
            Busy: another process is at this search.
        """
        assert self.min_epochs is not None  # settled by `setup`
        with exclusive(self.folder):
            epochs = self.config.trainer.max_epochs
            study = open_study(
                self.folder, self.metric, self.pruner, self.min_epochs, epochs
            )
            for batch in self._batches(study):
                self._run(study, batch)
                self._write_results(study)

    def _batches(self, study: optuna.Study) -> Iterator[dict[int, dict[str, Any]]]:
        """Trials by number, contiguous: those left running, then new ones."""
        optuna = import_optuna()
        left = {}
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            if trial.params.keys() == self.space.keys():
                left[trial.number] = trial.params
            else:  # killed while it was asked for
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        for _, run in groupby(enumerate(left), lambda pair: pair[1] - pair[0]):
            yield {number: left[number] for _, number in run}
        while (started := len(study.trials)) < self.n_trials:
            batch = {}
            for number in range(started, self.n_trials)[: self.max_batch_size]:
                seed = _proposal_seed(self.config.seed, number)
                study.sampler = optuna.samplers.TPESampler(seed=seed)
                batch[number] = study.ask(self.space).params
            yield batch

    def _run(self, study: optuna.Study, batch: dict[int, dict[str, Any]]) -> None:
        """Trains a batch and tells its values; if the launcher dies, none."""
        jobs = [
            self.fixed + _as_overrides(params) + self._pruner_of(number)
            for number, params in batch.items()
        ]
        self.validate_batch_is_legal(jobs)
        self.launcher.launch(jobs, initial_job_idx=min(batch))
        for record in outcomes(self.folder):
            number = record["job"]
            undecided = record["kind"] in ("busy", "not started") or "lost" in record
            if number not in batch or undecided:
                continue  # told before, or to be run by the next start
            value = record.get(self.metric.replace("/", "_"))
            states = import_optuna().trial.TrialState
            state = None if value is not None else states.FAIL
            if record["kind"] == "pruned":
                state = states.PRUNED
            study.tell(number, value, state)

    def _pruner_of(self, number: int) -> list[str]:
        """The override that lets a trial's job ask whether it should go on."""
        if not self.pruner:
            return []
        folder = str(self.folder.resolve()).replace("'", "\\'")
        return [
            f"{PRUNER}{{_target_:resnet_se.training.callbacks.pruning.Pruner,folder:'{folder}',"
            f"trial:{number},metric:{self.metric},rule:{self.pruner},"
            f"least:{self.min_epochs}}}"
        ]

    def _write_results(self, study: optuna.Study) -> None:
        """`optimization_results.yaml`: the best trial and its command."""
        states = import_optuna().trial.TrialState
        complete = study.get_trials(states=[states.COMPLETE])
        if not complete:
            return
        best = study.best_trial
        found = _as_overrides(best.params)
        train = [o for o in self.fixed if not o.startswith("launcher")]
        results = {
            "name": "optuna",
            "best_params": {
                key: yaml.safe_load(value)
                for key, value in (override.split("=", 1) for override in found)
            },
            "best_value": best.value,
            "metric": self.metric,
            "best_trial": best.number,
            "trials": len(study.trials),
            "pruned": len(study.get_trials(states=[states.PRUNED])),
            "epochs": sum(
                record.get("epochs", 0)
                for record in outcomes(self.folder)
                if record["kind"] != "skipped"  # had been trained before
            ),
            "importances": _importances(study),
            "command": shlex.join(["python", "-m", "resnet_se.train", *train, *found]),
        }
        with atomic_file(self.folder / RESULTS) as file:
            file.write(yaml.safe_dump(results, sort_keys=False, width=1000).encode())
        if results["importances"]:
            _plot_importances(results["importances"], self.folder / IMPORTANCE)


class SearchTable(SweepTable):
    """The table of a search, with validation figures alone, and its best trial."""

    def show(self, found: list[dict[str, Any]], config: DictConfig) -> None:
        """Prints them; the command last, to be copied."""
        print_outcomes(found, {"val": "val_acc"})
        path = Path(config.hydra.sweep.dir) / RESULTS
        if path.is_file():
            best = yaml.safe_load(path.read_text())
            print(
                f"best of {best['trials']}, {best['pruned']} of them pruned, "
                f"{best['epochs']} epochs in all: trial {best['best_trial']}, "
                f"{best['metric']} {best['best_value']:.6g}\n{best['command']}"
            )


def _importances(study: optuna.Study) -> dict[str, float]:
    """{setting: its share of what sets the best apart}, largest first; {} of few.

    Only the order of the trials counts: pruned ones come after those that were trained
    to their end, by how far they came, then by their values there.
    """
    optuna = import_optuna()
    states = optuna.trial.TrialState
    trials = study.get_trials(states=[states.COMPLETE, states.PRUNED])
    ended = [t for t in trials if t.value is not None]
    if len(ended) < LEAST or len({t.value for t in ended}) < 2:
        return {}
    sign = -1 if study.direction == optuna.study.StudyDirection.MINIMIZE else 1

    def order(trial: Any) -> tuple[bool, int, float]:
        whole = trial.state == states.COMPLETE
        return whole, 0 if whole else trial.last_step or 0, sign * trial.value

    ended.sort(key=order)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST)
    ranked = optuna.create_study(direction="maximize")
    for rank, t in enumerate(ended):
        ranked.add_trial(
            optuna.create_trial(
                value=rank, params=t.params, distributions=t.distributions
            )
        )
    found = optuna.importance.get_param_importances(ranked, evaluator=evaluator)
    return {name: round(float(share), 4) for name, share in found.items()}


def _plot_importances(importances: Mapping[str, float], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(importances)[::-1]
    figure = Figure(figsize=(6, 1 + 0.4 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.barh(names, [importances[name] for name in names])
    axis.set_xlabel(f"share of what sets the best {BEST:.0%} of the trials apart")
    figure.savefig(path, dpi=150)


def _as_typed(overrides: ListConfig) -> list[str]:
    """Return the texts of a list of overrides, `${…}` as it is."""
    plain = OmegaConf.to_container(overrides)
    assert isinstance(plain, list)
    return [str(text) for text in plain]


def _text(override: Override) -> str:
    """Return an override that has been parsed as it was typed."""
    assert override.input_line is not None
    return override.input_line


def _distribution(override: Override) -> BaseDistribution:
    """A sweep of Hydra's grammar as Optuna's distribution; choices as text."""
    distributions = import_optuna().distributions
    if override.is_discrete_sweep():
        choices = list(override.sweep_string_iterator())
        return distributions.CategoricalDistribution(choices)
    sweep = override.value()
    assert isinstance(sweep, IntervalSweep)
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    try:
        if isinstance(low, int) and isinstance(high, int):
            return distributions.IntDistribution(low, high, log=log)
        return distributions.FloatDistribution(low, high, log=log)
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}") from None


def _proposal_seed(seed: int, number: int) -> int:
    """Of trial `number`'s proposals, in 0..2³² − 1; two seeds share none."""
    return derive_seed("search", seed, number) % 2**32


def _as_overrides(params: Mapping[str, Any]) -> list[str]:
    """Six digits of a float are enough, and can be typed."""
    return [
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    ]


# Hydra takes a plugin by no other package's name.
Plugins.instance().class_name_to_class["hydra_plugins.OptunaSearch"] = OptunaSearch
