"""The rows that a `.wandb` file holds, up to where its writer was killed.

wandb 0.31 writes a log of LevelDB's format and reads it in its own binary alone.

The format: https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = 7  # bytes of wandb's own before the first block's records
BLOCK = 32 << 10
HEADER = struct.Struct("<IHB")  # checksum, length, kind
WHOLE, LAST = 1, 4  # kinds that end a record; 2 and 3 are its beginning and middle


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what was logged, {name: value} with wandb's `_step`, in its order."""
    from wandb.proto import wandb_internal_pb2

    make_record: Any = vars(wandb_internal_pb2)["Record"]  # made when it is imported
    for content in _records(path.read_bytes()):
        record = make_record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            yield {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }


def _records(content: bytes) -> Iterator[bytes]:
    at, record = MARK, b""
    while at + HEADER.size <= len(content):
        if BLOCK - at % BLOCK < HEADER.size:  # too little for a header: padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(content, at)
        at += HEADER.size
        if not kind or at + length > len(content):
            return
        record += content[at : at + length]
        at += length
        if kind in (WHOLE, LAST):
            yield record
            record = b""
