"""What the application builds of its settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config import Settings
from app.services import Services
from llama import packed_file
from vectorstore import fusion
from vectorstore.errors import StoreError


def test_packed_weights_are_kept_between_starts(
    tmp_path: Path, gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, model=str(gguf_path), device="cpu")
    first = Services(settings).engine
    assert [each.suffix for each in (tmp_path / "cache" / "quantized").iterdir()] == [".safetensors"]

    def packed_again(*_: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(packed_file, "pack_checkpoint", packed_again)
    again = Services(settings).engine
    prompt = first.tokenizer.encode("The refuge stands at")
    assert again.next_logits(prompt).equal(first.next_logits(prompt))


def test_sections_come_from_the_store(tmp_path: Path, embedder_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a.md").write_text(
        "# Huts\n\n" + " ".join(f"Hut {n} has {n} beds." for n in range(90)) + "\n\n# Food\n\nHay."
    )
    services = Services(Settings(home=tmp_path, embedder=str(embedder_path), chunk_tokens=64, chunk_overlap=8))
    services.ingestor.sync("default")
    retriever = services.retriever("default", 1)
    assert retriever is not None
    [found] = retriever.invoke("How many beds has Hut 40?")
    section = services.section("default", found)
    places = [each.metadata["ordinal"] for each in section]
    assert found.metadata["ordinal"] in places
    assert places == list(range(places[0], places[0] + len(places)))
    assert 3 < len(places) <= 17
    assert {each.metadata["headings"] for each in section} == {"Huts"}


def test_sides_are_weighed_as_learned_with_the_embedder(
    tmp_path: Path, embedder_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a.md").write_text("Llamas eat hay.")
    services = Services(Settings(home=tmp_path, embedder=str(embedder_path)))
    services.ingestor.sync("default")
    own = fusion.Fusion((0.1, 0.2, 0.3, 0.4))
    monkeypatch.setattr(fusion, "learned", {services.embedder.identity: own}.__getitem__)
    assert services.retriever("default", 4).fusion == own  # type: ignore[union-attr]


def test_settings_reach_the_retriever_and_the_prompt(tmp_path: Path, embedder_path: Path, gguf_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "a.md").write_text("Llamas eat hay.")
    made = {"home": tmp_path, "embedder": str(embedder_path), "model": str(gguf_path)}
    plain = Services(Settings(**made))
    plain.ingestor.sync("default")
    assert plain.retriever("default", 4).reranker is None  # type: ignore[union-attr]
    other = Services(
        Settings(**made, rerank="likelihood", rerank_candidates=5, diversity=0.3, query_prefix="Q: ", order="best_last")
    )
    assert other.embedder.prefixes.query == "Q: "
    with pytest.raises(StoreError, match="--rebuild"):
        other.retriever("default", 4)
    other.ingestor.sync("default", rebuild=True)
    retriever = other.retriever("default", 4)
    assert (retriever.reranker.candidates, retriever.diversity) == (5, 0.3)  # type: ignore[union-attr]
    with pytest.raises(StoreError, match="nowhere"):
        Services(Settings(**made, query_prefix="Q: ", rerank="nowhere")).retriever("default", 4)
