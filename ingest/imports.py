"""Files from elsewhere, copied into the inbox; a second import of the same folder brings the copies up to date."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest.errors import IngestError
from ingest.inbox import (
    DEFAULT_KB,
    Inbox,
    InboxFile,
    Scan,
    check_kb_name,
    ensure_folder,
    is_document,
    place_new,
    walk,
    write_part,
)
from ingest.manifest import ImportRow, Manifest
from ingest.report import Failure


class Importer:
    """Copies documents; never overwrites or removes a file that it did not copy, or that was edited since."""

    def __init__(self, inbox: Inbox, manifest: Manifest, max_file_mb: int) -> None:
        self.inbox = inbox
        self.manifest = manifest
        self.max_file_mb = max_file_mb
        self.touched: set[str] = set()
        self.failures: list[Failure] = []

    def run(self, paths: Sequence[Path], kb: str | None) -> tuple[set[str], list[Failure]]:
        """Imports files and folders; paths inside the inbox are there already.

        With `kb`, all goes under that knowledge base's folder. Without, a folder is laid out as the inbox is: its own
        files belong to `default`, and each of its subfolders is a knowledge base.
        """
        for path in paths:
            try:
                if not path.exists():
                    raise IngestError("no such file or folder")
                if self.inbox.contains(path):
                    inside = self.inbox.kb_of(path)
                    self.touched.update(self.inbox.kbs() if inside is None else [inside])
                elif path.is_dir():
                    if self.inbox.root.resolve().is_relative_to(path.resolve()):
                        raise IngestError("holds the inbox itself; name a folder beside it")
                    self._folder(path.resolve(), kb)
                else:
                    self._single(path.resolve(), kb)
            except IngestError as error:
                self.failures.append(Failure(str(path), str(error)))
        return self.touched, self.failures

    def _single(self, path: Path, kb: str | None) -> None:
        if not path.is_file() or not is_document(path.name):
            raise IngestError("is not a document of a type that is read")
        seen = path.stat()
        file = InboxFile(path.name, path, seen.st_size, seen.st_mtime_ns)
        self._bring(file, *self._place(path.name, kb), str(path))

    def _folder(self, root: Path, kb: str | None) -> None:
        scan = Scan()
        walk(root, "", scan)
        self.failures.extend(Failure(str(root / rel), error) for rel, error in scan.trouble.items())
        present: set[tuple[str, str]] = set()
        for rel, file in sorted(scan.files.items()):
            try:
                place = self._place(rel, kb)
                present.add(place)
                self._bring(file, *place, str(root))
            except IngestError as error:
                self.failures.append(Failure(str(file.path), str(error)))
        unseen = [str(root / rel) for rel in scan.trouble]
        for place, row in self.manifest.imports(str(root)).items():
            hidden = any(f"{root}/{row.rel}".startswith(folder) for folder in unseen)
            if place not in present and not hidden and not (root / row.rel).exists():
                self._remove(row)
        self.touched.update([kb or DEFAULT_KB] if not scan.files else [])

    def _place(self, rel: str, kb: str | None) -> tuple[str, str]:
        """Knowledge base and source of a copy."""
        first, slash, rest = rel.partition("/")
        if kb is None:
            if not slash:
                return DEFAULT_KB, rel
            kb, rel = check_kb_name(first), rest
        return kb, (f"{DEFAULT_KB}/{rel}" if kb == DEFAULT_KB else rel)

    def _bring(self, file: InboxFile, kb: str, source: str, root: str) -> None:
        """Copies one file, or brings its copy up to date."""
        self.touched.add(kb)
        if file.size > self.max_file_mb << 20:
            raise IngestError(f"is larger than {self.max_file_mb} MB (setting max_file_mb)")
        target = self.inbox.path_of(kb, source)
        row = self.manifest.imports(root).get((kb, source))
        try:
            if not target.exists():
                self._copy_new(file, kb, source, root, target)
                return
            seen = target.stat()
            if row is not None and (seen.st_size, seen.st_mtime_ns) == (file.size, file.mtime_ns):
                return
            theirs, ours = _sha256(file.path), _sha256(target)
            if theirs == ours:
                return
            if row is None:
                raise IngestError(f"another file is {source!r} of knowledge base '{kb}' already; nothing overwritten")
            if ours == row.sha256:
                part = write_part(target, _blocks(file.path), file.mtime_ns)
                part.replace(target)
                self.manifest.put_import(ImportRow(kb, source, root, file.source, theirs))
            elif theirs != row.sha256:
                raise IngestError(
                    f"was changed, and so was its copy {source!r} in knowledge base '{kb}'; kept the copy"
                )
        except OSError as error:
            raise IngestError(f"cannot be copied: {error.strerror}") from error

    def _copy_new(self, file: InboxFile, kb: str, source: str, root: str, target: Path) -> None:
        ensure_folder(target.parent)
        part = write_part(target, _blocks(file.path), file.mtime_ns)
        digest = _sha256(part)
        # Known before it is in place: a kill in between leaves a row without a file, and the next run copies again.
        self.manifest.put_import(ImportRow(kb, source, root, file.source, digest))
        if not place_new(part, target):
            self.manifest.delete_import(kb, source)
            raise IngestError(f"another file is {source!r} of knowledge base '{kb}' already; nothing overwritten")

    def _remove(self, row: ImportRow) -> None:
        """Removes a copy whose original is gone, unless it was edited."""
        target = self.inbox.path_of(row.kb, row.source)
        try:
            if target.is_file() and not target.is_symlink() and _sha256(target) == row.sha256:
                target.unlink()
                self.touched.add(row.kb)
        except OSError as error:
            self.failures.append(Failure(str(target), f"cannot be removed: {error.strerror}"))
            return
        self.manifest.delete_import(row.kb, row.source)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block
