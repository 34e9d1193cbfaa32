"""A local web page of one or several runs, side by side.

    resnet-se demo run=DIR [run=[DIR,DIR]] [host=127.0.0.1] [port=7860]

Drop a picture: its five most probable classes, where the evidence for them lies, what
the SE gates do, and the mistakes in the test set that the network finds most like it.
Uploads are deleted once they are read; nothing is sent anywhere, nothing is kept.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_se.utils.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from resnet_se.inference.pretrained import Pretrained

# Neither counted nor asked after a newer version; the uploads' folder is its own.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
MAX_FILE = "20mb"  # of an upload; its pixels are limited in `data.decode`


def demo(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Raises:
        UserError: as `load`; gradio is not installed, or the port is not to be had.
    """
    runs = [cfg.run] if isinstance(cfg.run, str) else list(cfg.run)
    if find_spec("gradio") is None:
        raise UserError("demo: gradio is not installed; uv sync --extra demo")
    _check_port(cfg.host, cfg.port)
    with tempfile.TemporaryDirectory(prefix="resnet-se-demo-") as folder:
        os.environ.update(QUIET, GRADIO_TEMP_DIR=folder)
        models = _read_models(runs, bool(cfg.trust), cfg.accelerator)
        _serve(models, cfg.host, cfg.port, Path(folder))


def _check_port(host: str, port: int) -> None:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as test:
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            test.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = port - 1 if port == 65535 else port + 1
            raise UserError(
                f"port: {port} is in use; another is port={other}"
            ) from None
        raise UserError(
            f"host: cannot listen on {host}, port {port}: {error.strerror}"
        ) from None


def _read_models(runs: list[Any], trust: bool, wanted: str) -> list[Pretrained]:
    from resnet_se.inference.pretrained import read
    from resnet_se.utils.system import accelerator

    device = accelerator(wanted)
    models = [read(path, trust).to(device) for path in runs]
    for model in models:
        if model.note:
            print(f"note: {model.note}", file=sys.stderr)
    return models


def _serve(models: list[Pretrained], host: str, port: int, folder: Path) -> None:
    from resnet_se.commands.demo import page
    from resnet_se.commands.demo.panels import ModelPanel, find_test_set

    tests, missing = find_test_set(models)
    panels = [ModelPanel(model, tests) for model in models]
    blocks = page.build_page(panels, tests, missing, folder)
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    url = page.launch(blocks, host, port, MAX_FILE)
    try:
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        ended.wait()
    finally:
        blocks.close(verbose=False)
