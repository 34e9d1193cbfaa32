"""`resnet-se predict`: files of every kind, rows, what cannot be read."""

from __future__ import annotations

import csv
import json
import os
import runpy
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_se
from resnet_se.data import decode as decoding
from resnet_se.data.decode import decode
from resnet_se.data.inference_inputs import batches, find_pictures
from resnet_se.data.synthetic import Synthetic
from resnet_se.utils.errors import UserError
from tests.conftest import Run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def noise(side: int = 32, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- the command -------------------------------------------------


@pytest.mark.slow
def test_the_test_set_as_a_folder_gives_the_record_s_accuracy(
    command, finished: Run, tmp_path, capsys
):
    images = Synthetic(num_train=240, num_test=60).load()
    for i, (image, label) in enumerate(
        zip(images.test_images, images.test_labels, strict=True)
    ):
        folder = tmp_path / "photos" / images.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    run = f"run={finished.folder}"
    assert command("predict", run, "inputs=photos", "out=a.csv", "batch_size=16") == 0
    said = capsys.readouterr().err
    assert f"accuracy {finished.result['test']['acc']:.2%} of 60 pictures" in said
    assert "60 pictures in" in said
    assert "images/s" in said
    rows = rows_of(tmp_path / "a.csv")
    model = resnet_se.load(finished.folder)
    predictions = model.predict(tmp_path / "photos")
    assert [row["class"] for row in rows] == predictions.labels
    assert len(rows[0]) == 1 + 2 * 5
    # With the views of the run, as JSON lines, from an archive.
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "photos", "photos")
    tta = ("tta=true", "top=2", "out=b.jsonl")
    assert command("predict", run, "inputs=photos.tar.gz", *tta) == 0
    lines = [json.loads(x) for x in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert f"accuracy {finished.result['test']['acc_tta']:.2%}" in (
        capsys.readouterr().err
    )
    expected = model.predict(tmp_path / "photos", tta=True)
    assert [line["top"][0]["class"] for line in lines] == expected.labels
    assert all(len(line["top"]) == 2 for line in lines)
    assert lines[0]["path"].startswith("photos.tar.gz/photos/")


def test_the_page_says_what_was_measured_of_lists():
    ways = json.loads((EXPERIMENTS / "predict/memory.json").read_text())["ways"]
    page = (EXPERIMENTS.parent / "docs/pages/after-training.md").read_text()
    least = min(row["speed"] for row in ways.values())
    assert f"at least {int(100 * least) / 100} of the\nspeed of one tensor" in page


def test_the_plain_loop_that_it_is_measured_against_writes_the_same_rows(
    finished: Run, tmp_path
):
    script = runpy.run_path(str(EXPERIMENTS / "predict/speed.py"))
    for i in range(4):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise(seed=i).save(folder / f"{i}.png")
    run, inputs = str(finished.folder), str(tmp_path / "photos")
    script["with_predict"](run, inputs, tmp_path / "ours.csv")
    script["plain"](resnet_se.load(run), inputs, tmp_path / "plain.csv", 0)
    _, *ours = csv.reader((tmp_path / "ours.csv").read_text().splitlines())
    plain = list(csv.reader((tmp_path / "plain.csv").read_text().splitlines()))
    assert len(ours) == 4
    for row, other in zip(ours, plain, strict=True):
        assert row[:2] == other[:2]
        assert list(map(float, row[2::2])) == pytest.approx(
            list(map(float, other[2::2])), abs=1e-4
        )


def test_broken_files_are_named_skipped_and_the_status_is_not_zero(
    command, finished: Run, tmp_path, capsys
):
    noise().save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    status = command("predict", f"run={finished.folder}", "inputs=[.]", "out=a.csv")
    assert status == 2
    said = capsys.readouterr().err
    for name in ("cut.png", "text.jpg", "empty.png"):
        assert f"skipped ./{name}" in said or f"skipped {name}" in said
    assert "error: inputs: 3 of 4 pictures could not be read" in said
    assert [Path(row["path"]).name for row in rows_of(tmp_path / "a.csv")] == [
        "good.png"
    ]


def test_rows_go_to_standard_output_where_no_file_is_named(
    command, finished: Run, tmp_path, capsys
):
    noise().save(tmp_path / "a.png")
    noise().save(tmp_path / "b.png")
    assert command("predict", f"run={finished.folder}", "inputs='*.png'", "top=1") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "path,class,probability"
    assert [line.split(",")[0] for line in out[1:]] == ["a.png", "b.png"]


def test_one_picture_is_counted_as_one(command, finished: Run, tmp_path, capsys):
    noise().save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    assert command("predict", f"run={finished.folder}", "inputs=a.png") == 0
    assert capsys.readouterr().err.startswith("1 picture in ")
    assert command("predict", f"run={finished.folder}", "inputs=b.png") == 2
    error = capsys.readouterr().err
    assert "0 pictures in" in error
    assert "1 of 1 picture could not be read" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inputs=nowhere",), "nothing is a file or folder called 'nowhere'"),
        (("inputs=empty",), "no picture in empty"),
        (("inputs=empty", "out=a.txt"), "out: expected a name in .csv or .jsonl"),
        (("inputs=empty", "top=0"), "top: expected an integer >= 1, got 0"),
        (("inputs=empty", "batch_size=two"), "batch_size: expected an integer"),
        (("inputs=broken.zip",), "inputs: broken.zip"),
        (("inputs=a.png", "tta=flp"), "tta=flp: no such choice; did you mean 'flip'"),
        (("inputs=a.png", "out=a.png/b.csv"), "out: cannot write"),
    ],
)
def test_one_sentence_for_each_mistake(
    command, finished: Run, tmp_path, capsys, arguments, said
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK")
    noise().save(tmp_path / "a.png")
    assert command("predict", f"run={finished.folder}", *arguments) == 2
    assert said in capsys.readouterr().err


def test_an_unfinished_run_is_used_and_said(command, finished: Run, tmp_path, capsys):
    run_dir = shutil.copytree(finished.folder, tmp_path / "run")
    (run_dir / "result.json").unlink()
    noise().save(tmp_path / "a.png")
    assert command("predict", "run=run", "inputs=a.png") == 0
    assert "note: run: the run is running, not finished" in capsys.readouterr().err


# --- files -------------------------------------------------------


def test_every_image_mode_can_be_read(tmp_path):
    image = noise(40)
    saved = {
        "grey.png": image.convert("L"),
        "bits.png": image.convert("1"),
        "alpha.png": image.convert("RGBA"),
        "grey_alpha.png": image.convert("LA"),
        "palette.png": image.convert("P"),
        "cmyk.jpg": image.convert("CMYK"),
        "wide.png": Image.fromarray(np.full((9, 9), 65535, np.uint16)),
        "wide.tif": Image.fromarray(np.full((9, 9), 65535, np.uint16)),
        "photo.webp": image,
        "photo.bmp": image,
        "UPPER.JPG": image,
    }
    for name, picture in saved.items():
        picture.save(tmp_path / name)
    moving = [noise(20, seed) for seed in range(3)]
    moving[0].save(tmp_path / "moving.gif", save_all=True, append_images=moving[1:])
    moving[0].save(tmp_path / "still.gif")
    (tmp_path / "notes.txt").write_text("no picture, and not taken for one")
    (tmp_path / ".hidden.png").touch()
    with find_pictures([tmp_path]) as found:
        (batch,) = batches(found, (24, 32), 100)
    names = {picture.path.name for picture in batch.pictures}
    assert names == {*saved, "moving.gif", "still.gif"}
    assert batch.broken == {}
    assert batch.pixels.shape == (len(names), 3, 24, 32)
    assert (decode(tmp_path / "wide.png", (4, 4)).pixels == 255).all()
    assert (decode(tmp_path / "wide.tif", (4, 4)).pixels == 255).all()
    first, still = (
        decode(tmp_path / f"{n}.gif", (20, 20)).pixels for n in ("moving", "still")
    )
    assert (first == still).all()


def test_a_decompression_bomb_is_not_decoded(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")  # 200 megapixels
    with pytest.raises(ValueError, match="more than 64 megapixels"):
        decode(tmp_path / "bomb.png", (32, 32))
    noise(33).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="megapixels"):
        decode(tmp_path / "large.png", (32, 32), megapixels=1e-3)


def test_batches_keep_the_order_and_are_read_a_few_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "usable_cores", lambda: 4)
    for i in range(20):
        Image.new("RGB", (200, 200), (i, i, i)).save(tmp_path / f"{i:02}.png")
    taken = []

    def watched():
        with find_pictures([tmp_path]) as found:
            for picture in found:
                taken.append(picture)
                yield picture

    pixels, most = [], 0
    for batch in batches(watched(), (2, 2), 2):
        pixels += batch.pixels[:, 0, 0, 0].tolist()
        most = max(most, len(taken) - len(pixels))
    assert pixels == list(range(20))
    assert most <= 2 * (4 + 1)


def test_a_file_counts_whatever_its_name_when_named_itself(tmp_path):
    noise().save(tmp_path / "picture", format="PNG")
    with find_pictures([tmp_path / "picture"]) as found:
        assert [picture.path for picture in found] == [tmp_path / "picture"]
    with pytest.raises(UserError, match="no picture in"), find_pictures([tmp_path]):
        pass


@pytest.mark.soak
def test_memory_does_not_grow_with_the_files(finished: Run, tmp_path):
    """The peak over 40,000 files is that over 4,000, within a few MB."""
    from resnet_se.utils.system import peak_memory_mb, reset_peak_memory

    noise().save(tmp_path / "0.png")
    for i in range(1, 40_000):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    cpu = torch.device("cpu")
    model = resnet_se.load(finished.folder)
    peaks = []
    for some in ("[0-9]?.png", "*.png"):
        reset_peak_memory(cpu)
        with find_pictures([tmp_path] if some == "*.png" else [tmp_path / some]) as of:
            for batch in batches(of, model.size, 256):
                model.probabilities(torch.from_numpy(batch.pixels))
        peaks.append(peak_memory_mb(cpu))
    assert peaks[1] < peaks[0] + 60


def test_names_that_are_not_utf8_are_escaped_one_to_one(
    command, finished: Run, tmp_path
):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [
        b"plain.png",
        b"caf\xe9.png",
        b"caf\\udce9.png",
        b"b\\c.png",
        "ü.png".encode(),
    ]
    for seed, name in enumerate(names):
        noise(seed=seed).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.fsencode(folder) + b"/" + name)
    for out in ("x.csv", "x.jsonl"):
        run = f"run='{finished.folder}'"
        assert command("predict", run, f"inputs='{folder}'", f"out={out}") == 0
    shown = {Path(row["path"]).name for row in rows_of(tmp_path / "x.csv")}
    text = (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    again = {Path(json.loads(line)["path"]).name for line in text.splitlines()}
    expected = {"plain.png", r"caf\udce9.png", r"caf\\udce9.png", r"b\c.png", "ü.png"}
    assert shown == again == expected
