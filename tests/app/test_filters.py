"""Filters and odd questions from the command line's side: with the real embedder, to the answer or to one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from app.answer import MAX_QUESTION_CHARACTERS, Answer, Answerer, Question
from app.batch import Item, answer_rows, read_questions
from app.config import Settings, load_settings
from app.errors import AppError
from app.services import Services
from ingest.errors import IngestError
from ingest.filter import Filter
from llama.sampling import SamplingParams
from tests.app.fakes import Backend, chunk
from tests.app.test_cli import complaint, paddock
from tests.vectorstore.chroma_server import free_port, running_server
from vectorstore.errors import StoreError

SALT = "The salt blocks are changed on Mondays, and the old ones are given to the goats of the neighbour."
FILES = {
    "salt.md": SALT,
    "2025/salt.txt": SALT.replace("Mondays", "Fridays"),
    "盐.md": "每逢星期一更换盐砖，旧的盐砖送给邻居的山羊。",
}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Services:
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(models_dir.resolve(), target_is_directory=True)
    for name, text in FILES.items():
        path = home / "inbox" / "farm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    os.utime(home / "inbox" / "farm" / "2025" / "salt.txt", (1.74e9, 1.74e9))  # 2025-02-19
    made = Services(load_settings({"PADDOCK_HOME": str(home)}))
    assert made.ingestor.sync("farm").added == len(FILES)
    return made


def sources(services: Services, question: str, mode: Any = "hybrid", **values: Any) -> set[str]:
    retriever = services.retriever("farm", 8, mode, filter=Filter.of(values) if values else None)
    assert retriever is not None
    return {each.metadata["source"] for each in retriever.invoke(question)}


@pytest.mark.parametrize("mode", ["dense", "keyword", "hybrid"])
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"source": "2025/*"}, {"2025/salt.txt"}),
        ({"type": "md", "language": "en"}, {"salt.md"}),
        ({"before": "2025-02-21", "after": "2025-02-17"}, {"2025/salt.txt"}),
        ({"language": "zh"}, {"盐.md"}),
    ],
)
def test_only_what_matches_is_found(services: Services, mode: str, values: Any, wanted: set[str]) -> None:
    question = "When are the salt blocks changed? 更换盐砖"
    assert sources(services, question, mode) > wanted
    assert sources(services, question, mode, **values) == wanted


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"type": "pdf"},
            "no document of knowledge base 'farm' matches the filter (type pdf); `paddock kb status farm`",
        ),
        ({"language": "de"}, "(language de); their languages are: en, zh"),
        ({"source": "x' OR 'a'='a"}, "(source x' OR 'a'='a)"),
        ({"source": '{"$gt": ""}'}, "matches the filter"),
        ({"after": "2999-01-01"}, "(after 2999-01-01)"),
    ],
)
def test_a_filter_that_nothing_matches(services: Services, values: Any, says: str) -> None:
    with pytest.raises(AppError) as raised:
        services.retriever("farm", 4, filter=Filter.of(values))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_languages_that_are_not_known_yet(services: Services) -> None:
    manifest = services.ingestor.manifest
    manifest._do("UPDATE files SET languages = ''")
    with pytest.raises(AppError, match="run `paddock ingest` to find their languages"):
        services.retriever("farm", 4, filter=Filter(language=("zh",)))
    services.ingestor.sync("farm")
    assert sources(services, "盐砖", language="zh") == {"盐.md"}


ODD = {
    "only stop words": "the of and",
    "Chinese stop words": "的 了 吗",
    "only punctuation": "?!… ，。——",
    "one sign": "🦙",
    "mixed scripts": "salt 盐砖 соль ملح",
    "SQL": "'; DROP TABLE files; --",
    "a filter": '{"$or": [{"doc_id": {"$ne": ""}}]}',
    "a query language": 'terms:salt AND -doc_id:"*" ~2^9',
    "one long word": "salt" * (MAX_QUESTION_CHARACTERS // 4),
    "control characters": "salt\x00\x07\u202e\ufeff",
}


@pytest.mark.parametrize("mode", ["dense", "keyword", "hybrid"])
@pytest.mark.parametrize("question", ODD.values(), ids=ODD.keys())
def test_odd_questions_are_searched_for_like_others(services: Services, mode: str, question: str) -> None:
    assert sources(services, question, mode) <= set(FILES)
    assert sources(services, question, mode, language="zh") <= {"盐.md"}
    assert services.ingestor.manifest.amount("farm")[0] == len(FILES)


def test_a_lone_surrogate_is_no_question(services: Services) -> None:
    answerer = Answerer(services, 3072, SamplingParams())
    with pytest.raises(AppError, match="not Unicode text"):
        answerer.answer("salt \udcff", "farm", 4)


@pytest.mark.parametrize("kb", ["'; DROP TABLE files; --", "../../etc", "farm\x00", "f*", "", "x" * 5000, "羊"])
def test_odd_names_of_knowledge_bases(services: Services, kb: str) -> None:
    with pytest.raises(AppError) as raised:
        services.retriever(kb, 4)
    assert "there is no knowledge base" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 300


def test_an_embedder_that_is_missing(services: Services) -> None:
    gone = Services(services.settings.model_copy(update={"embedder": "gone"}))
    with pytest.raises(
        IngestError, match=r"there is no embedding model .*gone; run `paddock models pull` .*set `embedder`"
    ):
        gone.retriever("farm", 4)


def test_another_embedder_than_the_index_was_made_with(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Services(services.settings)
    monkeypatch.setattr(type(other.embedder), "identity", "other@1")
    with pytest.raises(StoreError, match=r"was indexed with all-MiniLM.* but the embedder is now other@1; run"):
        other.retriever("farm", 4)


class TestAnswerPath:
    def test_the_filter_reaches_the_retriever(self) -> None:
        backend, only = Backend([chunk(SALT)], says="On Mondays."), Filter(type=("md",))
        answerer = Answerer(backend, 3072, SamplingParams())
        answerer.answer("When?", "default", 4, filter=only)
        list(answerer.answer_batch([Question("When?", "default", 4, filter=only), Question("When?", "default", 4)]))
        assert backend.filters == [only, only, None]

    def test_lines_of_a_batch(self, tmp_path: Path) -> None:
        source = tmp_path / "q.jsonl"
        lines = [
            {"question": "a"},
            {"question": "b", "filter": {"type": ["md", "txt"], "after": "2026-01-01"}},
            {"question": "c", "filter": {}},
            {"question": "d", "filter": {"typ": "md"}},
            {"question": "e", "filter": "md"},
            {"question": "f", "filter": ["md"]},
            {"question": "g", "filter": {"language": "en' OR 1"}},
            {"question": "h", "source": "gold.md"},
        ]
        source.write_text("\n".join(map(json.dumps, lines)))
        items = read_questions(source)
        backend, common = Backend([chunk(SALT)], says="On Mondays."), Filter(language=("en",))
        rows = dict(answer_rows(items, Answerer(backend, 3072, SamplingParams()), "default", 4, common))
        assert backend.filters == [common, Filter.of(lines[1]["filter"]), Filter(), common]  # type: ignore[arg-type]
        errors = {rows[i]["question"]: rows[i]["error"] for i in rows if "error" in rows[i]}
        assert errors == {
            "d": "line 4: a filter has no 'typ'; it has: source, type, after, before, language",
            "e": 'line 5: \'filter\' is not an object such as {"type": "pdf"}',
            "f": 'line 6: \'filter\' is not an object such as {"type": "pdf"}',
            "g": 'line 7: "en\' OR 1" is no code of a language; write en for English, zh for Chinese',
        }

    def test_a_column_of_a_csv_file(self, tmp_path: Path) -> None:
        source = tmp_path / "q.csv"
        source.write_text('question,filter\na,"{""type"": ""pdf""}"\nb,\n')
        found = [(item.question, item.filter) for item in read_questions(source)]
        assert found == [("a", Filter(type=("pdf",))), ("b", None)]
        assert Item(1).filter is None


def test_from_the_command_line(services: Services, tmp_path: Path) -> None:
    home, words = services.settings.home, ("ask", "When are the salt blocks changed?", "--kb", "farm", "--json")
    done = paddock(home, *words, "--source", "2025/*", "--type", "txt", "--after", "2025-01-01", "--language", "en")
    answer = json.loads(done.stdout)
    assert len(answer["retrieved"]) == 1
    assert {each["source"] for each in answer["citations"]} <= {"2025/salt.txt"}
    assert "matches the filter (type pdf)" in complaint(paddock(home, *words, "--type", "pdf"))
    assert "is not a day" not in complaint(paddock(home, *words, "--before", "2025-01-01"))
    assert "and not a day; write it as" in complaint(paddock(home, *words, "--before", "soon"), 2)
    (tmp_path / "q.txt").write_text("Salt?\n")
    batch = ("batch", str(tmp_path / "q.txt"), "-o", str(tmp_path / "out.jsonl"), "--kb", "farm")
    assert "matches the filter" in complaint(paddock(home, *batch, "--language", "fr"))
    for question, says in (("", "the question is empty"), (" \n", "is empty"), ("x" * 50_000, "has 50,000 characters")):
        assert says in complaint(paddock(home, "ask", question, "--kb", "farm"))
    assert isinstance(Answer, type)


def test_on_a_chroma_server_end_to_end(home_with_models: Path, tmp_path: Path) -> None:
    inbox, port = home_with_models / "inbox", free_port()
    (inbox / "salt.md").write_text(SALT)
    address = {"PADDOCK_STORE": f"http://127.0.0.1:{port}"}
    absent = f"the Chroma server http://127.0.0.1:{port} cannot be used"
    assert absent in complaint(paddock(home_with_models, "ingest", **address))
    with running_server(tmp_path / "server", port):
        (home_with_models / "paddock.toml").write_text(f'store = "http://127.0.0.1:{port}"\n')
        assert "1 added" in paddock(home_with_models, "ingest").stdout
        question = ("ask", "When are the salt blocks changed?", "--json")
        assert len(json.loads(paddock(home_with_models, *question).stdout)["retrieved"]) == 1
        status = json.loads(paddock(home_with_models, "kb", "status", "--index", "--json").stdout)
        assert (status["chunks"], status["vectors"]) == (1, None)
        assert status["keyword"] > 0
        assert "answers; knowledge bases: 1" in paddock(home_with_models, "doctor").stdout
        (inbox / "hay.md").write_text("Llamas eat hay.")
        assert "1 added, 1 unchanged" in paddock(home_with_models, "ingest").stdout
        assert paddock(home_with_models, "kb", "delete", "default", "salt.md", "--yes").returncode == 0
        assert len(json.loads(paddock(home_with_models, *question, "--source", "hay.md").stdout)["retrieved"]) <= 1
        assert "matches the filter" in complaint(paddock(home_with_models, *question, "--source", "salt.md"))
        assert not (home_with_models / "index" / "chroma").exists()
    assert absent in complaint(paddock(home_with_models, *question))
    assert "fail  index" in " ".join(paddock(home_with_models, "doctor").stdout.split("\n")).replace("   ", " ")


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://h:1", "http://", "http://h:1/path", "http://u:p@h:1", "http://h:x"]
)
def test_addresses_that_are_none(settings: Settings, url: str) -> None:
    with pytest.raises(AppError, match=r"setting .store. in the environment is .*http:..host:8000"):
        load_settings({"PADDOCK_HOME": str(settings.home), "PADDOCK_STORE": url})


def test_costs_of_an_index(services: Services) -> None:
    home = services.settings.home
    found = json.loads(paddock(home, "kb", "status", "farm", "--index", "--json").stdout)
    assert set(found) == {"kb", "chunks", "vectors", "text", "keyword", "memory"}
    assert (found["kb"], found["chunks"]) == ("farm", 3)
    database = (home / "index" / "chroma" / "chroma.sqlite3").stat().st_size
    assert found["text"] >= database > 0
    graphs = [path for path in (home / "index" / "chroma").glob("*/*") if path.is_file()]
    assert found["vectors"] == sum(path.stat().st_size for path in graphs)
    text = paddock(home, "kb", "status", "farm").stdout
    assert "languages: en, zh\nindex: 3 chunks, vectors" in text
    assert f"keyword index {found['keyword'] / 1000:.1f} KB" in text, "small as it is, it is not nothing"
    assert "there is no knowledge base" in complaint(paddock(home, "kb", "status", "x", "--index"))
