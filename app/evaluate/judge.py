"""A model says which of two answers is better; in both orders, as judges prefer a place (Zheng et al. 2023, 3.3)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from app.adapters import label
from app.errors import AppError
from app.evaluate.compare import read_pair

if TYPE_CHECKING:
    from llama.engine import Engine

Row = dict[str, Any]
Verdict = Literal["first", "second", "tie"]
TIMEOUT_S = 120.0
GIVE_UP_AFTER = 3  # faults in a row: the endpoint is gone, and waiting for the rest helps nobody

INSTRUCTION = (
    "You compare two answers to a question. The better one is right according to the reference, complete and brief. "
    "Reply with one word: A if answer A is better, B if answer B is better, TIE if they are equally good."
)
REPLY = re.compile(r"\b(A|B|TIE)\b", re.IGNORECASE)


class Judge(Protocol):
    """Chooses between two answers."""

    name: str

    def __call__(self, question: str, references: list[str], first: str, second: str) -> Verdict:
        """Raises JudgeFault when no verdict can be had."""


class JudgeFault(Exception):
    """One verdict could not be had."""


def _messages(question: str, references: list[str], first: str, second: str) -> list[dict[str, str]]:
    reference = " / ".join(references) or "(the question cannot be answered from the documents; a refusal is right)"
    asked = f"Question: {question}\nReference: {reference}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\nBetter:"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]


class LocalJudge:
    """The loaded LLaMA: the likelier of the replies A, B and TIE."""

    def __init__(self, engine: Engine, adapter: str | None = None) -> None:
        self.name = engine.name if adapter is None else f"{engine.name} with {label(adapter)}"
        self._engine, self._adapter = engine, adapter
        self._replies = {reply: engine.tokenizer.encode(reply)[0] for reply in ("A", "B", "TIE")}

    def __call__(self, question: str, references: list[str], first: str, second: str) -> Verdict:
        from llama.errors import LlamaError

        ids = self._engine.encode_chat(_messages(question, references, first, second))  # type: ignore[arg-type]
        try:
            logits = self._engine.next_logits(ids, self._adapter)
        except LlamaError as error:
            raise JudgeFault(str(error)) from error
        best = max(self._replies, key=lambda reply: float(logits[self._replies[reply]]))
        return _verdict(best)


class EndpointJudge:
    """Any server that speaks OpenAI's chat completions."""

    def __init__(self, url: str, model: str, api_key: str) -> None:
        import httpx

        self.name = f"{model} at {url}"
        path = url.rstrip("/")
        self._url = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
        self._model = model
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(timeout=TIMEOUT_S, headers=headers)

    def __call__(self, question: str, references: list[str], first: str, second: str) -> Verdict:
        import httpx

        body = {
            "model": self._model,
            "messages": _messages(question, references, first, second),
            "temperature": 0,
            "max_tokens": 8,
        }
        try:
            reply = self._client.post(self._url, json=body)
            reply.raise_for_status()
            text = reply.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise JudgeFault(f"{self._url}: {error or type(error).__name__}") from error
        found = REPLY.search(text) if isinstance(text, str) else None
        if found is None:
            raise JudgeFault(f"{self._url} replied {str(text)[:40]!r} instead of A, B or TIE")
        return _verdict(found[1].upper())


def _verdict(reply: str) -> Verdict:
    verdicts: dict[str, Verdict] = {"A": "first", "B": "second", "TIE": "tie"}
    return verdicts[reply]


def judge_runs(a: Path, b: Path, judge: Judge, advance: Callable[[int, str], None]) -> dict[str, Any]:
    """Verdicts on the answers that two runs share. Those that change with the order are dropped and counted.

    Raises AppError for runs without answers, and when the judge cannot be reached.
    """
    pair = read_pair(a, b)
    if pair.results[0]["kind"] != "answers":
        raise AppError("only runs of `paddock eval answers` can be judged")
    found = dict.fromkeys(("a", "b", "ties", "identical", "inconsistent", "failed"), 0)
    in_a_row = 0
    for id_ in pair.shared:
        advance(1, id_)
        row_a, row_b = pair.rows[0][id_], pair.rows[1][id_]
        if row_a["answer"].strip() == row_b["answer"].strip():
            found["ties"], found["identical"] = found["ties"] + 1, found["identical"] + 1
            continue
        try:
            winner = _both_orders(judge, row_a, row_b)
        except JudgeFault as error:
            found["failed"], in_a_row = found["failed"] + 1, in_a_row + 1
            if in_a_row == GIVE_UP_AFTER:
                raise AppError(f"the judge gives no verdict: {error}; check the address and try again") from error
            continue
        in_a_row = 0
        found[winner] += 1
    return {"by": judge.name, **found}


def _both_orders(judge: Judge, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    forth = judge(a["question"], a["answers"], a["answer"], b["answer"])
    back = judge(a["question"], a["answers"], b["answer"], a["answer"])
    seen = {("first", "second"): "a", ("second", "first"): "b", ("tie", "tie"): "ties"}
    return seen.get((forth, back), "inconsistent")
