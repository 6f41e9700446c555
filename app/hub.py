"""Models of a Hugging Face hub: which files of one are needed, and putting them in their place."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from app.errors import AppError
from app.hub_source import Remote, Source
from app.models import SPARE, megabytes, place
from llama.errors import LlamaError

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+)/([\w.-]+?)(?:/([\w.-]+\.gguf))?(?:@([\w.-]+))?")
TIMEOUT_S = 30.0

# What says how the model is built and spoken to; fetched and read before the weights.
DESCRIBING = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)
META_DESCRIBING = ("params.json", "tokenizer.model", "chat_template.jinja")
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")  # such parts have to be joined before they can be read
META_SHARD = re.compile(r"consolidated\.\d\d\.pth")


@dataclass(frozen=True)
class Wanted:
    """A model on the hub: owner, name, one file of several GGUF files, and a branch, tag or commit."""

    owner: str
    name: str
    file: str | None
    revision: str

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"


def parse(name: str) -> Wanted:
    """hf:OWNER/NAME[/FILE.gguf][@REVISION]. Raises AppError for anything else."""
    hit = NAME.fullmatch(name)
    if hit is None or {hit[1], hit[2]} & {".", ".."}:
        raise AppError(f"'{name}' is not hf:OWNER/NAME or hf:OWNER/NAME/FILE.gguf, with @REVISION behind it perhaps")
    return Wanted(hit[1], hit[2], hit[3], hit[4] or "main")


def pull(
    models_dir: Path, name: str, hub: str, token: str = "", say: Callable[[str], None] | None = None
) -> tuple[str, bool]:
    """Puts a model of a hub into `models_dir`; its name there, and whether anything had to be fetched.

    A folder becomes OWNER--NAME, a GGUF file OWNER--NAME--FILE. It appears whole or not at all; what an interrupted
    pull has fetched stays under .partial/ and is gone on with. Raises AppError, and LlamaError for a model that cannot
    be run (before its weights are fetched, where its other files tell).
    """
    import httpx

    wanted = parse(name)
    tell = say or (lambda line: None)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as client:
        source = Source(client, hub, wanted.repository, wanted.revision)
        commit, listed = source.listing()
        files = choose(wanted, listed)
        single = len(files) == 1
        local = f"{wanted.owner}--{wanted.name}" + (f"--{files[0].name}" if single else "")
        target, partial = models_dir / local, models_dir / ".partial"
        work = partial / f"{local}@{commit}"
        try:
            models_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(models_dir / ".pull.lock"):
                if all(file.is_at(target if single else target / file.name) for file in files):
                    tell(f"{local} is already there")
                    return local, False
                _clear(partial, local, keep=work)
                tell(f"{local}: from {hub}, commit {commit[:12]}")
                _fetch_all(source, commit, files, work, target, quiet=say is None)
                place(work / files[0].name if single else work, target, partial / f"{local}@replaced")
                _clear(partial, local, keep=None)
        except LlamaError:
            _clear(partial, local, keep=None)  # what cannot be run is of no use later either
            raise
        except OSError as error:
            reason = error.strerror or error
            raise AppError(f"{local} cannot be written to {models_dir} ({reason}); mend that") from error
    tell(f"{local} is in place; use it with --model {local}")
    return local, True


def choose(wanted: Wanted, files: Mapping[str, Remote]) -> list[Remote]:
    """The files that are needed, describing ones first; of a GGUF repository one file. Raises AppError."""
    weights = [name for name in files if name == "model.safetensors"] or sorted(filter(SHARD.fullmatch, files))
    shards = sorted(filter(META_SHARD.fullmatch, files))
    if wanted.file is None and "config.json" in files and weights:
        return [files[name] for name in (*DESCRIBING, *weights) if name in files]
    if wanted.file is None and "params.json" in files and shards:
        if absent := sorted({f"consolidated.{i:02}.pth" for i in range(int(shards[-1][13:15]))} - {*shards}):
            raise AppError(f"{wanted.repository} lacks {', '.join(absent)}; choose another model")
        return [files[name] for name in (*META_DESCRIBING, *shards) if name in files]
    gguf = sorted(name for name in files if name.endswith(".gguf") and not GGUF_PART.search(name))
    chosen = gguf if wanted.file is None else [name for name in gguf if name == wanted.file]
    if len(chosen) == 1:
        return [files[chosen[0]]]
    if gguf:
        raise AppError(f"choose one file of it, hf:{wanted.repository}/FILE.gguf with one of {', '.join(gguf)}")
    pickled = next((name for name in files if name.endswith((".bin", ".pth", ".pt"))), None)
    why = f" ({pickled} may run code and is not read)" if pickled else ""
    raise AppError(f"{wanted.repository} has no safetensors, GGUF file or shards of Meta's{why}; choose another model")


def _fetch_all(source: Source, commit: str, files: list[Remote], work: Path, before: Path, quiet: bool) -> None:
    """All files into `work`; those that the version in place (`before`) has already are taken from there."""
    from llama.checkpoint import open_checkpoint, tensors_of

    work.mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in files)
    missing = total - sum(each.stat().st_size for each in work.iterdir())
    free = shutil.disk_usage(work).free
    if free < missing + SPARE:
        raise AppError(
            f"{(missing + SPARE) >> 20} MB are needed in {work.parent.parent}, {free >> 20} are free; make room"
        )
    described = False
    with megabytes(total, quiet) as progress:
        for file in files:
            if file.name not in DESCRIBING and not described and (work / "config.json").is_file():
                _check_described(work, {each.name for each in files})
                described = True
            path = work / file.name
            if not path.is_file() and file.is_at(before / file.name):
                shutil.copyfile(before / file.name, path)
            if path.is_file():
                progress(file.size, file.name)
            else:
                source.fetch(commit, file, path, progress)
    opened = open_checkpoint(work if len(files) > 1 else work / files[0].name)
    tensors_of(opened), opened.tokenizer()


def _check_described(work: Path, files: set[str]) -> None:
    """Gigabytes are still to come: what cannot be run is better said now. Raises LlamaError."""
    from llama.hf_folder import SINGLE, open_hf_folder

    opened = open_hf_folder(work)
    opened.config, opened.tokenizer()
    if SINGLE not in files and (absent := sorted({shard.name for shard in opened.shards()} - files)):
        local = work.name.partition("@")[0]
        raise LlamaError(
            f"{local}: its index names {', '.join(absent)}, which the hub does not have; choose another model"
        )


def _clear(partial: Path, local: str, keep: Path | None) -> None:
    """Removes what was begun of a model, at other commits; the folder too, when nothing else is in it."""
    for each in list(partial.glob(f"{local}@*")) if partial.is_dir() else ():
        if each != keep:
            shutil.rmtree(each, ignore_errors=True)
    with contextlib.suppress(OSError):
        partial.rmdir()
