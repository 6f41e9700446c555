"""The inbox folder: which knowledge bases and documents are in it, and how files get into it safely."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ingest.errors import IngestError
from ingest.loaders import LOADERS, loader_of

DEFAULT_KB = "default"
TEMPORARY = re.compile(r"^(\.|~\$)|\.(tmp|part|crdownload)$", re.IGNORECASE)
DEVICE = re.compile(r"^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\.|$)", re.IGNORECASE)
FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
MAX_NAME = 200  # bytes; file systems take 255, and copies get a temporary name that is longer


@dataclass(frozen=True)
class InboxFile:
    """A document's file. `source` is relative to the knowledge base's folder, with /."""

    source: str
    path: Path
    size: int
    mtime_ns: int


@dataclass
class Scan:
    """The documents of a knowledge base by source; `trouble` holds what could not be looked into, with the cause."""

    files: dict[str, InboxFile] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)


def check_name(name: str, what: str) -> str:
    """A name that is one safe path component on every system, or IngestError."""
    decoded = unquote(name)
    bad = (
        not name.strip()
        or FORBIDDEN.search(name)
        or (decoded != name and (FORBIDDEN.search(decoded) or decoded.startswith(".")))
        or name.startswith((".", "~$"))
        or name != name.strip()
        or name.endswith(".")
        or DEVICE.match(name)
        or any(0xD800 <= ord(letter) < 0xE000 for letter in name)
        or len(name.encode("utf-8", "replace")) > MAX_NAME
    )
    if bad:
        raise IngestError(f"{name[:80]!r} is no usable {what}; use letters, digits, spaces, - and _")
    return name


def check_kb_name(name: str) -> str:
    """The name, if a knowledge base can be called so; else IngestError."""
    return check_name(name, "name of a knowledge base")


def check_file_name(name: str) -> str:
    """The name, if a document can be called so; else IngestError."""
    check_name(name, "file name")
    if TEMPORARY.search(name):
        raise IngestError(f"{name!r} looks like a temporary file; give it another name")
    if loader_of(name) is None:
        raise IngestError(f"{name!r} is of a type that is not read; these are: {', '.join(sorted(LOADERS))}")
    return name


def is_document(name: str) -> bool:
    """Whether a file of this name is a document: neither hidden, nor temporary, nor of another type."""
    return not TEMPORARY.search(name) and loader_of(name) is not None


def walk(folder: Path, prefix: str, scan: Scan, deep: bool = True) -> None:
    """Adds the documents under a folder to `scan`, their sources behind `prefix`. Symbolic links are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        scan.trouble[prefix or "."] = f"folder cannot be read: {error.strerror}"
        return
    for entry in entries:
        source = prefix + entry.name
        if TEMPORARY.search(entry.name):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                if deep:
                    walk(Path(entry.path), source + "/", scan)
            elif entry.is_file(follow_symlinks=False) and loader_of(entry.name) is not None:
                source.encode("utf-8")
                seen = entry.stat(follow_symlinks=False)
                scan.files[source] = InboxFile(source, Path(entry.path), seen.st_size, seen.st_mtime_ns)
        except UnicodeEncodeError:
            scan.trouble[source.encode("utf-8", "backslashreplace").decode()] = "its name is not UTF-8; rename it"
        except OSError:
            continue  # gone between the listing and the look: the next run sees it


class Inbox:
    """The folder that is the one truth about what is indexed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def kbs(self) -> list[str]:
        """Names of the first-level folders, and `default`."""
        names = {DEFAULT_KB}
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.root) as entries:
            for entry in entries:
                if (
                    entry.is_dir(follow_symlinks=False)
                    and not TEMPORARY.search(entry.name)
                    and entry.name.isprintable()
                ):
                    names.add(entry.name)
        return sorted(names)

    def folder(self, kb: str) -> Path:
        """What the sources of a knowledge base are relative to."""
        return self.root if kb == DEFAULT_KB else self.root / kb

    def scan(self, kb: str) -> Scan:
        """The documents of a knowledge base, as they lie on disk now."""
        scan = Scan()
        folder = self.folder(kb)
        if kb == DEFAULT_KB:
            walk(folder, "", scan, deep=False)
            folder = folder / DEFAULT_KB
        if not folder.is_symlink():
            walk(folder, f"{DEFAULT_KB}/" if kb == DEFAULT_KB else "", scan)
        return scan

    def kb_of(self, path: Path) -> str | None:
        """The knowledge base of a path inside the inbox (None for the inbox itself, which holds them all)."""
        parts = path.resolve().relative_to(self.root.resolve()).parts
        if not parts:
            return None
        return parts[0] if len(parts) > 1 or path.is_dir() else DEFAULT_KB

    def contains(self, path: Path) -> bool:
        """Whether a path, its links followed, lies inside the inbox."""
        return path.resolve().is_relative_to(self.root.resolve())

    def path_of(self, kb: str, source: str) -> Path:
        """The file of a source. Raises IngestError if that would leave the knowledge base's folder."""
        folder = self.folder(kb)
        path = folder / PurePosixPath(source)
        unsafe = "\x00" in source or "\\" in source or ".." in PurePosixPath(source).parts
        inside = not unsafe and path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()
        if not inside:
            raise IngestError(f"knowledge base '{kb}' has no document {source[:200]!r}")
        return path


def _temporary(target: Path) -> Path:
    return target.parent / f".paddock-{secrets.token_hex(8)}.part"


def ensure_folder(folder: Path) -> None:
    """Makes a folder. Raises IngestError in one line if it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IngestError(f"folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise IngestError(f"folder {folder} is not writable; change its permissions")


def write_part(target: Path, blocks: Iterator[bytes], mtime_ns: int | None = None) -> Path:
    """Writes blocks to a hidden file beside `target`, to be put in place in one step. Raises OSError."""
    part = _temporary(target)
    try:
        with part.open("xb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if mtime_ns is not None:
            os.utime(part, ns=(mtime_ns, mtime_ns))
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def place_new(part: Path, target: Path) -> bool:
    """Moves a finished part to `target` unless something is there already, in one step; says whether it did."""
    try:
        try:
            os.link(part, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
            part.replace(target)
        return True
    finally:
        part.unlink(missing_ok=True)


def same_content(path: Path, data: bytes) -> bool:
    """Whether a regular file holds exactly these bytes."""
    seen = path.lstat()
    return stat.S_ISREG(seen.st_mode) and seen.st_size == len(data) and path.read_bytes() == data
