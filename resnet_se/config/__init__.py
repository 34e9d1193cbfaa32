"""The configuration: composed, validated, settled, and built into objects."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# The configuration groups: inside the package in a wheel, beside it in a checkout.
CONF = next(
    folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir()
)
