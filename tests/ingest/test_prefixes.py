"""Any sentence-transformers folder embeds, with the prefixes that it asks for. The folders here are tiny and random."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from ingest.embed import Embedder
from ingest.errors import IngestError
from ingest.prefixes import Prefixes, prefixes_of

TEXTS = [
    "Llamas eat hay.",
    "羊驼吃干草。",
    "query: passage: Represent this sentence for searching relevant passages: x",
]
BGE_ZH = "为这个句子生成表示以用于检索相关文章："


def write_folder(folder: Path, kind: str = "bert", **pooling: Any) -> Path:
    """A random model of 16 wide as sentence-transformers saves it. kind: 'bert' (WordPiece) or 'xlm' (Unigram)."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sentence_transformer.modules import Transformer as Module
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(3)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer: Any = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if kind == "bert" else pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator([*TEXTS, BGE_ZH] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    of = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
          "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 66, "pad_token_id": 0,
          "initializer_range": 0.3}  # fmt: skip
    model = BertModel(BertConfig(**of)) if kind == "bert" else XLMRobertaModel(XLMRobertaConfig(**of))
    plain = folder.with_name(folder.name + "-plain")
    model.save_pretrained(plain)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(plain)  # fmt: skip
    module = Module(str(plain))
    SentenceTransformer(modules=[module, Pooling(16, "mean", **pooling)]).save_pretrained(str(folder))
    return folder


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(found | values), "utf-8")


def card(folder: Path, name: str) -> None:
    (folder / "README.md").write_text(f"---\ntags:\n- mteb\nmodel-index:\n- name: {name}\n  results: []\n---\n# E\n")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("embedders")
    return {
        "bert": write_folder(root / "bert"),
        "xlm": write_folder(root / "xlm", "xlm"),
        "left out": write_folder(root / "left-out", include_prompt=False),
    }


@pytest.fixture(params=["bert", "xlm", "left out"])
def folder(request: pytest.FixtureRequest, written: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(written[request.param], tmp_path / "own name")
    return tmp_path / "own name"


@pytest.fixture
def plain(written: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(written["bert"], tmp_path / "own name")
    return tmp_path / "own name"


def test_vectors_are_those_of_the_library_with_its_prompts(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    change(folder, "config_sentence_transformers.json", prompts={"query": "query: ", "document": "passage: "})
    library = SentenceTransformer(str(folder), device="cpu")
    embedder = Embedder(folder)
    found = np.array(embedder.embed_documents(TEXTS)), np.array([embedder.embed_query(text) for text in TEXTS])
    wanted = (
        library.encode_document(TEXTS, normalize_embeddings=True),
        library.encode_query(TEXTS, normalize_embeddings=True),
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3, "a question is not embedded as a passage"


def test_without_prompts_there_are_no_prefixes(folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    embedder = Embedder(folder)
    wanted = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(np.array(embedder.embed_documents(TEXTS)), wanted, atol=1e-5)
    assert embedder.embed_query(TEXTS[0]) == pytest.approx(wanted[0], abs=1e-5)
    assert embedder.prefixes == Prefixes()
    assert "+" not in embedder.identity


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("intfloat/multilingual-e5-small", "query: ", "passage: "),
        ("e5-base-v2", "query: ", "passage: "),
        ("/root/.cache/torch/sentence_transformers/BAAI_bge-small-en/", "Represent this sentence", ""),
        ("BAAI/bge-base-zh-v1.5", BGE_ZH, ""),
        ("intfloat/multilingual-e5-large-instruct", "Instruct: ", ""),
        ("BAAI/bge-m3", "", ""),
        ("nreimers/MiniLM-L6-H384-uncased", "", ""),
        ("someone/notes5-small", "", ""),
    ],
)
@pytest.mark.parametrize("where", ["config", "card"])
def test_families_are_known_by_what_the_folder_says(
    plain: Path, name: str, query: str, passage: str, where: str
) -> None:
    """An empty prompt, as the library writes it for models without one, says nothing."""
    change(plain, "config_sentence_transformers.json", prompts={"query": "", "document": ""})
    if where == "config":
        change(plain, "config.json", _name_or_path=name)
    else:
        card(plain, name)
    found = prefixes_of(plain, plain)
    assert (found.query[: len(query)], bool(found.query), found.passage) == (query, bool(query), passage)


def test_prompts_given_come_before_the_family(plain: Path) -> None:
    change(plain, "config.json", _name_or_path="intfloat/e5-small")
    change(plain, "config_sentence_transformers.json", prompts={"query": "Q ", "corpus": "C "})
    assert Embedder(plain).prefixes == Prefixes("Q ", "C ")
    assert Embedder(plain, query_prefix="", passage_prefix="own ").prefixes == Prefixes("", "own ")
    change(plain, "config_sentence_transformers.json", prompts={"sts": "S "}, default_prompt_name="sts")
    assert Embedder(plain).prefixes == Prefixes("S ", "S ")


def test_the_folder_s_own_name_plays_no_part(plain: Path) -> None:
    assert Embedder(plain.rename(plain.with_name("e5-small"))).prefixes == Prefixes()


@pytest.mark.parametrize("damage", ["[]", "{", '{"prompts": []}', '{"prompts": {"query": 3}}'])
def test_a_damaged_config_gives_none(plain: Path, damage: str) -> None:
    (plain / "config_sentence_transformers.json").write_text(damage)
    assert prefixes_of(plain, plain) == Prefixes()


def test_identity_has_the_prefixes(plain: Path) -> None:
    without = Embedder(plain).identity
    identities = {
        without,
        Embedder(plain, query_prefix="query: ").identity,
        Embedder(plain, passage_prefix="query: ").identity,
        Embedder(plain, query_prefix="query: ", passage_prefix="passage: ").identity,
    }
    assert len(identities) == 4
    assert all(each.startswith(without) for each in identities)


def test_passages_leave_room_for_their_prefix(plain: Path) -> None:
    with_ = Embedder(plain, passage_prefix="passage: passage: ")
    assert with_.max_tokens == Embedder(plain).max_tokens - with_.count_tokens("passage: passage: ") < 62


def test_an_older_layout_is_read(plain: Path) -> None:
    """The network in a folder of its own, as sentence-transformers wrote it at first."""
    wanted = Embedder(plain).embed_query(TEXTS[0])
    (plain / "0_Transformer").mkdir()
    for path in list(plain.glob("*.*")):
        if path.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            path.rename(plain / "0_Transformer" / path.name)
    modules = json.loads((plain / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (plain / "modules.json").write_text(json.dumps(modules))
    embedder = Embedder(plain)
    assert embedder.embed_query(TEXTS[0]) == pytest.approx(wanted, abs=1e-5)
    before = embedder.identity
    tokenizer = plain / "0_Transformer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert Embedder(plain).identity != before
    (plain / "modules.json").write_text("[]")
    with pytest.raises(IngestError, match="damaged"):
        Embedder(plain)


@pytest.mark.parametrize("kind", ["bert", "xlm"])
def test_coverage_is_told_of_either_vocabulary(written: dict[str, Path], kind: str) -> None:
    embedder = Embedder(written[kind])
    assert embedder.coverage("Llamas eat hay.") == 1.0
    assert embedder.coverage("Ὀδυσσεύς") < 0.5
