"""Downloads: bounded in time, verified, whole or not there."""

from __future__ import annotations

import hashlib
import threading
import urllib.request
from pathlib import Path
from typing import Any

from resnet_se.data.reading import progress
from resnet_se.utils.files import atomic_file

SECONDS = 10.0  # to open a download, and between two pieces of it


def download(url: str, md5: str, target: Path) -> None:
    """Put `url` at `target`, or leave nothing there.

    torchvision's own has no time limit and leaves what came so far as `target`.

    Raises:
        OSError: no connection, no answer in time, another checksum than `md5`.
        http.client.HTTPException: an answer that is none.
    """
    results: list[Any] = []

    def connect() -> None:
        try:
            results.append(urllib.request.urlopen(url, timeout=SECONDS))
        except Exception as error:  # passed on to the thread that waits
            results.append(error)

    # The timeout does not bound the look-up of the name: wait for a thread instead.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SECONDS)
    response = results[0] if results else OSError(f"no answer in {SECONDS:g} s")
    if isinstance(response, Exception):
        raise response
    digest = hashlib.md5(usedforsecurity=False)
    length = int(response.headers.get("Content-Length", 0)) or None
    bar = progress(f"downloading {url}", length)
    with response, atomic_file(target) as file, bar as advance:
        while piece := response.read(1 << 16):
            file.write(piece)
            digest.update(piece)
            advance(len(piece))
        if digest.hexdigest() != md5:
            raise OSError(f"md5 of {url} is {digest.hexdigest()}, expected {md5}")
