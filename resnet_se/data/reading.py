"""Reading a source: its limits, its errors, its progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress

from resnet_se.data.decode import MEGAPIXELS
from resnet_se.utils.errors import UserError


class Limits(NamedTuple):
    """Largest size of a folder or an archive (GB), and of an image (megapixels)."""

    gb: float = 8.0
    megapixels: float = MEGAPIXELS

    def check_bytes(self, described: str, size: int) -> None:
        """Raise UserError, naming `max_gb`, for more than its bytes."""
        if size > self.gb * 1e9:
            expected = f"{described} of at most {self.gb:g} GB"
            raise _too_much("max_gb", expected, f"{size / 1e9:,.1f} GB")

    def check_pixels(self, name: str, pixels: float) -> None:
        """Raise UserError, naming `max_megapixels`, for more pixels than that."""
        if pixels > self.megapixels * 1e6:
            expected = f"images of at most {self.megapixels:g} megapixels"
            got = f"{name} with {pixels / 1e6:,.1f}"
            raise _too_much("max_megapixels", expected, got)


def _too_much(option: str, expected: str, got: str) -> UserError:
    hint = f"data=image_folder data.source.{option}=… allows more"
    return source_error(option, expected, got, hint)


def source_error(
    argument: str, expected: str, got: object, hint: str = ""
) -> UserError:
    """Return a UserError on `data.source.<argument>`."""
    end = f"; {hint}" if hint else ""
    return UserError(f"data.source.{argument}: expected {expected}, got {got}{end}")


def root_error(expected: str, got: object, hint: str = "") -> UserError:
    """Return a UserError on `data.source.root`."""
    return source_error("root", expected, got, hint)


def first_few(items: Iterable[str], most: int = 5) -> str:
    """Return the first items in a line, and the number of the others."""
    items = list(items)
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def all_named(items: Iterable[str], most: int = 5) -> str:
    """Return `first_few`; where it leaves some out, print each on a line of stderr."""
    items = list(items)
    if len(items) > most:
        print(*items, sep="\n", file=sys.stderr, flush=True)
    return first_few(items, most)


@contextmanager
def progress(
    description: str, total: int | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else one line, on stderr; yields `advance(steps)`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{description} …", file=sys.stderr, flush=True)
        yield lambda steps: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)
