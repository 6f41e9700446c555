"""Languages of documents: English and Chinese without fail, others as well as can be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ingest.language import UNKNOWN, languages_of
from ingest.loaders import load

ROOT = Path(__file__).resolve().parents[2]
QA = ROOT.parent / "shared" / "data" / "qa"
EN = "The llamas are led back to the paddock in the evening, and the gate is closed behind them."
ZH = "晚上把羊驼带回围场，然后关上大门，并检查水槽里是否还有水。"


@pytest.mark.parametrize(
    ("texts", "languages"),
    [
        ([EN], ("en",)),
        ([ZH], ("zh",)),
        (["羊駝在圍場裡吃乾草，獸醫每週一來看牠們。"], ("zh",)),
        (["リャマは夕方に牧場へ連れ戻され、門が閉められます。"], ("ja",)),
        (["라마는 저녁에 방목장으로 돌아가고 문은 닫힙니다."], ("ko",)),
        (["Die Lamas werden am Abend auf die Koppel geführt und das Tor wird geschlossen."], ("de",)),
        (["Вечером лам отводят обратно в загон и закрывают ворота."], ("ru",)),
        ([EN, EN, ZH, ZH], ("en", "zh")),
        ([f"{EN}\n{ZH}"], ("en", "zh")),
        ([ZH] * 9 + [EN], ("zh",)),  # an English page in a Chinese book
        ([EN] * 20 + ["大门"], ("en",)),
        (["请用 RS-232C 接口连接 Paddock Router，再打开大门，确认指示灯亮起。"], ("zh",)),
        (["12 | 3.5 | 2026-01-01", "§ 7"], (UNKNOWN,)),
        ([], (UNKNOWN,)),
    ],
)
def test_languages(texts: list[str], languages: tuple[str, ...]) -> None:
    assert set(languages_of(texts)) == set(languages)


def test_sample_documents() -> None:
    for path in sorted((ROOT / "data" / "inbox").iterdir()):
        chinese = "zh" in path.stem or not path.stem.isascii()
        found = languages_of(document.page_content for document in load(path))
        assert found == (("zh",) if chinese else ("en",)), path.name


@pytest.mark.parametrize(
    ("name", "language"), [("xquad-en-a", "en"), ("xquad-zh-a", "zh"), ("drcd-dev", "zh"), ("policyqa-dev", "en")]
)
def test_articles_of_public_sets(name: str, language: str) -> None:
    path = QA / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not at hand")
    articles = json.loads(path.read_text("utf-8"))["data"]
    for article in articles[:60]:
        assert languages_of([each["context"] for each in article["paragraphs"]]) == (language,)
