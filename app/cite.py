"""Which retrieved chunk supports which sentence of an answer, and the words in it that do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from langchain_core.documents import Document

# A sentence ends at Chinese end marks, and at Latin ones before white space.
END = re.compile(r"[。！？；]+|[.!?]+[\"'”’)\]]*(?=\s)")
NUMBERED = re.compile(r"\s*\d+\.")  # the number of a list item ends nothing
# A line that stands by itself: a heading, a table row, a list item. Other line breaks (a PDF has them in mid-sentence)
# end nothing unless an empty line follows.
OWN_LINE = re.compile(r"\s*(?:#{1,6} |\||[-*+•] |\d+[.)、] |$)")
WORD = re.compile(r"\d+(?:[.,:/-]\d+)*|[^\W\d_\u3400-\u9fff]+(?:['’][^\W\d_]+)?|[\u3400-\u9fff]+")
MARKER = re.compile(r"\s*\[\d{1,3}\]")
COMMON = frozenset(
    """a an the and or but if of in on at to for from by with as is are was were be been being am do does did has have
    had it its this that these those there here he she they them his her their we our you your i me my not no so than
    then can could will would shall should may might must also which who whom what when where how why all any each per
    according passage passages question answer document documents""".split()  # noqa: SIM905  read as prose
)
WRAPPED = 4  # lines that one sentence may well take in a PDF
ENOUGH = 0.5  # share of a sentence's words that a quote must hold to count as its support


@dataclass(frozen=True)
class Citation:
    """A quote and the chunk it stands in, verbatim. Another quote of the same chunk is another citation."""

    n: int
    source: str
    page: int | None
    chunk_id: str
    text: str
    score: float
    quote: str


@dataclass(frozen=True)
class Cited:
    """Citations in order of appearance, and for rendering the answer its pieces with the citations of each."""

    citations: list[Citation]
    pieces: list[tuple[str, tuple[int, ...]]]


def spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of every sentence, list item, heading and table row, without the space around it."""
    cuts = [0]
    start = 0
    alone = True
    for line in text.splitlines(keepends=True):
        here = bool(OWN_LINE.match(line.rstrip("\r\n")))
        # A table row and a heading end with their line; a list item may run on into lines of its own.
        if here or alone:
            cuts.append(start)
        alone = not line.strip() or (here and line.lstrip().startswith(("#", "|")))
        start += len(line)
    for hit in END.finditer(text):
        line_so_far = text[text.rfind("\n", 0, hit.start()) + 1 : hit.end()]
        if not NUMBERED.fullmatch(line_so_far):
            cuts.append(hit.end())
    cuts = sorted({*cuts, len(text)})
    found = []
    for begin, end in itertools.pairwise(cuts):
        piece = text[begin:end]
        if piece.strip():
            found.append((begin + len(piece) - len(piece.lstrip()), begin + len(piece.rstrip())))
    return found


def words(text: str) -> set[str]:
    """What carries meaning: numbers, words without the common ones and without a plural s, Chinese bigrams."""
    out: set[str] = set()
    for token in WORD.findall(text.lower()):
        if "\u3400" <= token[0] <= "\u9fff":
            out.update(token[i : i + 2] for i in range(max(len(token) - 1, 1)))
        elif token not in COMMON:
            out.add(token.removesuffix("s") if len(token) > 3 else token)
    return out


def without_markers(text: str) -> str:
    """Drops citation numbers that the model wrote: only those found here are shown, so none can be invented."""
    return MARKER.sub("", text).strip()


def _support(sentence: str, chunks: Sequence[Document]) -> tuple[int, str] | None:
    """Index of the chunk and the quote in it that hold most of the sentence's words; None when less than ENOUGH.

    A quote is one sentence, or two in a row where the second adds to the first. Ties go to the more similar chunk.
    """
    wanted = words(sentence)
    if not wanted:
        return None
    best: tuple[float, int, str] | None = None
    for index, chunk in enumerate(chunks):
        text = chunk.page_content
        pieces = spans(text)
        held = [wanted & words(text[start:end]) for start, end in pieces]
        options = [(len(h) / len(wanted), pieces[i]) for i, h in enumerate(held)]
        options += [
            # A little less than its share, so that one sentence is preferred to two that say no more.
            (len(held[i] | held[i + 1]) / len(wanted) - 0.05, (pieces[i][0], pieces[i + 1][1]))
            for i in range(len(pieces) - 1)
        ]
        for share, (start, end) in options:
            if share >= ENOUGH and (best is None or share > best[0]):
                best = (share, index, text[start:end])
    return None if best is None else (best[1], _without_idle_lines(best[2], wanted))


def _without_idle_lines(quote: str, wanted: set[str]) -> str:
    """Takes lines off both ends that add no wanted word, if the quote is longer than a wrapped sentence is.

    The rows of a PDF's table have no full stop: they all run into the sentence behind the table.
    """
    lines = quote.splitlines(keepends=True)
    if len(lines) <= WRAPPED:
        return quote
    held = wanted & words(quote)
    while len(lines) > 1 and wanted & words("".join(lines[1:])) == held:
        lines.pop(0)
    while len(lines) > 1 and wanted & words("".join(lines[:-1])) == held:
        lines.pop()
    return "".join(lines).strip()


def cite(answer: str, chunks: Sequence[Document]) -> Cited:
    """Finds the support of every sentence of `answer` among the chunks that the model read."""
    citations: list[Citation] = []
    pieces: list[tuple[str, tuple[int, ...]]] = []
    at = 0
    for start, end in spans(answer):
        found = _support(answer[start:end], chunks)
        numbers: tuple[int, ...] = ()
        if found is not None:
            index, quote = found
            chunk = chunks[index]
            same = (chunk.metadata["chunk_id"], quote)
            known = next((c for c in citations if (c.chunk_id, c.quote) == same), None)
            if known is None:
                known = _citation(len(citations) + 1, chunk, quote)
                citations.append(known)
            numbers = (known.n,)
        pieces.append((answer[at:end], numbers))
        at = end
    if at < len(answer):
        pieces.append((answer[at:], ()))
    return Cited(citations, pieces)


def _citation(n: int, chunk: Document, quote: str) -> Citation:
    data = chunk.metadata
    return Citation(
        n=n,
        source=data["source"],
        page=data.get("page"),
        chunk_id=data["chunk_id"],
        text=chunk.page_content,
        score=round(float(data["score"]), 4),
        quote=quote,
    )
