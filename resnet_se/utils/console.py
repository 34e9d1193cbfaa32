"""Messages of a run on the console: header, warning, closing line and table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

console = Console()


def print_fallback(reason: str) -> None:
    """Print a warning that the run has synthetic images, and why."""
    console.rule("[bold yellow]synthetic images instead of CIFAR-10", style="yellow")
    console.print(reason)
    console.print("The figures below say nothing about CIFAR-10.", style="bold yellow")
    console.rule(style="yellow")


def print_header(result: dict[str, Any], run_dir: Path) -> None:
    """Print a run's network, data, device and directory in one line."""
    model, data, machine = result["model"], result["data"], result["hardware"]
    console.print(
        f"{result['experiment']} · seed {result['seed']} · "
        f"{model['total']:,} parameters · "
        f"{model['macs'] / 1e6:.1f} MMAC · {data['origin']}, "
        f"{data['train']:,} to train on · {machine['accelerator']}, "
        f"{machine['precision']} · Pillow {result['versions']['pillow']} · {run_dir}",
        soft_wrap=True,
        highlight=False,
    )
    if result.get("choices", {}).get("reading") == "keras":
        console.print(
            "The Keras reading: Keras's defaults where the paper prints nothing.",
            soft_wrap=True,
        )


def print_devices(n: int, batch_size: int, lr: float, scaled: bool) -> None:
    """Print the global batch and the rate in force of a run on several devices.

    Args:
        batch_size: of one device.
        lr: of the configuration.
    """
    rate = f"{lr * n:g}, {n} × {lr:g} (trainer.scale_lr)" if scaled else f"{lr:g}"
    console.print(
        f"{n} devices × {batch_size} images, a global batch of {n * batch_size}; "
        f"rate {rate}" + ("" if scaled else ", trainer.scale_lr=true multiplies it"),
        soft_wrap=True,
        highlight=False,
    )


def print_closing_line(result: dict[str, Any], run_dir: Path) -> None:
    """Print the figures of a job of a sweep in one line."""
    test, seconds = result["test"], result["train"]["seconds"]
    tta = "" if test["acc_tta"] is None else f" ({test['acc_tta']:.2%} with TTA)"
    elapsed = "" if seconds is None else f" in {clock(seconds)}"
    console.print(
        f"{result['experiment']}, seed {result['seed']}: test {test['acc']:.2%}{tta}"
        f"{elapsed} · {os.path.relpath(run_dir)}",
        soft_wrap=True,
        highlight=False,
    )


def print_closing_table(result: dict[str, Any], run_dir: Path) -> None:
    """Print a run's accuracies, parameters, time, speed and directory as a table."""
    test, fit, data = result["test"], result["train"], result["data"]
    table = Table(title=f"{result['experiment']}, seed {result['seed']}")
    table.show_header = False
    table.add_column()
    table.add_column(justify="right", overflow="fold")
    speed = fit["images_per_second"]
    tta = test["acc_tta"]
    rows = [
        ("data", data["origin"]),
        ("test accuracy", f"{test['acc']:.2%} of {test['images']:,} images"),
        ("test accuracy with TTA", "–" if tta is None else f"{tta:.2%}"),
        ("validation accuracy", f"{result['val']['acc']:.2%}"),
        ("best epoch / epochs", f"{result['best_epoch'] + 1} / {fit['epochs']}")
        if result.get("best_epoch") is not None
        else ("epochs", f"{fit['epochs']}"),
        ("parameters", f"{result['model']['total']:,}"),
        ("training time", "–" if fit["seconds"] is None else clock(fit["seconds"])),
        ("images per second", "–" if speed is None else f"{speed:,.0f}"),
        (
            "hardware",
            f"{result['hardware']['device']}, {result['hardware']['cores']} "
            f"cores, {result['hardware']['precision']}",
        ),
    ]
    if data.get("fallback"):
        rows.insert(0, ("[yellow]CIFAR-10 was not found", "[yellow]synthetic images"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    # Below the table, which would cut it at the window's edge.
    console.print(f"files: {os.path.relpath(run_dir)}", soft_wrap=True, highlight=False)


def plain_table(title: str | None, *columns: str, left: int = 1) -> Table:
    """Return a table that fits 80 columns where it can; words are folded, never cut.

    Args:
        columns: headings, a word a line.
        left: columns that are aligned left; the others are right.
    """
    table = Table(title=title, box=box.SIMPLE, padding=0, show_edge=False)
    for i, name in enumerate(columns):
        side: Literal["left", "right"] = "left" if i < left else "right"
        table.add_column(name.replace(" ", "\n"), justify=side, overflow="fold")
    return table


def count_of(n: int, noun: str) -> str:
    """Return `1 picture`, `1,200 pictures`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def clock(seconds: float) -> str:
    """Return a duration such as `4 min 18 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
