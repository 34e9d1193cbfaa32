"""Atomic files, bounded reading, and a lock that the system releases."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from resnet_se.utils.errors import UserError


@contextmanager
def atomic_file(path: Path, backup: Path | None = None) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` once it is complete and on disk.

    Args:
        backup: name under which the previous file is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's files are private
        if backup is not None and path.is_file():
            _link(path, backup)
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def writing(out: Path, folder: Path | None = None) -> Iterator[None]:
    """Name `out` in the error of a system that does not let it be written.

    Args:
        folder: is made first.

    Raises:
        UserError: in place of the body's OSError.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror}") from None


def check_file(out: Path) -> None:
    """Refuse, before the work, a name that no file can have in the end.

    Raises:
        UserError: it is a folder's, or the system does not let it be written.
    """
    if out.is_dir():
        raise UserError(f"out: expected the name of a file, got the folder {out}")
    with writing(out, folder=out.parent), tempfile.TemporaryFile(dir=out.parent):
        pass


def check_folder(out: Path) -> None:
    """Refuse, before the work, a folder that cannot be written in; makes none.

    Raises:
        UserError: there is a file by its name, or the system does not let it be.
    """
    if out.is_file():
        raise UserError(f"out: expected a folder, got the file {out}")
    there = out.is_dir()
    with writing(out, folder=out), tempfile.TemporaryFile(dir=out):
        pass
    if not there:
        with suppress(OSError):  # somebody else has written into it since
            out.rmdir()


def own_folder(folder: Path) -> Path:
    """Return a folder inside a run, to write in; a link may lead anywhere.

    Raises:
        UserError: it is a link.
    """
    if folder.is_symlink():
        place = os.readlink(folder)
        raise UserError(f"{folder}: a link to {place}, which is not written through; "
                        "out=… names a place")  # fmt: skip
    return folder


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a value as a whole JSON file; raises as `writing`."""
    with writing(path), atomic_file(path) as file:
        file.write(json.dumps(value, indent=indent).encode() + b"\n")


def csv_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: `'=1+1`; numbers stay."""
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return a file's content, unless it is a pipe or device, which may have no end.

    Raises:
        UserError: it is no regular file, or larger than `max_bytes`.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: expected a regular file")
    if status.st_size > max_bytes:
        raise UserError(f"{path}: expected at most {max_bytes >> 20} MB")
    return path.read_bytes()


def _link(path: Path, other: Path) -> None:
    """Give a file a second name, replacing the file that had it."""
    new = other.with_name(f".{other.name}.new")
    new.unlink(missing_ok=True)
    try:
        os.link(path, new)
    except OSError:  # a file system without links
        shutil.copyfile(path, new)
    os.replace(new, other)


def _sync_folder(folder: Path) -> None:
    """Write a new name to disk, where a folder can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Busy(UserError):
    """Another process is working in the run directory."""


@contextmanager
def exclusive(run_dir: Path, name: str = ".lock") -> Iterator[None]:
    """Hold the lock `run_dir/name`; the system releases it when the process ends.

    Raises:
        Busy: another process holds it.
        UserError: the directory cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / name, timeout=0)
        lock.acquire()
    except Timeout:
        raise Busy(f"{run_dir}: another process is training this run") from None
    except OSError as error:
        raise UserError(
            f"runs_dir: cannot write in {run_dir}: {error.strerror}"
        ) from None
    try:
        yield
    finally:
        lock.release()
