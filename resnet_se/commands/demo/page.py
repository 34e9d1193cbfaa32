"""The page in Gradio: a drop zone, the test images, a panel for each network.

Class names, paths and messages may be untrusted: all of them are escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from resnet_se.commands.demo import drawing
from resnet_se.commands.demo.panels import ModelPanel, TestSet
from resnet_se.data.decode import decode, to_pixels

HERE = Path(__file__).parent
SHOWN = 36  # images on a page of the gallery
INVITATION = "Drop a picture."
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
        gr.HTML(f"<h2>What {_subject(panels)} of a picture</h2>", elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300, scale=2):
                drop = gr.File(
                    show_label=False,
                    file_types=["image"],
                    type="filepath",
                    height=110,
                    elem_id="drop",
                )
                chosen = _test_images(tests, missing)
            with gr.Column(min_width=300, scale=5):
                status, outputs = _answer_space(panels, tests, missing)
        events: dict[str, Any] = {
            "concurrency_id": "network",  # hooks on a network: one picture at a time
            "concurrency_limit": 1,
            "api_visibility": "private",
            "show_progress_on": status,
        }
        of_file = _of_file(panels, missing, folder)
        drop.upload(of_file, [drop], [drop, status, *outputs], **events)
        if tests is not None and chosen is not None:
            of_test = _of_test(panels, tests, missing)
            chosen.gallery.select(of_test, [chosen.page], [status, *outputs], **events)
            turn, changed = _turn(tests), list(chosen)
            for button, step in ((chosen.back, -1), (chosen.more, 1)):
                turned = partial(turn, step=step)
                button.click(turned, [chosen.page], changed, api_visibility="private")
    return blocks


def _answer_space(
    panels: list[ModelPanel], tests: TestSet | None, missing: str
) -> tuple[gr.HTML, list[gr.HTML]]:
    """Return the status and a card for each network, filled where there is a test."""
    if tests is None:
        message, cards = _status(INVITATION), list(map(drawing.invitation, panels))
    else:
        message, *cards = _on_test_image(panels, tests, missing, _order(tests)[0])
    status = gr.HTML(message, elem_id="status")
    outputs = []
    with gr.Row(equal_height=False):
        for number, card in enumerate(cards):
            with gr.Column(min_width=300):
                outputs.append(gr.HTML(card, elem_id=f"answer-{number}"))
    return status, outputs


def launch(blocks: gr.Blocks, host: str, port: int, max_file: str) -> str:
    """Serve the page in a thread, to this machine or `host` alone; return its URL."""
    theme = gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=MONO)
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


class TestImages(NamedTuple):
    """The gallery and what turns its pages, in the order of what `_turn` returns."""

    page: gr.State
    gallery: gr.Gallery
    number: gr.HTML
    back: gr.Button
    more: gr.Button


def _test_images(tests: TestSet | None, missing: str) -> TestImages | None:
    if tests is None:
        gr.HTML(_status(f"No test images to click: {missing}."))
        return None
    gallery = gr.Gallery(
        _thumbnails(tests, 1),
        label="test images: click one",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        format="png",
        buttons=[],
        elem_id="tests",
    )
    pages = _pages(tests)
    with gr.Row(elem_id="pages", visible=pages > 1):
        back = gr.Button("← Back", size="sm", interactive=False)
        number = gr.HTML(f"1 of {pages:,}", elem_id="number")
        more = gr.Button("More →", size="sm")
    return TestImages(gr.State(1), gallery, number, back, more)


def _order(tests: TestSet) -> Tensor:
    """Mixed: a folder's images come class by class."""
    return torch.randperm(len(tests.labels), generator=torch.Generator().manual_seed(0))


def _pages(tests: TestSet) -> int:
    return -(-len(tests.labels) // SHOWN)


def _thumbnails(tests: TestSet, page: int) -> list[Image.Image]:
    some = _order(tests)[(page - 1) * SHOWN : page * SHOWN]
    return [drawing.picture(tests.images[i]) for i in some]


def _turn(tests: TestSet) -> Callable[..., list[Any]]:
    """Return what changes page, gallery, number and both buttons."""
    pages = _pages(tests)

    def turn(page: int, step: int) -> list[Any]:
        page = min(max(page + step, 1), pages)  # two clicks may come before an answer
        return [
            page,
            gr.update(value=_thumbnails(tests, page), selected_index=None),
            f"{page:,} of {pages:,}",
            gr.update(interactive=page > 1),
            gr.update(interactive=page < pages),
        ]

    return turn


# --- answers -----------------------------------------------------


def _of_file(
    panels: list[ModelPanel], missing: str, folder: Path
) -> Callable[[str | None], list[Any]]:
    def of_file(file: str | None) -> list[Any]:
        """The drop zone, empty again; the status; a card for each network."""
        nothing = list(map(drawing.invitation, panels))
        if file is None:
            return [None, _status(INVITATION), *nothing]
        path = Path(file)
        try:
            photo = drawing.picture(torch.tensor(decode(path).pixels))
        except ValueError as error:
            message = f"{path.name}: cannot be read: {error}"
            return [None, _status(message, trouble=True), *nothing]
        finally:
            if path.resolve().is_relative_to(folder.resolve()):
                path.unlink(missing_ok=True)
        return [None, _status(path.name), *_cards(panels, photo, missing)]

    return of_file


def _of_test(
    panels: list[ModelPanel], tests: TestSet, missing: str
) -> Callable[..., list[str]]:
    order = _order(tests)

    def of_test(page: int, click: gr.SelectData) -> list[str]:
        i = order[(page - 1) * SHOWN + click.index]
        return _on_test_image(panels, tests, missing, i)

    return of_test


def _on_test_image(
    panels: list[ModelPanel], tests: TestSet, missing: str, i: Tensor
) -> list[str]:
    """Return the status and a card for each network on the test image of index `i`."""
    message = f"Test image {int(i):,}, whose label is {tests.classes[tests.labels[i]]}"
    photo = drawing.picture(tests.images[i])
    return [_status(message), *_cards(panels, photo, missing)]


def _cards(panels: list[ModelPanel], photo: Image.Image, missing: str) -> list[str]:
    cards = []
    for panel in panels:
        pixels = torch.tensor(to_pixels(photo, panel.model.size))  # (3, H, W)
        cards.append(drawing.card(panel, panel.answer(pixels), photo, missing))
    return cards
