"""One model on a Hugging Face hub: what it consists of, and fetching a file of it, resumed and checked.

The hub's HTTP interface: GET /api/models/OWNER/NAME/revision/REVISION lists the files with their checksums,
/OWNER/NAME/resolve/COMMIT/FILE gives one. Its own client is not used: it compares no checksums of what it fetched, and
it obeys, from its import on, the variable by which we keep every library off the network.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import AppError
from app.models import BLOCK, Progress

if TYPE_CHECKING:
    import httpx

TRIES = 5  # in a row without a single byte
PAUSE_S = 1.0  # before the second try, twice as long before each further one
BUSY = (429, 500, 502, 503, 504)  # answers that may be others in a moment


class _BusyError(Exception):
    """The hub is there and does not give a file at the moment."""


@dataclass(frozen=True)
class Remote:
    """A file as the hub lists it. Large ones have a SHA-256, small ones the SHA-1 that git knows them by."""

    name: str
    size: int
    algorithm: str
    digest: str

    @classmethod
    def listed(cls, entry: dict[str, Any]) -> Remote:
        """Raises KeyError, TypeError or ValueError for what is no entry of a listing."""
        large = entry.get("lfs")
        digest = str(large["sha256"] if large else entry["blobId"]).lower()
        if not re.fullmatch("[0-9a-f]{64}" if large else "[0-9a-f]{40}", digest):
            raise ValueError(f"no checksum of {entry['rfilename']}")
        return cls(str(entry["rfilename"]), int(entry["size"]), "SHA-256" if large else "SHA-1", digest)

    def hasher(self) -> Any:
        if self.algorithm == "SHA-256":
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    def is_at(self, path: Path) -> bool:
        """Whether that file on disk is this one."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        hasher = self.hasher()
        _read_into(hasher, path)
        return bool(hasher.hexdigest() == self.digest)


class Source:
    """A model on a hub, at one revision."""

    def __init__(self, client: httpx.Client, hub: str, repository: str, revision: str) -> None:
        self._client, self._hub, self._repository, self._revision = client, hub.rstrip("/"), repository, revision

    def listing(self) -> tuple[str, dict[str, Remote]]:
        """The commit of the revision and its files by name, those in subfolders left out. Raises AppError."""
        import httpx

        url = f"{self._hub}/api/models/{self._repository}/revision/{self._revision}"
        try:
            answer = self._client.get(url, params={"blobs": "true"})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        self._check(answer)
        try:
            found = answer.json()
            commit = re.fullmatch(r"[\w.-]+", found["sha"])
            entries = [Remote.listed(each) for each in found["siblings"] if "/" not in each["rfilename"]]
        except (ValueError, TypeError, KeyError) as error:
            raise AppError(f"{self._hub} does not answer as a hub does ({error}); check the setting 'hub'") from error
        if commit is None:
            raise AppError(f"{self._hub} does not answer as a hub does; check the setting 'hub'")
        return commit[0], {file.name: file for file in entries}

    def fetch(self, commit: str, file: Remote, path: Path, progress: Progress) -> None:
        """Brings a file to `path`, going on with what an earlier call brought, and checks it.

        Raises AppError when the transfer stops for good (what has come is kept) or the checksum is another.
        """
        import httpx

        part = path.with_name(path.name + ".part")
        if part.is_file() and part.stat().st_size > file.size:
            part.unlink()
        hasher = file.hasher()
        done = _read_into(hasher, part) if part.is_file() else 0
        progress(done, file.name)
        tries, fault = 0, "the hub sent nothing"
        while done < file.size:
            before = done
            try:
                with part.open("ab") as sink:
                    for block in self._blocks(commit, file.name, done):
                        if block is None:  # the hub begins anew
                            progress(-done, file.name)
                            hasher, done = file.hasher(), 0
                            sink.truncate(0)
                            continue
                        sink.write(block)
                        hasher.update(block)
                        done += len(block)
                        progress(len(block), file.name)
                    sink.flush()
                    os.fsync(sink.fileno())
            except (httpx.TransportError, _BusyError) as error:
                fault = str(error) or type(error).__name__
            except httpx.HTTPError as error:  # led in circles, for one
                raise AppError(f"{self._hub} does not give {file.name} ({error}); try again later") from error
            tries = 0 if done > before else tries + 1
            if tries == TRIES:
                raise AppError(
                    f"{file.name} stopped at {done:,} of {file.size:,} bytes ({fault}); run it again, it goes on there"
                )
            if tries:
                time.sleep(PAUSE_S * 2 ** (tries - 1))
        if done != file.size or hasher.hexdigest() != file.digest:
            part.unlink(missing_ok=True)
            raise AppError(f"what the hub gave as {file.name} has not the {file.algorithm} {file.digest}; try again")
        part.touch()  # for one without any bytes
        part.rename(path)

    def _blocks(self, commit: str, name: str, start: int) -> Iterator[bytes | None]:
        """The bytes of a file from `start` on, or None and then all of them where the hub does not resume."""
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        url = f"{self._hub}/{self._repository}/resolve/{commit}/{name}"
        with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code in BUSY:
                raise _BusyError(f"the hub answered {answer.status_code} {answer.reason_phrase}".rstrip())
            self._check(answer)
            if start and answer.status_code != 206:
                yield None
            elif start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise AppError(f"{self._hub} gave another part of {name} than was asked for; try again later")
            yield from answer.iter_raw()  # as it comes: in larger blocks the last bytes before a break would be lost

    def _check(self, answer: httpx.Response) -> None:
        status = answer.status_code
        if status in (401, 403):
            raise AppError(
                f"{self._hub} does not give {self._repository} to everybody, or does not have it ({status}); check the "
                "name, accept its licence there, and set PADDOCK_HUB_TOKEN"
            )
        if status == 404:
            raise AppError(f"{self._hub} has no {self._repository} at revision {self._revision}; check the name")
        if status >= 400:
            raise AppError(f"{self._hub} answered {status} {answer.reason_phrase}; try again later")

    def _unreachable(self, error: Exception) -> AppError:
        reason = str(error) or type(error).__name__
        return AppError(f"{self._hub} cannot be reached ({reason}); check the network, or set PADDOCK_HUB to a mirror")


def _read_into(hasher: Any, path: Path) -> int:
    """Feeds a file to a hash; its length."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return path.stat().st_size
