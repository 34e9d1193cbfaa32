"""`resnet-se demo`: what it shows, and a page clicked through in Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import resnet_se
from resnet_se.analysis.canvas import COVER, EVIDENCE
from resnet_se.commands import demo
from resnet_se.commands.demo import drawing, panels
from resnet_se.commands.demo.panels import NEAREST, ModelPanel, find_test_set
from resnet_se.data.image_set import DataNotFound
from tests.conftest import Run, call

PHOTO = Image.new("RGB", (640, 480))
needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="gradio is not installed"
)


@pytest.fixture(scope="module")
def exhibit(finished: Run) -> ModelPanel:
    model = resnet_se.load(finished.folder)
    tests, why = find_test_set([model])
    assert why == ""
    return ModelPanel(model, tests)


@pytest.fixture(scope="module")
def tests(exhibit: ModelPanel) -> panels.TestSet:
    return find_test_set([exhibit.model])[0]


@needs_gradio
@pytest.mark.parametrize("number", [1, 36, 37])
def test_a_page_of_any_number_of_images(exhibit, tests, number):
    from resnet_se.commands.demo.page import _answer_space, _test_images

    some = tests._replace(images=tests.images[:number], labels=tests.labels[:number])
    part = _test_images(some, "")
    assert len(part.gallery.value) == min(number, 36)
    assert part.more.parent.visible == (number > 36)
    status, (answer,) = _answer_space([exhibit], some, "")
    assert "Test image" in status.value
    assert 'class="photo"' in answer.value  # answered before a click


@needs_gradio
def test_two_buttons_turn_the_pages_of_test_images(tests):
    from resnet_se.commands.demo.page import SHOWN, _turn

    turn = _turn(tests)  # of 60 images
    page, gallery, number, back, more = turn(1, 1)
    assert (page, number) == (2, "2 of 2")
    assert len(gallery["value"]) == 60 - SHOWN
    assert gallery["selected_index"] is None  # the place of another image
    assert (back["interactive"], more["interactive"]) == (True, False)
    assert turn(2, 1)[0] == 2  # a click that came before the last answer
    page, _, number, back, more = turn(2, -1)
    assert (page, number) == (1, "1 of 2")
    assert (back["interactive"], more["interactive"]) == (False, True)


def test_data_that_are_gone_are_said_without_keys(exhibit, capsys, monkeypatch):
    def gone(*_, **__):
        raise DataNotFound("data.source.root: nothing in /home/me")

    monkeypatch.setattr(panels, "run_data", gone)
    none, why = find_test_set([exhibit.model])
    assert none is None
    assert why == "its data are not here; the terminal says why"
    assert "data.source.root: nothing in /home/me" in capsys.readouterr().err


def test_evidence_has_the_colours_of_inspect():
    black = torch.zeros(3, 4, 4, dtype=torch.uint8)
    bright = np.asarray(drawing.overlay(black, torch.ones(4, 4)))[0, 0]
    colour = 255 * np.array(matplotlib.colormaps[EVIDENCE](1.0)[:3])
    assert bright == pytest.approx(COVER * colour, abs=1)


# --- answers -----------------------------------------------------


def test_an_answer_is_what_predict_says(exhibit, tests):
    for picture in tests.images[:3]:
        (prediction,) = exhibit.model.predict(picture)
        answer = exhibit.answer(picture)
        assert list(answer.chances) == [name for name, _ in prediction.ranking]
        assert list(answer.chances.values()) == pytest.approx(
            [p for _, p in prediction.ranking], abs=1e-6
        )
        assert [name for name, _ in answer.maps] == list(answer.chances)[:3]
        for _, evidence in answer.maps:
            assert evidence.shape == picture.shape[1:]
            assert evidence.min() >= 0
            assert evidence.max() <= 1 + 1e-6
        assert [[len(g) for g in stage] for stage in answer.gates] == [[8], [8], [16]]


def test_mistakes_are_the_run_s_and_the_nearest_come_first(exhibit, tests, finished):
    saved = np.load(finished.folder / "predictions.npz")
    predicted = saved["logits"].argmax(1)
    wrong = (predicted != saved["labels"]).nonzero()[0]
    assert 0 < len(wrong) < len(tests.labels)
    assert len(exhibit.mistakes) == len(wrong)

    net, model = exhibit.model.net, exhibit.model
    with torch.no_grad():  # by hand: the pooled feature maps, what the head reads
        pooled = net.blocks(net.stem(model.preprocess(tests.images))).mean((2, 3))
    first = int(wrong[0])
    cosines = F.cosine_similarity(pooled[first][None], pooled[wrong[1:]])
    values, order = cosines.sort(descending=True)
    nearest = exhibit.answer(tests.images[first]).nearest
    assert len(nearest) == NEAREST
    assert [m.cosine for m in nearest] == pytest.approx(values[:NEAREST], abs=1e-5)
    for mistake, i in zip(nearest, wrong[1:][order[:NEAREST]], strict=True):
        assert torch.equal(mistake.image, tests.images[i])
        assert mistake.label == tests.classes[saved["labels"][i]]
        assert mistake.predicted == tests.classes[predicted[i]]


def test_a_record_of_other_labels_spares_no_image(exhibit, tests):
    relabelled = tests._replace(labels=tests.labels.roll(1))
    changed = ModelPanel(exhibit.model, relabelled)
    predicted = exhibit.model.predict(tests.images).probabilities.argmax(1)
    assert len(changed.mistakes) == int((predicted != relabelled.labels).sum())


def test_a_bundle_brings_no_data_and_a_plain_network_has_no_gates(command, finished):
    assert command("bundle", f"run={finished.folder}", "out=made") == 0
    model = resnet_se.load("made")
    none, why = find_test_set([model])
    assert none is None
    model.net = resnet_se.build("vanilla_resnet20").eval()
    plain = ModelPanel(model, none)
    answer = plain.answer(torch.zeros(3, 32, 32, dtype=torch.uint8))
    before = drawing.invitation(plain)
    assert "It knows 10 classes: " in before
    assert "<img" not in before
    shown = drawing.card(plain, answer, PHOTO, why)
    assert "no SE blocks" in shown
    assert "None are known: a bundle brings no data" in shown


def test_untrusted_names_are_escaped(exhibit, tests):
    answer = exhibit.answer(tests.images[0])
    named = [("<script>alert(1)</script>", evidence) for _, evidence in answer.maps]
    chances = dict.fromkeys((name for name, _ in named), 1.0)
    nearest = [m._replace(label="<img src=x>") for m in answer.nearest]
    changed = answer._replace(chances=chances, maps=named, nearest=nearest)
    shown = drawing.card(exhibit, changed, PHOTO, "")
    assert "<script>" not in shown
    assert "<img src=x>" not in shown
    assert "&lt;script&gt;" in shown


# --- bad input ---------------------------------------------------


@needs_gradio
def test_a_port_in_use_is_one_sentence(command, finished, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("demo", f"run={finished.folder}", f"port={port}") == 2
    assert f"error: port: {port} is in use; another is port=" in capsys.readouterr().err


@needs_gradio
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["port=0"], "port: expected"),
        (["host=nowhere.invalid"], "host: cannot listen on nowhere.invalid"),
        (["prot=1"], "unknown key 'prot'; did you mean 'port'?"),
        ([], "expected a run directory or a bundle, got nothing"),
    ],
)
def test_a_mistake_is_one_sentence(command, capsys, arguments, said):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    assert command("demo", "run=nothing", f"port={port}", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_without_the_extra_the_command_that_installs_it(command, capsys, monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert command("demo", "run=any") == 2
    said = "demo: gradio is not installed; uv sync --extra demo"
    assert said in capsys.readouterr().err


# --- the page ----------------------------------------------------

# Runs the command where no connection leads anywhere but to this machine, and writes
# down what was tried.
GUARDED = """
import os, socket, sys
real = socket.socket.connect, socket.getaddrinfo
def local(host):
    return str(host) in ("127.0.0.1", "::1", "localhost", "None")
def refuse(host):
    with open("outside.txt", "a") as file:
        print(host, file=file)
    raise OSError(f"no way to {host}")
def connect(self, address):
    if self.family != socket.AF_UNIX and not local(address[0]):
        refuse(address[0])
    return real[0](self, address)
def getaddrinfo(host, *args, **kwargs):
    if not local(host):
        refuse(host)
    return real[1](host, *args, **kwargs)
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
from resnet_se.__main__ import run
run("demo")
"""


class Page(NamedTuple):
    """A served page of two runs in a browser; `hosts` the browser has asked."""

    page: object
    hosts: set[str]
    folder: Path
    server: subprocess.Popen


def _chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


@pytest.fixture
def served(finished: Run, tmp_path: Path) -> Iterator[Page]:
    playwright = pytest.importorskip("playwright.sync_api")
    browser_path = _chromium()
    assert call(tmp_path, "bundle", f"run={finished.folder}", "out=other") == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    runs = f"run=[{finished.folder},{tmp_path}/other.zip]"
    (tmp_path / "temporary").mkdir()
    package = Path(resnet_se.__file__).parents[1]
    env = {"PYTHONPATH": str(package), "TMPDIR": str(tmp_path / "temporary")}
    line = [sys.executable, "-c", GUARDED, runs, f"port={port}"]
    with (tmp_path / "log.txt").open("w") as log:
        server = subprocess.Popen(
            line, cwd=tmp_path, env=os.environ | env, stdout=log, stderr=log
        )
    try:
        _wait_for(server, tmp_path / "log.txt", "Ctrl-C ends it")
        with playwright.sync_playwright() as tools:
            browser = tools.chromium.launch(
                executable_path=browser_path, args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(300_000)
            hosts: set[str] = set()
            page.on("request", lambda request: hosts.add(_host(request.url)))
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_selector("#tests img")
            yield Page(page, hosts, tmp_path, server)
            browser.close()
    finally:
        server.kill()
        server.wait()


def _wait_for(server: subprocess.Popen, log: Path, text: str) -> None:
    deadline = time.monotonic() + 900  # of a busy machine
    while text not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _host(url: str) -> str:
    scheme, _, rest = url.partition(":")
    return rest.strip("/").split("/")[0].split(":")[0] if scheme == "http" else scheme


def _drop(page, path: Path, says: str, where: str = "#status") -> None:
    """Upload a file; wait for the answer, not for its name in the drop zone."""
    page.set_input_files("#drop input[type=file]", path)
    page.locator(where).get_by_text(says).first.wait_for()


@pytest.mark.slow
@needs_gradio
def test_clicked_through(served, finished):
    page, folder = served.page, served.folder
    model = resnet_se.load(finished.folder)
    tests, _ = find_test_set([model])
    picture = folder / "mine.png"
    drawing.picture(tests.images[5]).resize((200, 150)).save(picture)

    # A test image is answered before anybody asks.
    assert page.locator("#answer-0 .photo").count() == 1
    assert "Test image" in page.locator("#status").inner_text()

    # Upload: both runs answer, and are the same network.
    _drop(page, picture, "mine.png")
    page.wait_for_selector("#answer-1 .gates")
    (prediction,) = model.predict(picture)
    for number in range(2):
        shown = page.locator(f"#answer-{number} .chances").inner_text()
        assert prediction.label in shown
        assert f"{100 * prediction.probability:.1f} %" in shown
        assert page.locator(f"#answer-{number} figure").count() == 4 + NEAREST
    assert "no data" not in page.content()

    # Wrong files: a sentence each, the answers gone.
    (folder / "fake.png").write_text("<b>no picture</b>")
    _drop(page, folder / "fake.png", "fake.png: cannot be read: cannot identify")
    assert page.locator("#answer-0 figure").count() == 0
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    _drop(page, folder / "bomb.png", "bomb.png: cannot be read: more than 64")
    (folder / "notes.txt").write_text("no picture")
    _drop(page, folder / "notes.txt", "Invalid file type: notes.txt", "body")
    (folder / "large.png").write_bytes(b"\0" * 21_000_000)
    _drop(page, folder / "large.png", "exceed the maximum allowed size of 20", "body")

    # The gallery, its second page.
    page.get_by_role("button", name="More").click()
    page.get_by_text("2 of 2").wait_for()
    page.locator("#tests button.thumbnail-item").nth(2).click()
    page.wait_for_selector("#answer-1 .gates")
    page.locator("#status").get_by_text("Test image").wait_for()

    # The picture beside its answer, both on the first screen.
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("scrollTo(0, 0)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        photo, chances = (
            page.locator(f"#answer-0 .{name}").bounding_box()
            for name in ("photo", "chances")
        )
        assert photo["x"] + photo["width"] < chances["x"]
        assert abs(photo["y"] - chances["y"]) < 10
        assert max(box["y"] + box["height"] for box in (photo, chances)) < 800

    # Nothing asked of others, nothing kept.
    assert served.hosts <= {"127.0.0.1", "data", "blob"}
    assert not (folder / "outside.txt").exists()
    kept = [path for path in (folder / "temporary").rglob("*") if path.is_file()]
    names = ("mine", "fake", "bomb", "notes", "large")
    assert kept
    assert not [path for path in kept if path.name.startswith(names)]
    served.server.send_signal(signal.SIGTERM)
    assert served.server.wait(60) == 0
    assert not list((folder / "temporary").glob("resnet-se-demo-*"))
