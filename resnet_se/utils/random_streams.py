"""Random streams, each named by its purpose and by its place.

A stream depends on its purpose and its parts (seed, epoch, index, …) alone, so that an
interrupted run continues as it would have.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(purpose: str, *parts: int) -> int:
    """Return a 63-bit seed; another purpose or other parts give an unrelated stream."""
    # Not numpy's SeedSequence: to it (1,), (1, 0) and (1, 0, 0) are the same entropy.
    digest = hashlib.sha256(repr((purpose, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(purpose: str, *parts: int) -> torch.Generator:
    """Return a CPU generator seeded by `derive_seed`."""
    import torch  # a search derives seeds without it

    return torch.Generator().manual_seed(derive_seed(purpose, *parts))
