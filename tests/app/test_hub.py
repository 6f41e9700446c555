"""Fetching from a hub, one on this machine: whatever goes wrong on the way, a model is whole or not there."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app import hub, hub_source
from app.cli import main
from app.errors import AppError
from app.hub import parse, pull
from llama.checkpoint import load_transformer, open_checkpoint
from llama.errors import LlamaError

from ..llama.formats import Shape, meta_weights, write_gguf, write_hf, write_meta
from ..llama.test_hf_folder import tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Lists a folder as the hub does and gives its files. It can break off, refuse to resume, and lie."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commit, self.key = folder, COMMIT, ""
        self.asked: list[tuple[str, str | None]] = []
        self.most = 1 << 40  # bytes that one answer brings at most
        self.left = 1 << 40  # bytes in all, before it falls silent
        self.resumes, self.shifted, self.status = True, 0, 200
        self.large: dict[str, str] = {}  # checksums to list instead of the true ones
        self.others: list[str] = []  # names to list besides
        self.failing: dict[str, list[int]] = {}  # what to answer first when a file is asked for
        self.leads: dict[str, str] = {}  # where somebody is sent who asks for a file
        self.zips = False  # files to whom that takes it
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def listing(self) -> dict[str, Any]:
        others = ["onnx/model.onnx", *self.others]
        entries: list[dict[str, Any]] = [{"rfilename": name, "size": 1, "blobId": "f" * 40} for name in others]
        for path in sorted(self.folder.iterdir()):
            data = path.read_bytes()
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": path.name, "size": len(data), "blobId": git}
            if path.suffix in (".safetensors", ".gguf", ".pth", ".bin"):
                sha256 = self.large.get(path.name) or hashlib.sha256(data).hexdigest()
                entry |= {"blobId": "e" * 40, "lfs": {"sha256": sha256, "size": len(data), "pointerSize": 134}}
            entries.append(entry)
        return {"id": "o/m", "sha": self.commit, "siblings": entries}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        self.asked.append((path, request.headers.get("Range")))
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return self.refuse(request, 401)
        if self.status != 200:
            return self.refuse(request, self.status)
        if path == "/api/models/o/m/revision/main" and query == "blobs=true":
            return self.give(request, json.dumps(self.listing()).encode(), 0)
        name = path.removeprefix(f"/o/m/resolve/{self.commit}/")
        if name == path or not (self.folder / name).is_file():
            return self.refuse(request, 404)
        if self.failing.get(name):
            return self.refuse(request, self.failing[name].pop(0))
        if name in self.leads:
            return self.refuse(request, 302, self.leads[name])
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        return self.give(request, (self.folder / name).read_bytes(), start if self.resumes else 0, file=True)

    def refuse(self, request: BaseHTTPRequestHandler, status: int, elsewhere: str = "") -> None:
        request.send_response(status)
        if elsewhere:
            request.send_header("Location", elsewhere)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def give(self, request: BaseHTTPRequestHandler, data: bytes, start: int, file: bool = False) -> None:
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start + self.shifted}-{len(data) - 1}/{len(data)}")
        if file and self.zips and "gzip" in request.headers.get("Accept-Encoding", ""):
            request.send_header("Content-Encoding", "gzip")
            data = gzip.compress(data)
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        rest = data[start:][: min(self.most, self.left)] if file else data
        self.left -= len(rest) if file else 0
        request.wfile.write(rest)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small LLaMA as its owner published it, with much beside it that nobody needs."""
    shape = Shape(vocabulary=320, dim=96, ffn=256)
    path = write_hf(tmp_path / "repository", shape, meta_weights(shape), 2)
    tokenizer().save(str(path / "tokenizer.json"))
    for name in ("README.md", "pytorch_model.bin", "flax_model.msgpack", ".gitattributes"):
        (path / name).write_bytes(b"not needed" * 100)
    (path / "generation_config.json").write_text("{}")
    return path


@pytest.fixture
def served(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub_source, "PAUSE_S", 0.0)
    made = Hub(repository)
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "home" / "models"


def complaint(there: Path, name: str, address: str, **options: Any) -> str:
    with pytest.raises((AppError, LlamaError)) as caught:
        pull(there, name, address, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_whole(there: Path, repository: Path) -> None:
    needed = {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"}
    needed |= {path.name for path in repository.glob("*.safetensors")}
    found = there / "o--m"
    assert {path.name for path in found.iterdir()} == needed
    assert all((found / name).read_bytes() == (repository / name).read_bytes() for name in needed)
    assert sorted(path.name for path in there.iterdir()) == [".pull.lock", "o--m"]
    load_transformer(open_checkpoint(found), torch.float32, "cpu")


def test_only_what_is_needed_is_fetched_and_nothing_twice(served: Hub, repository: Path, there: Path) -> None:
    said: list[str] = []
    assert pull(there, "hf:o/m", served.address, say=said.append) == ("o--m", True)
    assert_whole(there, repository)
    assert "--model o--m" in said[-1]
    asked = len(served.asked)
    assert asked == 1 + 6
    assert pull(there, "hf:o/m", served.address, say=said.append) == ("o--m", False)
    assert len(served.asked) == asked + 1, "the listing"
    assert said[-1] == "o--m is already there"


def test_a_line_that_breaks_again_and_again(served: Hub, repository: Path, there: Path) -> None:
    served.most = 50_000
    assert pull(there, "hf:o/m", served.address) == ("o--m", True)
    assert_whole(there, repository)
    ranges = [asked for _, asked in served.asked if asked]
    assert ranges[:2] == ["bytes=50000-", "bytes=100000-"]


def test_an_interrupted_pull_is_gone_on_with(served: Hub, repository: Path, there: Path) -> None:
    """A hub that falls silent leaves no half model, and what it gave is not fetched again."""
    small = sum(path.stat().st_size for path in repository.glob("*.json"))
    served.left = small + 300_000
    message = complaint(there, "hf:o/m", served.address)
    assert "stopped at" in message
    assert "run it again" in message
    assert [path.name for path in there.iterdir() if not path.name.startswith(".")] == []
    served.left, served.asked = 1 << 40, []
    assert pull(there, "hf:o/m", served.address) == ("o--m", True)
    assert_whole(there, repository)
    assert len([path for path, _ in served.asked if path.endswith(".json")]) == 0
    assert [asked for _, asked in served.asked if asked], "the rest only"


def test_an_interruption_by_the_user(
    served: Hub, repository: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: hub_source.Source, commit: str, name: str, start: int) -> Iterator[bytes | None]:
        for i, block in enumerate(blocks(source, commit, name, start)):
            if i == 2:
                raise KeyboardInterrupt
            yield block

    blocks = hub_source.Source._blocks
    with monkeypatch.context() as patch:
        patch.setattr(hub_source.Source, "_blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pull(there, "hf:o/m", served.address)
    assert not (there / "o--m").exists()
    pull(there, "hf:o/m", served.address)
    assert_whole(there, repository)
    assert [asked for _, asked in served.asked if asked]


def test_a_hub_that_cannot_resume(served: Hub, repository: Path, there: Path) -> None:
    size = max(path.stat().st_size for path in repository.glob("*.safetensors"))
    served.resumes, served.left = False, sum(path.stat().st_size for path in repository.glob("*.json")) + size // 2
    complaint(there, "hf:o/m", served.address)
    served.left = 1 << 40
    pull(there, "hf:o/m", served.address)
    assert_whole(there, repository)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_hub_that_is_busy_is_asked_again(served: Hub, repository: Path, there: Path, status: int) -> None:
    shard = "model-00001-of-00002.safetensors"
    served.failing = {shard: [status] * (hub_source.TRIES - 1), "config.json": [status]}
    assert pull(there, "hf:o/m", served.address) == ("o--m", True)
    assert_whole(there, repository)
    served.failing, served.commit = {shard: [status] * hub_source.TRIES}, "f" * 40
    (repository / shard).write_bytes((repository / shard).read_bytes() + b"\0")
    said = complaint(there, "hf:o/m", served.address)
    assert f"{shard} stopped at 0" in said
    assert f"the hub answered {status}" in said
    assert served.failing == {shard: []}


def test_a_refusal_is_not_asked_again(served: Hub, there: Path) -> None:
    served.failing = {"config.json": [403, 403]}
    assert "PADDOCK_HUB_TOKEN" in complaint(there, "hf:o/m", served.address)
    assert served.failing == {"config.json": [403]}


@pytest.mark.parametrize("elsewhere", ["/o/m/resolve/{commit}/{name}", "http://[bad/", "ftp://127.0.0.1/x"])
def test_a_hub_that_leads_nowhere(served: Hub, there: Path, elsewhere: str) -> None:
    name = "model-00001-of-00002.safetensors"
    served.leads = {name: elsewhere.format(commit=COMMIT, name=name)}
    assert name in complaint(there, "hf:o/m", served.address)
    assert not (there / "o--m").exists()


def test_bytes_are_taken_as_they_are(served: Hub, repository: Path, there: Path) -> None:
    """Not packed on the way: the checksum is that of the file, and so are the places to resume at."""
    served.zips = True
    pull(there, "hf:o/m", served.address)
    assert_whole(there, repository)


def test_a_file_without_any_bytes(served: Hub, repository: Path, there: Path) -> None:
    (repository / "chat_template.jinja").touch()
    pull(there, "hf:o/m", served.address)
    assert (there / "o--m" / "chat_template.jinja").read_bytes() == b""


def test_a_part_that_is_longer_than_the_file_is_left(served: Hub, repository: Path, there: Path) -> None:
    shard = "model-00001-of-00002.safetensors"
    work = there / ".partial" / f"o--m@{COMMIT}"
    work.mkdir(parents=True)
    (work / f"{shard}.part").write_bytes((repository / shard).read_bytes() + b"more")
    pull(there, "hf:o/m", served.address)
    assert_whole(there, repository)


def test_a_hub_that_gives_another_part(served: Hub, there: Path) -> None:
    served.most, served.shifted = 50_000, 7
    assert "another part" in complaint(there, "hf:o/m", served.address)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json"])
def test_a_wrong_checksum(
    served: Hub, repository: Path, there: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large files are listed with their SHA-256, small ones with git's SHA-1; neither may differ."""
    true = served.listing()
    data = (repository / name).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(served, "listing", lambda: true)
        (repository / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        message = complaint(there, "hf:o/m", served.address)
        assert name in message
        assert ("SHA-256" if "safetensors" in name else "SHA-1") in message
        assert not (there / "o--m").exists()
        (repository / name).write_bytes(data)
        pull(there, "hf:o/m", served.address)
    assert_whole(there, repository)


def test_what_is_damaged_or_older_is_renewed(served: Hub, repository: Path, there: Path) -> None:
    pull(there, "hf:o/m", served.address)
    shard = there / "o--m" / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    served.asked.clear()
    assert pull(there, "hf:o/m", served.address) == ("o--m", True)
    assert [path.rpartition("/")[2] for path, _ in served.asked[1:]] == [shard.name], "the others are taken from there"
    served.commit = "f" * 40
    (repository / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert pull(there, "hf:o/m", served.address) == ("o--m", True)
    assert_whole(there, repository)


def test_a_model_that_is_no_llama_costs_no_weights(served: Hub, repository: Path, there: Path) -> None:
    config = json.loads((repository / "config.json").read_text())
    (repository / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    assert "qwen2" in complaint(there, "hf:o/m", served.address)
    assert [path for path, _ in served.asked if path.endswith(".safetensors")] == []
    assert [path.name for path in there.iterdir()] == [".pull.lock"]


def test_a_shard_that_the_hub_does_not_have_costs_no_weights(served: Hub, repository: Path, there: Path) -> None:
    """The index names it, the listing does not."""
    (repository / "model-00002-of-00002.safetensors").unlink()
    said = complaint(there, "hf:o/m", served.address)
    assert "model-00002-of-00002.safetensors, which the hub does not have" in said
    assert [path for path, _ in served.asked if path.endswith(".safetensors")] == []
    assert [path.name for path in there.iterdir()] == [".pull.lock"]


def test_a_shard_of_metas_that_the_hub_does_not_have(served: Hub, tmp_path: Path, there: Path) -> None:
    served.folder = write_meta(tmp_path / "meta", Shape(), meta_weights(Shape()), 2)
    (served.folder / "consolidated.01.pth").rename(served.folder / "consolidated.03.pth")
    said = complaint(there, "hf:o/m", served.address)
    assert "o/m lacks consolidated.01.pth, consolidated.02.pth" in said
    assert not there.exists()


def test_weights_that_are_not_those_of_the_configuration(served: Hub, repository: Path, there: Path) -> None:
    """A tensor is missing, or of another shape: told by the heads of the files, and the model is not put in place."""
    shard = repository / "model-00001-of-00002.safetensors"
    held = load_file(shard)
    name = next(name for name in held if "mlp" in name)
    for wrong in ({}, {name: torch.ones(2, 2)}):
        save_file({key: value for key, value in held.items() if key != name} | wrong, shard)
        assert name in complaint(there, "hf:o/m", served.address)
        assert [path.name for path in there.iterdir()] == [".pull.lock"]
    save_file(held, shard)
    assert pull(there, "hf:o/m", served.address) == ("o--m", True)


def test_gguf_files_are_single_models(served: Hub, tmp_path: Path, there: Path) -> None:
    folder = served.folder = tmp_path / "gguf"
    for name in ("m.Q4_0.gguf", "m.Q8_0.gguf"):
        write_gguf(folder / name, Shape(), meta_weights(Shape()))
    message = complaint(there, "hf:o/m", served.address)
    assert "m.Q4_0.gguf, m.Q8_0.gguf" in message
    assert "m.Q9.gguf" not in complaint(there, "hf:o/m/m.Q9.gguf", served.address)
    with pytest.raises(LlamaError, match="vocabulary"):
        pull(there, "hf:o/m/m.Q8_0.gguf", served.address)
    for path in folder.iterdir():
        path.rename(path.with_name(f"{path.stem}-00001-of-00002.gguf"))
    assert "no safetensors, GGUF file" in complaint(there, "hf:o/m", served.address), "parts cannot be read"


def test_a_gguf_file_in_a_folder_is_none_to_choose_from(served: Hub, tmp_path: Path, there: Path) -> None:
    served.folder, served.others = tmp_path / "gguf", ["BF16/m.BF16.gguf"]
    write_gguf(served.folder / "m.gguf", Shape(), meta_weights(Shape()))
    assert "choose one" not in complaint(there, "hf:o/m", served.address)
    assert [path.rpartition("/")[2] for path, _ in served.asked[1:]] == ["m.gguf"]


def test_the_shipped_gguf_from_a_hub(served: Hub, tmp_path: Path, there: Path, gguf_path: Path) -> None:
    served.folder = tmp_path / "gguf"
    served.folder.mkdir()
    (served.folder / "smol.gguf").symlink_to(gguf_path)
    assert pull(there, "hf:o/m", served.address) == ("o--m--smol.gguf", True)
    assert (there / "o--m--smol.gguf").read_bytes() == gguf_path.read_bytes()
    assert pull(there, "hf:o/m/smol.gguf", served.address) == ("o--m--smol.gguf", False)


def test_metas_own_files(served: Hub, tmp_path: Path, there: Path, tiny_vocabulary: bytes) -> None:
    shape = Shape(vocabulary=320)
    served.folder = write_meta(tmp_path / "meta", shape, meta_weights(shape), 2)
    (served.folder / "tokenizer.model").write_bytes(tiny_vocabulary)
    assert pull(there, "hf:o/m", served.address) == ("o--m", True)
    load_transformer(open_checkpoint(there / "o--m"), torch.float32, "cpu")


@pytest.fixture
def tiny_vocabulary() -> bytes:
    import io

    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the llama walks", "the herd walks on"] * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


def test_who_may_not_have_it_is_told(served: Hub, there: Path) -> None:
    served.key = "secret"
    assert "PADDOCK_HUB_TOKEN" in complaint(there, "hf:o/m", served.address)
    assert "secret" not in complaint(there, "hf:o/m", served.address, token="wrong")
    assert pull(there, "hf:o/m", served.address, token="secret") == ("o--m", True)


def test_other_refusals(served: Hub, there: Path, repository: Path) -> None:
    assert "no o/other at revision main" in complaint(there, "hf:o/other", served.address)
    assert "at revision v2" in complaint(there, "hf:o/m@v2", served.address)
    served.status = 503
    assert "503" in complaint(there, "hf:o/m", served.address)
    served.status = 200
    for path in repository.glob("*.safetensors"):
        path.unlink()
    assert "pytorch_model.bin may run code" in complaint(there, "hf:o/m", served.address)
    served.commit = "../.."
    assert "does not answer as a hub does" in complaint(there, "hf:o/m", served.address)


def test_no_network_is_one_line(there: Path) -> None:
    message = complaint(there, "hf:o/m", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in message
    assert "PADDOCK_HUB" in message
    assert not there.exists()


def test_a_full_disk_is_told_beforehand(served: Hub, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 << 20}))
    assert "5 are free" in complaint(there, "hf:o/m", served.address)


@pytest.mark.parametrize(
    "name", ["hf:o", "hf:/m", "hf:o/m/n", "hf:../m", "hf:o/..", "hf:o/m@", "hf:o/m/../x.gguf", "o/m"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(AppError, match="is not hf:OWNER/NAME"):
        parse(name)


def test_names_that_are() -> None:
    wanted = parse("hf:o/m-1.0")
    assert (wanted.repository, wanted.file, wanted.revision) == ("o/m-1.0", None, "main")
    wanted = parse("hf:o/m/m.Q4_0.gguf@v1.0")
    assert (wanted.repository, wanted.file, wanted.revision) == ("o/m", "m.Q4_0.gguf", "v1.0")


def test_the_command(
    served: Hub, repository: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(home))
    monkeypatch.setenv("PADDOCK_HUB", served.address)
    assert main(["models", "pull", "hf:o/m"]) == 0
    assert_whole(home / "models", repository)
    assert main(["models", "info", "o--m"]) == 0
    assert "parameters" in capsys.readouterr().out
    monkeypatch.setenv("PADDOCK_HUB", "http://127.0.0.1:9")
    assert main(["models", "pull", "hf:o/m"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
