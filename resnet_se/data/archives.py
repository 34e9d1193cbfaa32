"""Archives of images, unpacked safely into a temporary folder, then read as folders.

Only regular files of the tree come out, hard and symbolic links are followed inside the
archive, and sizes are bounded by headers and stream before anything is read.  An
archive is read twice, so that files outside the tree are never written.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
import shutil
import stat
import struct
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EDQUOT, ENOSPC
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from resnet_se.data.image_tree import find_layout, is_hidden
from resnet_se.data.reading import Limits, first_few, progress, root_error
from resnet_se.data.wrappings.flat_parts import ANNOTATIONS
from resnet_se.utils.errors import UserError
from resnet_se.utils.system import cache_folder

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
BLOCK = 4096  # bytes that even an empty file takes
MEMORY = Path("/dev/shm")  # a file system in memory, on Linux
SCRATCH = "resnet-se-unpacked-"
HEADER = 1 << 20  # bytes that tarfile may read at once: names, no images


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


class Member(NamedTuple):
    """One entry of an archive; `target` is a link's, below the root of the archive."""

    name: str
    kind: str  # file, folder, link, device
    size: int = 0
    target: str = ""


Content = Callable[[], IO[bytes]]


@contextmanager
def opened(root: Path, limits: Limits, val: str | None = None) -> Iterator[Path]:
    """Yield the folder `root`, or a temporary one with the tree of an archive."""
    if root.is_dir():
        yield root
    else:
        with unpacked(root, lambda members: _in_tree(members, val), limits) as folder:
            yield folder


def archive_folders(archive: Path, limits: Limits) -> Callable[[str], set[str]]:
    """Return a function of a folder in an archive: the names of those below it.

    Raises:
        UserError: as `unpacked`.
    """
    status = archive.stat()
    return _listed(archive, limits, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _listed(
    archive: Path, limits: Limits, _size: int, _time: int
) -> Callable[[str], set[str]]:
    with _damage_named(archive):
        return _folders(member for member, _ in _members(archive, limits))


def _folders(members: Iterable[Member]) -> Callable[[str], set[str]]:
    below: dict[str, set[str]] = {}
    for member in members:
        parents = member.name.split("/")[: None if member.kind == "folder" else -1]
        at = ""
        for name in parents:
            if is_hidden(name):
                break
            below.setdefault(at, set()).add(name)
            at += f"{name}/"
    return lambda at: set(below.get(at, ()))


def _in_tree(
    members: Iterable[Member], val: str | None = None
) -> Callable[[Member], bool]:
    """Return a test: the member is a class folder, lies in one, or has their labels."""
    folders = _folders(members)
    layout = find_layout(folders, val)
    splits = [f"{layout.top}{split}" for split in layout.parts]
    flat = [split for split in splits[1:] if not folders(split)]
    tables = [split[:-1].casefold() + ".csv" for split in flat]

    def below_class(name: str) -> bool:
        return "/" in name or name == ANNOTATIONS

    def wanted(member: Member) -> bool:
        name = f"{member.name}/" if member.kind == "folder" else member.name
        return (
            name.casefold() in tables
            or any(
                name.startswith(split)
                # Not a file beside the class folders; a link might stand for one.
                and (
                    member.kind != "file"
                    or split in flat
                    or below_class(name[len(split) :])
                )
                for split in splits
            )
        )

    return wanted


@contextmanager
def unpacked(
    archive: Path,
    select: Callable[[Iterable[Member]], Callable[[Member], bool]],
    limits: Limits,
) -> Iterator[Path]:
    """Yield a temporary folder with the members that `select(all members)` accepts.

    Raises:
        UserError: the archive is damaged or too large, a path leaves it, or a member
            to unpack is neither file nor folder nor a link to a file in the archive.
    """
    with ExitStack() as stack:
        with _damage_named(archive), progress(f"unpacking {archive.name}"):
            members: dict[str, Member] = {}
            size = 0
            for member, _ in _members(archive, limits):
                size += max(BLOCK, member.size)
                limits.check_bytes(f"an archive {archive}", size)
                if member.name:
                    members[member.name] = member
            copies = _copies(archive, members, select(members.values()), limits)
            size = sum(
                max(BLOCK, members[name].size) * len(names)
                for name, names in copies.items()
            )
            folder = stack.enter_context(_scratch_folder(size))
            for member, content in _members(archive, limits):
                targets = [Path(folder, name) for name in copies.get(member.name, ())]
                if targets and member.kind == "folder":
                    targets[0].mkdir(parents=True, exist_ok=True)
                elif targets and content is not None:
                    _write(content, targets)
        yield Path(folder)


def _copies(
    archive: Path,
    members: dict[str, Member],
    wanted: Callable[[Member], bool],
    limits: Limits,
) -> dict[str, list[str]]:
    """Return {member to read: names to write it to}, links resolved."""
    copies: dict[str, list[str]] = {}
    unfit: list[str] = []
    size = 0
    for name, member in members.items():
        if any(map(is_hidden, name.split("/"))) or not wanted(member):
            continue
        end, passed = member, set()
        while end.kind == "link" and end.target in members and end.name not in passed:
            passed.add(end.name)
            end = members[end.target]
        if end.kind == "file" or (end is member and end.kind == "folder"):
            copies.setdefault(end.name, []).append(name)
            size += max(BLOCK, end.size)
            limits.check_bytes(f"an archive {archive}", size)
            # Four bytes a pixel, uncompressed: nothing larger can be an allowed image.
            limits.check_pixels(f"{archive}: {name}", end.size // 4)
        elif member.kind == "link":
            unfit.append(f"{name} (a link to {member.target}, no file in the archive)")
        else:
            unfit.append(f"{name} (a {member.kind})")
    if unfit:
        raise root_error(f"files and folders in {archive}", first_few(unfit))
    return copies


def _write(content: Content, targets: list[Path]) -> None:
    for folder in {target.parent for target in targets}:
        if not folder.is_dir():
            folder.mkdir(parents=True)
    first, *others = targets
    with content() as source, first.open("wb") as file:
        shutil.copyfileobj(source, file)
    for other in others:
        shutil.copyfile(first, other)


def _members(archive: Path, limits: Limits) -> Iterator[tuple[Member, Content | None]]:
    """Yield every member, in order, and a function that opens a regular file."""
    if archive.name.lower().endswith(".zip"):
        yield from _zip_members(archive)
    else:
        yield from _tar_members(archive, limits)


def _zip_members(archive: Path) -> Iterator[tuple[Member, Content | None]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            name = _inside(info.filename)
            if info.is_dir():
                yield Member(name, "folder"), None
            elif stat.S_ISLNK(info.external_attr >> 16):
                with file.open(info) as source:
                    target = source.read(BLOCK).decode()
                yield _link(name, posixpath.dirname(name), target), None
            else:
                yield Member(name, "file", info.file_size), partial(file.open, info)


def _tar_members(
    archive: Path, limits: Limits
) -> Iterator[tuple[Member, Content | None]]:
    with _decompressed(archive) as raw:
        stream = _BoundedStream(raw, limits, archive)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all
                name = _inside(info.name)
                if info.isreg():
                    content = cast(Content, partial(tar.extractfile, info))
                    yield Member(name, "file", info.size), content
                elif info.isdir():
                    yield Member(name, "folder"), None
                elif info.issym():
                    yield _link(name, posixpath.dirname(name), info.linkname), None
                elif info.islnk():
                    yield _link(name, "", info.linkname), None
                else:
                    yield Member(name, "device"), None
            # tarfile takes a cut between two members for the end, which is 512 zero
            # bytes; reading what is left also verifies the checksum of gzip and xz.
            stream.seek(tar.offset)
            if stream.read(512) != bytes(512):
                raise tarfile.ReadError("unexpected end of data")
            while stream.read(1 << 16):
                pass


def _inside(name: str) -> str:
    """Return a member's name without "./" and a leading slash.

    Raises:
        UserError: it leaves the archive.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    # "C:x" and "a\\b" are paths on Windows, where basename takes them apart.
    if ".." in parts or any(os.path.basename(part) != part for part in parts):
        raise root_error("an archive with all paths inside", repr(name))
    return "/".join(parts)


def _link(name: str, folder: str, target: str) -> Member:
    target = posixpath.normpath(posixpath.join(folder, target))
    return Member(name, "link", target=target)


def _decompressed(archive: Path) -> IO[bytes]:
    """Open a tar, decompressed by its first bytes as tarfile does, not by its name."""
    with archive.open("rb") as file:
        head = file.read(6)
    openers: dict[bytes, Callable[..., Any]] = {
        b"\x1f\x8b": gzip.open,
        b"\xfd7zXZ\0": lzma.open,
        b"BZh": bz2.open,
    }
    return next((o for m, o in openers.items() if head.startswith(m)), open)(
        archive, "rb"
    )


class _BoundedStream(io.RawIOBase):
    """A tar's bytes: no further than allowed, and never much at once."""

    def __init__(self, file: IO[bytes], limits: Limits, archive: Path):
        self.file, self.limits = file, limits
        self.described = f"an archive {archive}"

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self.limits.check_bytes(self.described, offset)
        return self.file.seek(offset, whence)

    def read(self, size: int = -1, /) -> bytes:
        if size > HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        self.limits.check_bytes(self.described, self.file.tell() + size)
        return self.file.read(size)


def _scratch_folder(size: int) -> tempfile.TemporaryDirectory[str]:
    """Return one in memory, if that has room for four times `size` bytes, or on disk.

    60,000 small files on a busy disk took minutes to make and delete.
    """
    with suppress(OSError):
        if shutil.disk_usage(MEMORY).free > 4 * size:
            for old in MEMORY.glob(f"{SCRATCH}*"):  # of a process that was killed
                if time.time() - old.stat().st_mtime > 3600:
                    shutil.rmtree(old, ignore_errors=True)
            return tempfile.TemporaryDirectory(prefix=SCRATCH, dir=MEMORY)
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=f".{SCRATCH}", dir=cache_folder())
    return tempfile.TemporaryDirectory(prefix=SCRATCH)


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    damage = (
        *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
        *(EOFError, OSError, struct.error, ValueError, LookupError, OverflowError),
        RuntimeError,  # of zipfile, for a password or an unknown compression
    )
    try:
        yield
    except UserError:
        raise
    except damage as error:
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            raise
        got = f"{archive}, which is truncated, damaged or unreadable ({error})"
        raise root_error("a whole archive", got) from error
