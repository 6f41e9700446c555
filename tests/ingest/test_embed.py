"""The real embedder: vectors, token counts and identity."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ingest.embed import Embedder
from ingest.errors import IngestError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def real(embedder_folder: Path) -> Embedder:
    return Embedder(embedder_folder)


@pytest.fixture
def copy(embedder_folder: Path, tmp_path: Path) -> Path:
    """The model's folder, its files linked."""
    folder = tmp_path / "model"
    link = embedder_folder.resolve().stat().st_dev == tmp_path.stat().st_dev
    shutil.copytree(embedder_folder.resolve(), folder, copy_function=os.link if link else shutil.copy2)
    return folder


def test_vectors_are_those_of_the_library(real: Embedder, embedder_folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["Llamas eat hay.", "羊驼吃干草。", "a", "long " * 300, "Prices of 2024"]
    expected = SentenceTransformer(str(embedder_folder), device="cpu").encode(texts, normalize_embeddings=True)
    vectors = np.array(real.embed_documents(texts))
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(real.embed_query(texts[1]), expected[1], atol=1e-5)
    assert real.embed_documents([]) == []


def test_a_table_of_static_embeddings_is_an_embedder(embedder_folder: Path, tmp_path: Path) -> None:
    """Such a folder has no network, and no config.json of one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(embedder_folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    table = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 16)).astype(np.float32)
    expected = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table), Normalize()])
    expected.save(str(tmp_path / "static"))
    made = Embedder(tmp_path / "static")
    texts = ["Llamas eat hay.", "Prices of 2024"]
    np.testing.assert_allclose(made.embed_documents(texts), expected.encode(texts), atol=1e-5)
    assert made.coverage("羊驼吃 hay") < 1
    assert made.identity.startswith("static@")


def rewrite(folder: Path, name: str, **changes: object) -> None:
    """Changes keys of a JSON file; the file may be a link to the original, so it is replaced."""
    settings = json.loads((folder / name).read_text())
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(settings | changes))


def test_a_start_does_not_wait_for_the_library(embedder_folder: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ingest.embed import Embedder\n"
        f"Embedder(Path({str(embedder_folder)!r})).embed_query('x')\n"
        "print([m for m in ('transformers', 'sentence_transformers', 'torch._dynamo') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("name", "changes", "own"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, True),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, False),
        ("sentence_bert_config.json", {"max_seq_length": 32}, True),
        ("config.json", {"hidden_act": "relu"}, False),
        ("1_Pooling/config.json", {"include_prompt": False}, False),
    ],
)
def test_other_folders_give_the_library_s_vectors_too(copy: Path, name: str, changes: dict, own: bool) -> None:
    """What the own encoder computes is the library's; what it does not compute is left to the library."""
    from sentence_transformers import SentenceTransformer

    from ingest.bert import BertEncoder

    rewrite(copy, name, **changes)
    texts = ["Llamas eat hay.", "long " * 300, "Prices of 2024"]
    expected = SentenceTransformer(str(copy), device="cpu").encode(texts, normalize_embeddings=True)
    embedder = Embedder(copy)
    np.testing.assert_allclose(np.array(embedder.embed_documents(texts)), expected, atol=1e-5)
    assert isinstance(embedder._model, BertEncoder) == own


def test_near_meaning_is_near(real: Embedder) -> None:
    query = np.array(real.embed_query("What do llamas eat?"))
    near, far = np.array(real.embed_documents(["The animals are fed hay and grass.", "The office closes at five."]))
    assert query @ near > query @ far + 0.2


def test_tokens_are_those_of_the_model(real: Embedder, embedder_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(embedder_folder))
    texts = ["Llamas eat hay.", "羊驼吃干草。", "", "word " * 5000, "naïve façade 😀 don't"]
    expected = [len(tokenizer.encode(text, add_special_tokens=False, truncation=False)) for text in texts]
    assert real.count_tokens_batch(texts) == expected
    assert [real.count_tokens(text) for text in texts] == expected
    assert expected[3] == 5000, "neither cut to 128 nor padded"


def test_max_tokens_leaves_room_for_the_special_ones(real: Embedder) -> None:
    assert real.max_tokens == 254


def test_counting_and_identity_need_no_torch(embedder_folder: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ingest.embed import Embedder\n"
        f"e = Embedder(Path({str(embedder_folder)!r}))\ne.count_tokens('x'); e.max_tokens; e.identity\n"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_loading_prints_nothing(embedder_folder: Path) -> None:
    code = "from pathlib import Path\nfrom ingest.embed import Embedder\n"
    code += f"Embedder(Path({str(embedder_folder)!r})).embed_query('x')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_threads_share_one_model(embedder_folder: Path) -> None:
    embedder = Embedder(embedder_folder)
    results: dict[int, list[float]] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: embedder.embed_query(f"text {i % 2}")}))  # type: ignore[misc]
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(6):
        np.testing.assert_allclose(results[i], results[i % 2], atol=1e-6)


class TestIdentity:
    def test_follows_the_content_not_the_place(self, copy: Path, real: Embedder) -> None:
        name, digest = real.identity.split("@")
        assert name == "all-MiniLM-L6-v2"
        assert len(digest) == 12
        assert Embedder(copy).identity == f"model@{digest}"

    @pytest.mark.parametrize("name", ["tokenizer.json", "1_Pooling/config.json", "sentence_bert_config.json"])
    def test_changes_with_what_the_vectors_depend_on(self, copy: Path, name: str) -> None:
        before = Embedder(copy).identity
        data = (copy / name).read_bytes()
        (copy / name).unlink()
        (copy / name).write_bytes(data + b"\n")
        assert Embedder(copy).identity != before

    def test_does_not_change_with_the_read_me(self, copy: Path) -> None:
        before = Embedder(copy).identity
        (copy / "README.md").unlink(missing_ok=True)
        (copy / "README.md").write_text("new")
        assert Embedder(copy).identity == before

    def test_is_not_hashed_twice(self, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = tmp_path / "cache" / "embedder.json"
        before = Embedder(copy, cache).identity
        with monkeypatch.context() as patch:
            patch.setattr("hashlib.file_digest", lambda *args: pytest.fail("hashed again"))
            assert Embedder(copy, cache).identity == before
        weights = copy / "model.safetensors"
        data = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert Embedder(copy, cache).identity != before, "other weights of the same size"

    @pytest.mark.parametrize("content", ["", "not json", "[]", '{"a": 1}'])
    def test_broken_cache_is_no_matter(self, copy: Path, tmp_path: Path, content: str) -> None:
        cache = tmp_path / "embedder.json"
        cache.write_text(content)
        assert Embedder(copy, cache).identity == Embedder(copy).identity


class TestMissing:
    def refused(self, folder: Path) -> str:
        with pytest.raises(IngestError) as error:
            Embedder(folder).embed_query("x")
        assert "\n" not in str(error.value)
        assert "run `paddock models pull`" in str(error.value)
        return str(error.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        assert str(tmp_path / "nowhere") in self.refused(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["modules.json", "tokenizer.json", "config.json", "model.safetensors"])
    def test_missing_and_empty_files(self, copy: Path, name: str) -> None:
        (copy / name).unlink()
        self.refused(copy)
        (copy / name).touch()
        self.refused(copy)

    def test_damaged_weights(self, copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        (copy / "model.safetensors").write_bytes(b"rubbish" * 1000)
        self.refused(copy)

    def test_damaged_tokenizer(self, copy: Path) -> None:
        (copy / "tokenizer.json").unlink()
        (copy / "tokenizer.json").write_text("{}")
        with pytest.raises(IngestError, match="models pull"):
            Embedder(copy).count_tokens("x")
