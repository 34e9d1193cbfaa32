"""Untrusted files: nothing read without bound, written outside, or lost in silence."""

from __future__ import annotations

import gzip
import io
import os
import socket
import stat
import tarfile
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_se.data import archives
from resnet_se.data.image_set import ImageSet
from resnet_se.data.image_tree import tree_files
from resnet_se.data.wrappings import image_folder
from resnet_se.data.wrappings.image_folder import ImageFolder
from resnet_se.utils.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("RESNET_SE_CACHE", str(folder))
    return folder


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 255 - value, 7)).save(file, "png")
    return file.getvalue()


CONTENT = {
    f"{split}/{name}/{i}.png": png(60 * i + 20 * (name == "bee") + (split == "test"))
    for split in ("train", "test")
    for name in ("ant", "bee")
    for i in range(3)
}


def make_tree(root: Path) -> Path:
    for name, data in CONTENT.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def member(name: str, size: int = 0, **changes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def make_tar(
    archive: Path,
    *extra: tuple[tarfile.TarInfo, bytes],
    content: dict[str, bytes] = CONTENT,
) -> Path:
    with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as file:
        for name, data in content.items():
            file.addfile(member(name, len(data)), io.BytesIO(data))
        for info, data in extra:
            file.addfile(info, io.BytesIO(data))
    return archive


def make_zip(archive: Path, extra: dict[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (CONTENT | extra).items():
            file.writestr(name, data)
    return archive


def load(root: Path, **options: object) -> ImageSet:
    return ImageFolder(str(root), **options).load()  # type: ignore[arg-type]


def refusal(root: Path, **options: object) -> str:
    """The one sentence of `load` and of nothing else."""
    with pytest.raises(UserError) as caught:
        load(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("data.source.")
    return message


@pytest.fixture
def expected(tmp_path) -> str:
    return load(make_tree(tmp_path / "expected")).fingerprint


# --- what is no regular file -------------------------------------


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    try:
        os.chdir(path.parent)  # a socket's path is short
        server.bind(path.name)
    finally:
        os.chdir(here)
        server.close()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (a_fifo, "a FIFO"),
        (a_socket, "a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.symlink_to("nowhere"), "a link to nothing"),
        (lambda path: path.symlink_to(path.name), "a link to nothing"),
        (lambda path: path.touch(), "empty"),
    ],
)
@pytest.mark.parametrize("call", ["key", "load"])
def test_what_is_no_file_is_named_and_never_opened(tmp_path, make, kind, call):
    tree = make_tree(tmp_path / "t")
    make(tree / "train/ant/9.png")
    with pytest.raises(UserError, match=rf"train/ant/9\.png \({kind}\)"):
        getattr(ImageFolder(str(tree)), call)()


def test_a_fifo_or_device_as_root_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.zip").symlink_to("/dev/zero")
    for name in ("a.tar", "b.zip"):
        assert "expected a folder, or a file ending in" in refusal(tmp_path / name)


def test_links_of_ones_own_folder_are_followed(tmp_path, expected):
    tree = make_tree(tmp_path / "t")
    (tree / "train/ant").rename(tmp_path / "elsewhere")
    (tree / "train/ant").symlink_to(tmp_path / "elsewhere")
    (tree / "test/bee/0.png").rename(tmp_path / "0.png")
    (tree / "test/bee/0.png").symlink_to(tmp_path / "0.png")
    assert load(tree).fingerprint == expected


def test_a_circle_of_links_is_named(tmp_path):
    tree = make_tree(tmp_path / "t")
    (tree / "train/ant/up").symlink_to(tree / "train")
    assert "links without a circle" in refusal(tree)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    tree = make_tree(tmp_path / "t")
    (tree / "train/ant").chmod(0)
    assert "a folder that can be read" in refusal(tree)
    (tree / "train/ant").chmod(0o755)


# --- what an archive may hold ------------------------------------


def test_links_are_followed_inside_the_archive(tmp_path, expected):
    name, target = "train/ant/1.png", "test/../shared/one.png"
    moved = {key: data for key, data in CONTENT.items() if key != name}
    moved["shared/one.png"] = CONTENT[name]
    hard = member(name, type=tarfile.LNKTYPE, linkname="shared/one.png")
    soft = member(name, type=tarfile.SYMTYPE, linkname=f"../../{target}")
    first = member("shared/chain", type=tarfile.SYMTYPE, linkname="one.png")
    second = member(name, type=tarfile.LNKTYPE, linkname="./shared/chain")
    for links in ([hard], [soft], [first, second]):
        archive = make_tar(
            tmp_path / "a.tar", *((link, b"") for link in links), content=moved
        )
        assert load(archive).fingerprint == expected


def test_gnu_tars_hard_links_are_images_too(tmp_path):
    tree = make_tree(tmp_path / "t")
    for i in range(3):
        os.link(tree / "train/ant/0.png", tree / f"train/ant/same{i}.png")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(tree, arcname=".")
    assert load(tmp_path / "a.tar").fingerprint == load(tree).fingerprint


def test_links_of_a_zip_are_followed(tmp_path, expected):
    info = zipfile.ZipInfo("train/ant/1.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in CONTENT.items():
            if name != info.filename:
                file.writestr(name, data)
        file.writestr("pool/1.png", CONTENT[info.filename])
        file.writestr(info, "../../pool/1.png")
    assert load(archive).fingerprint == expected


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (
            member("train/ant/x.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            ["train/ant/x.png", "a link to /etc/passwd"],
        ),
        (
            member("train/ant/x.png", type=tarfile.SYMTYPE, linkname="../../../x"),
            ["train/ant/x.png", "a link to ../x"],
        ),
        (
            member("train/ant/x.png", type=tarfile.LNKTYPE, linkname="train/ant/x.png"),
            ["train/ant/x.png", "a link to"],
        ),
        (
            member("train/cow", type=tarfile.SYMTYPE, linkname="ant"),
            ["train/cow", "a link to train/ant"],
        ),
        (member("train/ant/x.png", type=tarfile.CHRTYPE), ["train/ant/x.png", "devic"]),
        (member("train/ant/x.png", type=tarfile.FIFOTYPE), ["train/ant/x.png"]),
        (member("../escaped"), ["all paths inside", "'../escaped'"]),
        (member("train/../../escaped"), ["all paths inside"]),
    ],
)
def test_what_leaves_the_archive_is_refused_by_name(tmp_path, info, words):
    inside = tmp_path / "in/side"
    inside.mkdir(parents=True)
    archive = make_tar(inside / "a.tar", (info, b""))
    before = set(tmp_path.rglob("*")) | {tmp_path / "cache"}
    message = refusal(archive)
    assert all(word in message for word in words), message
    assert set(tmp_path.rglob("*")) | {tmp_path / "cache"} == before


def test_an_absolute_path_is_taken_below_the_root(tmp_path, expected):
    content = {f"/{name}": data for name, data in CONTENT.items()}
    assert load(make_tar(tmp_path / "a.tar", content=content)).fingerprint == expected


def test_devices_outside_the_tree_are_passed_over(tmp_path, expected):
    info = member("dev/null", type=tarfile.CHRTYPE)
    assert load(make_tar(tmp_path / "a.tar", (info, b""))).fingerprint == expected


def test_nothing_of_an_archive_stays_but_the_decoded_images(tmp_path, cache):
    load(make_tar(tmp_path / "a.tar"))
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


@pytest.mark.parametrize("room", ["memory", "cache", "nowhere"])
def test_an_archive_is_unpacked_where_there_is_room(
    tmp_path, cache, monkeypatch, expected, room
):
    memory = tmp_path / "memory"
    killed = memory / f"{archives.SCRATCH}old"
    killed.mkdir(parents=True)
    os.utime(killed, (0, 0))
    monkeypatch.setattr(archives, "MEMORY", memory if room == "memory" else room)
    if room == "nowhere":
        monkeypatch.setenv(
            "RESNET_SE_CACHE", str(tmp_path / "expected/train/ant/0.png")
        )
    seen = []
    monkeypatch.setattr(
        image_folder,
        "tree_files",
        lambda folder, *rest: seen.append(folder) or tree_files(folder, *rest),
    )
    assert load(make_tar(tmp_path / "a.tar")).fingerprint == expected
    parents = {"memory": memory, "cache": cache, "nowhere": Path(tempfile.gettempdir())}
    assert [folder.parent for folder in seen] == [parents[room]]
    assert not seen[0].exists()
    assert killed.exists() == (room != "memory")


def test_an_unusable_cache_folder_does_not_keep_archives_from_being_read(
    tmp_path, cache, expected
):
    for path in cache.iterdir():
        path.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert load(make_tar(tmp_path / "a.tar")).fingerprint == expected


# --- sizes -------------------------------------------------------


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fails where more than 32 MB were held at once."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32e6


def big_zip(path: Path, name: str, size: int) -> Path:
    """The images, and a member of `size` zeros, deflated to a thousandth."""
    archive = make_zip(path, {})
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(archive, "a") as file,
        file.open(info, "w", force_zip64=True) as content,
    ):
        for _ in range(size >> 20):
            content.write(bytes(1 << 20))
    return archive


def test_a_huge_member_is_refused_unread(tmp_path, little_memory):
    message = refusal(big_zip(tmp_path / "a.zip", "train/ant/9.png", 300 << 20))
    assert "data.source.max_megapixels" in message
    assert "train/ant/9.png" in message


def test_a_huge_member_outside_the_tree_is_passed_over(
    tmp_path, expected, little_memory
):
    archive = big_zip(tmp_path / "a.zip", "raw/film.bin", 300 << 20)
    assert load(archive).fingerprint == expected
    sparse = make_tar(tmp_path / "a.tar", content={})
    with sparse.open("r+b") as file:  # 3 GB of a hole, then the images
        file.write(member("raw/film.bin", 3 << 30).tobuf())
        file.seek(3 << 30, os.SEEK_CUR)
        rest = io.BytesIO()
        with tarfile.open(fileobj=rest, mode="w") as tar:
            for name, data in CONTENT.items():
                tar.addfile(member(name, len(data)), io.BytesIO(data))
        file.write(rest.getvalue())
    assert ImageFolder(str(sparse)).decode(sparse).fingerprint == expected


@pytest.mark.parametrize("name", ["train/ant/9.png", "raw/film.bin"])
def test_more_than_the_limit_names_the_option(tmp_path, name, little_memory):
    archive = make_tar(tmp_path / "a.tgz", (member(name, 4 << 20), bytes(4 << 20)))
    message = refusal(archive, max_gb=0.001)
    assert "data.source.max_gb: expected an archive" in message
    assert "of at most 0.001 GB" in message
    assert "data.source.max_gb=… allows more" in message


def test_many_empty_members_count_as_blocks(tmp_path):
    archive = make_tar(
        tmp_path / "a.tgz", *((member(f"x/{i}"), b"") for i in range(99))
    )
    assert "data.source.max_gb" in refusal(archive, max_gb=0.0004)
    assert len(load(archive, max_gb=0.0006).train_images) == 6


def test_a_name_of_a_hundred_megabytes_is_not_read(tmp_path, little_memory):
    header = member("././@LongLink", 100 << 20, type=tarfile.GNUTYPE_LONGNAME)
    with gzip.open(tmp_path / "a.tgz", "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(100):
            file.write(b"x" * (1 << 20))
    assert "a header of 104,857,600 bytes" in refusal(tmp_path / "a.tgz")


def test_what_follows_the_end_of_a_tar_is_bounded(tmp_path, little_memory):
    with gzip.open(make_tar(tmp_path / "a.tgz"), "ab") as file:
        for _ in range(50):
            file.write(bytes(1 << 20))
    assert "data.source.max_gb" in refusal(tmp_path / "a.tgz", max_gb=0.02)


def one_bit_png(width: int, height: int) -> bytes:
    """A white PNG of one bit a pixel, compressed row by row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + checksum

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    deflate = zlib.compressobj()
    row = b"\0" + b"\xff" * -(-width // 8)
    data = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    parts = (
        chunk(b"IHDR", size + b"\1\0\0\0\0"), chunk(b"IDAT", data), chunk(b"IEND", b"")
    )  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_image_of_169_megapixels_is_not_decoded(tmp_path, little_memory):
    tree = make_tree(tmp_path / "t")
    (tree / "train/bee/0.png").write_bytes(one_bit_png(13_000, 13_000))
    message = refusal(tree, size=8)
    assert message.startswith("data.source.max_megapixels: expected images of at most")
    assert "train/bee/0.png with 169.0" in message
    assert "data.source.max_megapixels=… allows more" in message


def test_a_raised_limit_lets_an_image_pass(tmp_path):
    tree = make_tree(tmp_path / "t")
    (tree / "train/bee/0.png").write_bytes(one_bit_png(1200, 1000))
    before = Image.MAX_IMAGE_PIXELS
    assert "with 1.2" in refusal(tree, size=8, max_megapixels=1)
    images = load(tree, size=8, max_megapixels=1.3)
    assert images.train_images[3].min() == 255
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_decoded_images_than_allowed_are_refused_first(tmp_path):
    tree = make_tree(tmp_path / "t")
    message = refusal(tree, max_gb=500e-9)
    assert "data.source.max_gb" in message
    assert load(tree, max_gb=2e-6).train_images.shape == (6, 3, 4, 4)


def test_programs_are_not_called_to_decode(tmp_path):
    tree = make_tree(tmp_path / "t")
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    (tree / "train/ant/0.png").write_bytes(text)
    assert "train/ant/0.png (cannot identify" in refusal(tree)


def test_names_of_classes_can_be_printed(tmp_path):
    tree = make_tree(tmp_path / "t")
    for split in ("train", "test"):
        (tree / split / "ant").rename(tree / split / "ant\x1b[31m")
    assert r"'ant\x1b[31m'" in refusal(tree)


# --- random trees and archives -----------------------------------

SOAK = int(os.environ.get("SOAK_EXAMPLES", "10000"))

NAMES = st.sampled_from(
    ["train", "test", "val", "ant", "bee", ".x", "a.png", "..", "é"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
IMAGE = png(1)
BYTES = st.one_of(
    st.just(IMAGE),
    st.binary(max_size=40),
    st.integers(0, len(IMAGE) - 1).map(lambda n: IMAGE[:n]),
    st.tuples(st.integers(0, len(IMAGE) - 1), st.integers(1, 255)).map(
        lambda at: IMAGE[: at[0]] + bytes([IMAGE[at[0]] ^ at[1]]) + IMAGE[at[0] + 1 :]
    ),
)
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 6
    + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"S", b"?"]
)
ENTRIES = st.lists(st.tuples(PATHS, KINDS, BYTES, PATHS), max_size=12)
DAMAGE = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3)
ENDINGS = st.sampled_from(["tar", "tgz", "zip"])


def answer(root: Path) -> None:
    """A whole set or one sentence; nothing else."""
    source = ImageFolder(str(root), size=4, max_gb=0.01, max_megapixels=0.1)
    with suppress(UserError):
        source.key()
    with suppress(UserError):
        source.load()


def packed(path: Path, base: bool, entries: list) -> None:
    content = CONTENT if base else {}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            named = {name: (tarfile.REGTYPE, data) for name, data in content.items()}
            named |= {name: (kind, data) for name, kind, data, _ in entries}
            for name, (kind, data) in named.items():
                info = zipfile.ZipInfo(name + "/" * (kind == tarfile.DIRTYPE))
                if kind == tarfile.SYMTYPE:
                    info.external_attr = stat.S_IFLNK << 16
                file.writestr(info, data)
        return
    extra = [
        (member(name, len(data), type=kind, linkname=target), data)
        for name, kind, data, target in entries
    ]
    make_tar(path, *extra, content=content)


def check_archive(ending: str, base: bool, entries: list, damage: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"in/a.{ending}")
        path.parent.mkdir()
        packed(path, base, entries)
        data = bytearray(path.read_bytes())
        for place, value in damage:
            data[int(place * (len(data) - 1))] = value
        path.write_bytes(data)
        answer(path)
        assert [p.name for p in Path(folder).rglob("*")] == ["in", path.name]


def check_tree(base: bool, entries: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "tree")
        root.mkdir()
        if base:
            make_tree(root)
        for name, kind, data, target in entries:
            path = Path(os.path.normpath(root / name.replace("..", "up")))
            make: dict[bytes, Callable[[], object]] = {
                tarfile.DIRTYPE: lambda path=path: path.mkdir(),
                tarfile.SYMTYPE: lambda path=path, to=target: path.symlink_to(to),
                tarfile.FIFOTYPE: lambda path=path: os.mkfifo(path),
            }
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.is_symlink() or path.is_fifo():
                    continue
                make.get(kind, lambda p=path, d=data: p.write_bytes(d))()
            except OSError:  # a name that is taken
                continue
        answer(root)


def runs(n: int) -> settings:
    few = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=n, deadline=None, database=None, suppress_health_check=few
    )


@runs(60)
@given(ENDINGS, st.booleans(), ENTRIES, DAMAGE)
def test_random_archives_end_in_a_set_or_a_sentence(ending, base, entries, damage):
    check_archive(ending, base, entries, damage)


@runs(30)
@given(st.booleans(), ENTRIES)
def test_random_trees_end_in_a_set_or_a_sentence(base, entries):
    check_tree(base, entries)


@pytest.mark.soak
@runs(SOAK)
@given(ENDINGS, st.booleans(), ENTRIES, DAMAGE)
def test_ten_thousand_archives(ending, base, entries, damage):
    check_archive(ending, base, entries, damage)


@pytest.mark.soak
@runs(SOAK)
@given(st.booleans(), ENTRIES)
def test_ten_thousand_trees(base, entries):
    check_tree(base, entries)


def test_the_checks_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFolder, "load", lambda self: np.empty(0)[1])
    with pytest.raises(IndexError):
        answer(make_tree(tmp_path / "t"))
