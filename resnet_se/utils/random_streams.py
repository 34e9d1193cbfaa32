"""Random streams, each named by what it is for and by where it stands.

A stream depends on its purpose and its parts (seed, epoch, index, …) alone, so that a
run that was cut goes on as it would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(purpose: str, *parts: int) -> int:
    """A 63-bit seed; another purpose or other parts give an unrelated stream."""
    # Not numpy's SeedSequence: to it (1,), (1, 0) and (1, 0, 0) are the same entropy.
    digest = hashlib.sha256(repr((purpose, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(purpose: str, *parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(purpose, *parts))


@contextmanager
def kept_stream() -> Iterator[torch.Generator]:
    """torch's CPU generator, to be seeded at will; afterwards it is as it was."""
    before = torch.default_generator.get_state()
    try:
        yield torch.default_generator
    finally:
        torch.default_generator.set_state(before)
