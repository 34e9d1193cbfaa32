"""A run directory while it is worked on: its lock, its status, its free name."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from resnet_se.runs.record import Outcome, read_result
from resnet_se.utils import distributed
from resnet_se.utils.files import exclusive

# The last error: of the only process or rank 0; of another rank.
ERROR, OTHER_RANKS = "error.txt", "error.other_ranks.txt"
RANKS_LOCK = ".lock-ranks"  # of rank 0, which may outlive the one that launched it


def next_free_dir(run_dir: Path) -> Path:
    """The first of `run_dir`, `…+1`, `…+2` that does not hold a finished run."""
    for n in count():
        path = run_dir.with_name(f"{run_dir.name}+{n}") if n else run_dir
        if (read_result(path) or {}).get("status") != "finished":
            return path
    raise AssertionError


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """The lock of a run: held by the process that was started, or that launched ranks.

    Rank 0 of those holds one of its own: should its launcher be killed, nobody starts
    before it has gone too.

    Raises:
        Busy: another process is at it.
    """
    if not distributed.is_leader():
        yield
    elif distributed.launched_by_us():
        with exclusive(run_dir, RANKS_LOCK):
            yield
    else:
        with exclusive(run_dir):
            if (run_dir / RANKS_LOCK).exists():  # ranks have been at it
                with exclusive(run_dir, RANKS_LOCK):
                    pass
            yield


class Terminated(KeyboardInterrupt):
    """SIGTERM, before training began or after it."""


def _terminate(*_: Any) -> None:
    raise Terminated


def _interrupt_once() -> Callable[..., None]:
    """Ctrl-C's handler: a second one would cut off what the first one sets off."""
    due: list[type[KeyboardInterrupt]] = [KeyboardInterrupt]

    def interrupt(*_: Any) -> None:
        if due:
            raise due.pop()

    return interrupt


@contextmanager
def tracked_status(
    run_dir: Path,
    outcome: Outcome,
    explain: Callable[[BaseException], str],
    at_end: Callable[[str], None],
) -> Iterator[None]:
    """Keep the record of a run true whatever happens in the body.

    It is `running` from here on, and in the end finished, pruned, interrupted (Ctrl-C,
    SIGTERM or a killed rank) or failed, with the error and its traceback beside it.

    Args:
        explain: an error in the user's terms, for the record.
        at_end: called with the last status.
    """
    error_file = run_dir / (ERROR if distributed.is_leader() else OTHER_RANKS)
    with suppress(ValueError):  # a launcher's thread takes no signals
        signal.signal(signal.SIGTERM, _terminate)
        signal.signal(signal.SIGINT, _interrupt_once())
    stopped = False
    try:
        _write(run_dir, outcome)
        error_file.unlink(missing_ok=True)
        yield
        if outcome.status == "running":  # else a search has pruned it
            outcome.status = "finished"
        _write(run_dir, outcome)
    except BaseException as error:
        # Lightning turns Ctrl-C into SystemExit, and ignores further ones.
        kinds = KeyboardInterrupt | SystemExit | distributed.Stopped
        stopped = isinstance(error, kinds)
        outcome.status = "interrupted" if stopped else "failed"
        outcome.error = explain(error)
        if stopped and not isinstance(error, distributed.Stopped):
            outcome.error = "interrupted from outside"
        with suppress(OSError):  # a full disk must not hide what happened
            _write(run_dir, outcome)
            if not stopped and not error_file.exists():  # else a rank's: it says more
                trace = traceback.format_exc()  # may name files that are not UTF-8
                error_file.write_text(trace, "utf-8", "backslashreplace")
        if stopped:
            raise KeyboardInterrupt from None
        raise
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # Stopped, the command ends; Lightning ignores further ones as well.
            further = signal.SIG_IGN if stopped else signal.default_int_handler
            signal.signal(signal.SIGINT, further)
        at_end(outcome.status)


def _write(run_dir: Path, outcome: Outcome) -> None:
    if distributed.is_leader():
        outcome.write(run_dir)


def first_error(run_dir: Path) -> tuple[str, Path] | None:
    """The last line of the error file that was written first, and its path.

    Who wrote first is the reason; the others may only have seen it go.
    """
    files = [run_dir / name for name in (ERROR, OTHER_RANKS)]
    # On a full disk a file may be there and empty.
    files = [file for file in files if file.is_file() and file.stat().st_size]
    if not files:
        return None
    first = min(files, key=lambda file: file.stat().st_mtime_ns)
    return first.read_text().strip().splitlines()[-1], first
