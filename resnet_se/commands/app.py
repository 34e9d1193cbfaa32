"""A command under Hydra: composed, checked, run, and its errors printed."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from omegaconf import DictConfig

from resnet_se.commands.sweep.zipped import typed_to_hydra
from resnet_se.config.command_line import as_overrides
from resnet_se.config.compose import own_conf
from resnet_se.config.hydra_versions import main
from resnet_se.config.messages import EXPECTED, explain, needs_no_traceback
from resnet_se.utils.errors import UserError


def run_command(task: str | Callable[[DictConfig], Any], config_name: str) -> None:
    """Runs `task` under Hydra; a user's mistake is one message and exit status 2.

    Any other exception shows its traceback and gives status 1, Ctrl-C gives 130.

    Args:
        task: or its name, `module.function` of this package, to be imported once the
            keys are known to be right.
    """
    filter_warnings()
    try:
        sys.argv[1:] = as_overrides(config_name, sys.argv[1:])
    except UserError as error:
        print(f"error: {explain(error, config_name)}", file=sys.stderr)
        sys.exit(2)
    show_all = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, the lines below print
    errors: list[Exception] = []

    def job(cfg: DictConfig) -> Any:
        try:
            if config_name != "train":  # whose jobs record what is found
                from resnet_se.config.validate import check_keys

                check_keys(cfg, config_name)
            return _function(task)(cfg)
        except Exception as error:  # the other jobs of a sweep go on
            errors.append(error)
            if show_all or not needs_no_traceback(error):
                traceback.print_exc()
            print(f"error: {explain(error, config_name)}", file=sys.stderr)

    sys.argv += own_conf()
    try:
        sys.argv[1:] = typed_to_hydra(sys.argv[1:])
        main(config_name)(job)()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop
        again = "; the same command goes on from here" if config_name == "train" else ""
        print(f"interrupted{again}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if show_all:
            raise
        if needs_no_traceback(error):  # before any job: it does not compose
            print(f"error: {explain(error, config_name)}", file=sys.stderr)
            sys.exit(2 if isinstance(error, (*EXPECTED, ValueError)) else 1)
        traceback.print_exc()  # no job's: the launcher has lost a worker
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(1)
    if errors:
        sys.exit(2 if isinstance(errors[-1], EXPECTED) else 1)


def _function(task: str | Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    if callable(task):
        return task
    module, _, name = task.rpartition(".")
    function: Callable[[DictConfig], Any]
    function = getattr(import_module(f"resnet_se.commands.{module}"), name)
    return function


def filter_warnings() -> None:
    """Silences notices that hide what matters to a person."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices, advertisements
    # The evaluation loaders only slice tensors: workers would slow them down.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Metrics are logged by the epoch, so that a step waits for nothing.
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    # The classifier sums over the ranks itself.
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    # The data module keeps the place in the epoch.
    warnings.filterwarnings("ignore", ".*before the epoch ended and your dataloader.*")
    # Lightning 2.6 with torch 2.15; nothing a user could act on.
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
