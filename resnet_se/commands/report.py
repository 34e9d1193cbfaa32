"""Tables, verdicts, figures and one HTML page from the `result.json` of many runs.

    resnet-se report PATHS [--out DIR] [--name NAME]
        [--where KEY=VALUE] [--factor KEY] [--against KEY=VALUE] [--equivalence POINTS]
        [--time-to ACCURACY] [--trials]

PATHS are run directories, folders with `result.json` files at any depth, or such files
under any name.  An experiment is compared with those it names as `against`.  Runs of
one experiment that a sweep has varied are compared factor by factor; `--factor` and
`--against` do so over all experiments instead, for that factor alone.  Keys are those
of the configuration (`optimizer.lr`), its groups (`model`), or `experiment`.

`--time-to 0.9` adds the seconds and PFLOP until runs first had 90 % of the validation
images, and compares the seconds.

Writes report.html, REPORT.md, runs.csv, table.csv, comparisons.csv, tables.tex and
figures/ into DIR; of six recipes or more, ranks.csv.  Exit status 1: something was not
used, not compared or kept apart, and the report names it; 2: nothing to report.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from resnet_se.utils.errors import UserError


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"KEY=VALUE expected, got {text!r}")
    return key, value


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(
            f"percentage points between 0 and 100 expected, got {text!r}"
        )
    return value / 100


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"a validation accuracy between 0 and 1 expected (0.9), got {text!r}"
        )
    return value


def main() -> None:
    """Console entry: `resnet-se report …`."""
    parser = argparse.ArgumentParser(
        prog="resnet-se report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATHS")
    add("--out", type=Path, default=Path("report"), metavar="DIR")
    add("--name", default="resnet-se: what was measured", help="title of the report")
    add("--where", type=_pair, action="append", default=[], metavar="KEY=VALUE")
    add("--factor", action="append", default=[], metavar="KEY")
    add("--against", type=_pair, metavar="KEY=VALUE")
    add(
        "--equivalence",
        type=_points,
        default=0.005,
        metavar="POINTS",
        help="differences below this are none (default: 0.5 points)",
    )
    add("--time-to", type=_share, metavar="ACCURACY")
    add("--trials", action="store_true", help="with runs of budget=smoke and debug=…")
    arguments = parser.parse_args()
    from resnet_se.analysis.report.document import report

    try:
        sys.exit(report(**vars(arguments)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: --out {arguments.out}: {error}", file=sys.stderr)
        sys.exit(1)
