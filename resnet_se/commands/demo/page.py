"""The page in Gradio: a drop zone, the test images, a panel for each network.

Class names, paths and messages may be untrusted: all of them are escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch import Tensor

from resnet_se.commands.demo import drawing
from resnet_se.commands.demo.panels import ModelPanel, TestSet
from resnet_se.data.decode import decode

HERE = Path(__file__).parent
TOP = 5
SHOWN = 40  # images on a page of the gallery
INVITATION = "Drop a picture, or click a test image where there are some."
UNREAD = 300  # seconds after which an upload goes that nobody asked about

# A theme whose fonts are the system's: none is fetched.
FONTS = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")


def build_page(
    panels: list[ModelPanel], tests: TestSet | None, missing: str, folder: Path
) -> gr.Blocks:
    """Return the page, not yet served.

    Args:
        missing: why there is no test set, where there is none.
        folder: where Gradio puts uploads; files of it are deleted once read.
    """
    names = " and ".join(panel.title for panel in panels)
    with gr.Blocks(
        title=f"resnet-se: {names}",
        analytics_enabled=False,
        delete_cache=(UNREAD, UNREAD),
    ) as blocks:
        gr.HTML(f"<h2>What {_subject(panels)} of a picture</h2>")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280, scale=2):
                drop = gr.File(
                    label="a picture",
                    file_types=["image"],
                    type="filepath",
                    height=180,
                    elem_id="drop",
                )
                status = gr.HTML(_status(INVITATION))
            with gr.Column(min_width=280, scale=3):
                chosen = _gallery(tests, missing)
        outputs: list[Any] = []
        with gr.Row(equal_height=False):
            for number, panel in enumerate(panels):
                with gr.Column(min_width=320):
                    facts = escape(panel.facts)
                    gr.HTML(
                        f"<h3>{escape(panel.title)}</h3><p class='facts'>{facts}</p>"
                    )
                    label = gr.Label(
                        num_top_classes=TOP,
                        show_label=False,
                        elem_id=f"top-{number}",
                    )
                    outputs += [label, gr.HTML(elem_id=f"answer-{number}")]
        events: dict[str, Any] = {
            "concurrency_id": "network",  # hooks on a network: one picture at a time
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        of_file = _of_file(panels, missing, folder)
        drop.upload(of_file, [drop], [drop, status, *outputs], **events)
        if tests is not None and chosen is not None:
            gallery, page = chosen
            of_test = _of_test(panels, tests, missing)
            gallery.select(of_test, [page], [status, *outputs], **events)
            turn = _turn(tests)
            page.change(turn, [page], [gallery], api_visibility="private")
    return blocks


def launch(blocks: gr.Blocks, host: str, port: int, max_file: str) -> str:
    """Serve the page in a thread, to this machine or `host` alone; return its URL."""
    theme = gr.themes.Default(font=FONTS, font_mono=MONO)
    _, url, _ = blocks.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_file,
        theme=theme,
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )
    return url


def _subject(panels: list[ModelPanel]) -> str:
    if len(panels) == 1:
        return "the network says"
    return f"{len(panels)} networks say"


def _status(text: str, trouble: bool = False) -> str:
    kind = ' class="trouble"' if trouble else ""
    return f'<p role="status"{kind}>{escape(text)}</p>'


# --- the test set ------------------------------------------------


def _gallery(
    tests: TestSet | None, missing: str
) -> tuple[gr.Gallery, gr.Slider] | None:
    if tests is None:
        gr.HTML(_status(f"No test images to click: {missing}."))
        return None
    turn = _turn(tests)
    gallery = gr.Gallery(
        turn(1),
        label="test images: click one",
        height=290,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        format="png",
        buttons=[],
        elem_id="tests",
        elem_classes="gallery",
    )
    pages = -(-len(tests.labels) // SHOWN)
    last = max(pages, 2)  # a slider from 1 to 1 is none
    page = gr.Slider(1, last, 1, step=1, label=f"page of {pages}", visible=pages > 1)
    return gallery, page


def _order(tests: TestSet) -> Tensor:
    """Mixed: a folder's images come class by class."""
    return torch.randperm(len(tests.labels), generator=torch.Generator().manual_seed(0))


def _turn(tests: TestSet) -> Callable[[int], list[Any]]:
    order = _order(tests)

    def turn(page: int) -> list[Any]:
        some = order[(page - 1) * SHOWN : page * SHOWN]
        return [drawing.picture(tests.images[i]) for i in some]

    return turn


# --- answers -----------------------------------------------------


def _of_file(
    panels: list[ModelPanel], missing: str, folder: Path
) -> Callable[[str | None], list[Any]]:
    def of_file(file: str | None) -> list[Any]:
        """The drop zone, empty again; the status; a pair for each network."""
        nothing = [None, ""] * len(panels)
        if file is None:
            return [None, _status(INVITATION), *nothing]
        path = Path(file)
        try:
            pictures = [decode(path, panel.model.size).pixels for panel in panels]
        except ValueError as error:
            message = f"{path.name}: cannot be read: {error}"
            return [None, _status(message, trouble=True), *nothing]
        finally:
            if path.resolve().is_relative_to(folder.resolve()):
                path.unlink(missing_ok=True)
        tensors = map(torch.tensor, pictures)
        return [None, _status(path.name), *_answers(panels, tensors, missing)]

    return of_file


def _of_test(
    panels: list[ModelPanel], tests: TestSet, missing: str
) -> Callable[..., list[Any]]:
    order = _order(tests)

    def of_test(page: int, click: gr.SelectData) -> list[Any]:
        i = order[(page - 1) * SHOWN + click.index]
        message = (
            f"Test image {int(i):,}, whose label is {tests.classes[tests.labels[i]]}"
        )
        same = [tests.images[i]] * len(panels)
        return [_status(message), *_answers(panels, same, missing)]

    return of_test


def _answers(
    panels: list[ModelPanel], pictures: Iterable[Tensor], missing: str
) -> list[Any]:
    """Return of each network the values of `gr.Label` and `gr.HTML`."""
    pairs = zip(panels, pictures, strict=True)
    answers = [panel.answer(picture) for panel, picture in pairs]
    return [part for a in answers for part in (a.chances, drawing.html(a, missing))]
