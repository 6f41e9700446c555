"""Reordering with a scorer that is given; a cross-encoder's scores are the library's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from vectorstore.cross_encoder import CrossEncoderScorer
from vectorstore.errors import StoreError
from vectorstore.rerank import DATA, Reranker, learned, priors


def passages(relevances: Sequence[float], key: str = "relevance") -> list[Document]:
    return [
        Document(id=str(i), page_content=f"text {i}", metadata={"score": 0.5, "chunk_id": str(i), key: relevance})
        for i, relevance in enumerate(relevances)
    ]


def by(scores: Sequence[float]) -> Any:
    return lambda question, head: [scores[int(each.id)] for each in head]


def names(found: Sequence[Document]) -> list[str]:
    return [str(each.id) for each in found]


def test_relevance_and_score_are_weighed_together() -> None:
    given = passages([1.0, 0.9, 0.5, 0.4])
    found = Reranker(scorer=by([0, 2, 3, 0]), relevance=10, weight=1).compress_documents(given, "q")
    assert names(found) == ["1", "0", "2", "3"], "10, 11, 8, 4"
    assert [each.metadata["rerank_score"] for each in found] == [2, 0, 3, 0]
    assert names(Reranker(scorer=by([0, 2, 3, 0]), relevance=10, weight=0).compress_documents(given, "q")) == [*"0123"]
    assert names(Reranker(scorer=by([0, 2, 3, 0]), relevance=0, weight=1).compress_documents(given, "q")) == [*"2103"]
    assert "rerank_score" not in given[0].metadata, "what came is left as it is"


def test_only_the_first_are_read() -> None:
    read: list[int] = []

    def scorer(question: str, head: Sequence[Document]) -> list[float]:
        read.append(len(head))
        return list(range(len(head)))

    found = Reranker(scorer=scorer, candidates=3, relevance=0, weight=1).compress_documents(passages([1] * 6), "q")
    assert (names(found), read) == ([*"210345"], [3])
    alone = passages([1.0])
    assert Reranker(scorer=scorer, weight=1).compress_documents(alone, "q") == alone
    assert Reranker(scorer=scorer, weight=1).compress_documents([], "q") == []
    assert read == [3], "where nothing can change, nothing is scored"


def test_a_scorer_that_cannot_judge_changes_nothing() -> None:
    given = passages([1.0, 0.9, 0.5])
    assert Reranker(scorer=lambda question, head: None, weight=1).compress_documents(given, "q") == given


def test_without_relevance_the_score_s_share_stands_in() -> None:
    assert priors(passages([0.8, 0.4], "score")) == [1.0, 0.5]
    assert priors(passages([0.0, -0.4], "score")) == [0.0, 0.0]
    assert priors(passages([0.3, 0.2])) == [0.3, 0.2]


def test_the_learned_weights_are_there() -> None:
    assert set(json.loads(DATA.read_text())["parameters"]) == set(learned()) == {"relevance", "likelihood"}
    assert all(weight > 0 for weight in learned().values())


TEXTS = ["Llamas eat hay and grass.", "羊驼吃干草。", "The office closes at five.", "long " * 300]


def write_cross_encoder(folder: Path, labels: int) -> Path:
    """A random sequence classifier of 16 wide, as transformers saves it."""
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(labels)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer: Any = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=labels,
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=64, initializer_range=0.7,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("saved_by", ["transformers", "sentence-transformers"])
def test_scores_are_the_library_s(tmp_path: Path, labels: int, saved_by: str) -> None:
    from sentence_transformers import CrossEncoder

    folder = write_cross_encoder(tmp_path / "plain", labels)
    if saved_by == "sentence-transformers":
        CrossEncoder(str(folder)).save_pretrained(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    given = [Document(text, metadata={"headings": "Farm > Food"}) for text in TEXTS]
    pairs = [("What do llamas eat?", f"Farm > Food\n{text.strip()}") for text in TEXTS]
    raw = CrossEncoder(str(folder)).predict(pairs, activation_fn=torch.nn.Identity())
    wanted = raw if labels == 1 else raw[:, 1] - raw[:, 0]
    found = CrossEncoderScorer(folder)("What do llamas eat?", given)
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)
    assert max(found) - min(found) > 0.01


def test_a_folder_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_cross_encoder(tmp_path / "three", 3)
    with pytest.raises(StoreError, match="3 labels"):
        CrossEncoderScorer(folder)("q", [Document("a")])
    (folder / "model.safetensors").write_bytes(b"rubbish" * 99)
    with pytest.raises(StoreError, match="cannot be used") as error:
        CrossEncoderScorer(folder)("q", [Document("a")])
    assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match="config"):
        CrossEncoderScorer(tmp_path / "nowhere")
