"""Which retrieved chunk supports which sentence of an answer, and the words in it that do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_core.documents import Document

from app.echo import echoes

# A sentence ends at Chinese end marks, and at Latin ones before white space; at the full stop of a title it does not.
TITLE = "".join(rf"(?<!\b{title})" for title in ("Dr", "Mr", "Mrs", "Ms", "Prof", "St", "vs"))
END = re.compile(rf"[。！？；]+|{TITLE}[.!?]+[\"'”’)\]]*(?=\s)")
NUMBERED = re.compile(r"\s*\d+\.")  # the number of a list item ends nothing
NUMBERS = re.compile(r"(?:\d{1,3}[.)、]\s*)+")
ITEM = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)、])\s+")  # what a list item begins with
# A line that stands by itself: a heading, a table row, a list item. Other line breaks (a PDF has them in mid-sentence)
# end nothing unless an empty line follows.
OWN_LINE = re.compile(r"\s*(?:#{1,6} |\||[-*+•] |\d+[.)、] |$)")
WORD = re.compile(r"\d+(?:[.,:/-]\d+)*|[^\W\d_\u3400-\u9fff]+(?:['’][^\W\d_]+)?|[\u3400-\u9fff]+")
# [1], [1, 2], [1-3], also in Chinese brackets. A longer number is none of ours.
MARKER = re.compile(r"\s*[\[［【]\s*\d{1,3}(?:\s*[-–,，、;；]\s*\d{1,3})*\s*[\]］】]")
OPEN_MARKER = re.compile(r"\s*(?:\s|[\[［【][\s\d,，、;；–-]*)$")
LONGEST_MARKER = 40
COMMON = frozenset(
    """a an the and or but if of in on at to for from by with as is are was were be been being am do does did has have
    had it its this that these those there here he she they them his her their we our you your i me my not no so than
    then can could will would shall should may might must also which who whom what when where how why all any each per
    according passage passages question answer document documents""".split()  # noqa: SIM905  read as prose
)
HEADING = re.compile(r"#{1,6} ")
WRAPPED = 4  # lines that one sentence may well take in a PDF
EDGES = " \t\r\n.,;:!?。，；：！？\"'“”‘’"
ENOUGH = 0.5  # share of a sentence's words that a quote must hold to count as its support

Support = Literal["exact", "words", "likelihood"]
# A sentence and the chunks that were read -> the one without which it would be least likely, if any makes a difference.
Likely = Callable[[str, Sequence[Document]], int | None]


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
class Sentence:
    """A sentence of an answer (a list item, a row) and what it rests on.

    `support` says how that was found: 'exact' (it stands so in the passage), 'words' (most of its words do),
    'likelihood' (the passage makes the model say it), or None: nothing supports it, and there are no citations.
    """

    text: str
    citations: tuple[int, ...]
    support: Support | None


@dataclass(frozen=True)
class Cited:
    """Citations in order of appearance, the answer's sentences, and its pieces with the citations of each, for
    rendering: joined, they are the answer.
    """

    citations: list[Citation]
    pieces: list[tuple[str, tuple[int, ...]]]
    sentences: list[Sentence]


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
    return _unmarked(text).strip()


def _unmarked(text: str) -> str:
    while (less := MARKER.sub("", text)) != text:  # what is left of [[1]2] is one again
        text = less
    return text


def unmarked(pieces: Iterable[str]) -> Iterator[str]:
    """A text that comes in pieces without the citation numbers in it and the space before it; what may become a number
    is held back.
    """
    held, begun = "", False
    for piece in pieces:
        held = _unmarked(held + piece)
        held = held if begun else held.lstrip()
        found = OPEN_MARKER.search(held)
        at = len(held) if found is None or len(held) - found.start() > LONGEST_MARKER else found.start()
        if at:
            begun = True
            yield held[:at]
        held = held[at:]
    if held:
        yield held


def _exact(sentence: str, chunks: Sequence[Document]) -> tuple[int, str] | None:
    """Index of the first chunk that holds the sentence to the letter, and its own sentences around it.

    Case, white space and the mark at the end make no difference.
    """
    parts = sentence.strip(EDGES).split()
    if len(words(sentence)) < 2:
        return None  # a single word stands in many places, and the best of them is for the words to find
    edge = [r"(?<![^\W_\u3400-\u9fff])", r"(?![^\W_\u3400-\u9fff])"]
    wanted = re.compile(edge[0] + r"\s+".join(map(re.escape, parts)) + edge[1], re.IGNORECASE)
    for index, chunk in enumerate(chunks):
        text = chunk.page_content
        for hit in wanted.finditer(text):
            around = [(a, b) for a, b in _telling(text) if a < hit.end() and b > hit.start()]
            if around:
                return index, _without_idle_lines(text[around[0][0] : around[-1][1]], words(sentence))
    return None


def _by_words(sentence: str, chunks: Sequence[Document]) -> tuple[int, str] | None:
    """Index of the chunk and the quote in it that hold most of the sentence's words; None when less than ENOUGH.

    A quote is one sentence, or two in a row where the second adds to the first, but never two rows of a table, which
    are about two things; nor is it a heading. Ties go to the more similar chunk. What lacks a number of the sentence,
    be it in the heading above it or the file's name, supports nothing of it.
    """
    wanted = words(sentence)
    if not wanted:
        return None
    best: tuple[float, int, str] | None = None
    for index, chunk in enumerate(chunks):
        text = chunk.page_content
        pieces = _telling(text)
        held = [wanted & words(text[start:end]) for start, end in pieces]
        options = [(len(h) / len(wanted), pieces[i]) for i, h in enumerate(held)]
        options += [
            # A little less than its share, so that one sentence is preferred to two that say no more.
            (len(held[i] | held[i + 1]) / len(wanted) - 0.05, (pieces[i][0], pieces[i + 1][1]))
            for i in range(len(pieces) - 1)
            if "|" not in (text[pieces[i][0]], text[pieces[i + 1][0]])
        ]
        for share, (start, end) in options:
            better = share >= ENOUGH and (best is None or share > best[0])
            if better and _has_numbers(text[start:end], chunk, wanted):
                best = (share, index, text[start:end])
    return None if best is None else (best[1], _without_idle_lines(best[2], wanted))


def _telling(text: str) -> list[tuple[int, int]]:
    """(start, end) of what can support something: all but the headings."""
    return [(start, end) for start, end in spans(text) if not HEADING.match(text, start)]


def _has_numbers(quote: str, chunk: Document, wanted: set[str]) -> bool:
    """Whether the numbers among these words stand in a quote, the headings above it or its file's name."""
    known = words(f"{quote}\n{chunk.metadata.get('headings', '')}\n{chunk.metadata['source']}")
    return {word for word in wanted if word[0].isdigit()} <= known


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


def cite(answer: str, chunks: Sequence[Document], likely: Likely | None = None, question: str = "") -> Cited:
    """Finds the support of every sentence of `answer` among the chunks that the model read.

    First to the letter, then by its words, and what neither finds by `likely`, if given. What only repeats the question
    says nothing that could be supported.
    """
    citations: list[Citation] = []
    pieces: list[tuple[str, tuple[int, ...]]] = []
    sentences: list[Sentence] = []
    at = 0
    parts = spans(answer)
    for start, end in parts:
        # The number of a list item that was left empty says nothing; alone, it may be the answer.
        bare = len(parts) > 1 and NUMBERS.fullmatch(answer[start:end])
        said = ITEM.sub("", answer[start:end]) if len(parts) > 1 else answer[start:end]
        support, found = (None, None) if bare or echoes(said, question) else _support(said, chunks, likely)
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
        sentences.append(Sentence(answer[start:end], numbers, support))
        pieces.append((answer[at:end], numbers))
        at = end
    if at < len(answer):
        pieces.append((answer[at:], ()))
    return Cited(citations, pieces, sentences)


def _support(
    sentence: str, chunks: Sequence[Document], likely: Likely | None
) -> tuple[Support | None, tuple[int, str] | None]:
    """How a sentence is supported, by which chunk and by which quote in it."""
    if (found := _exact(sentence, chunks)) is not None:
        return "exact", found
    if (found := _by_words(sentence, chunks)) is not None:
        return "words", found
    wanted = words(sentence)
    # Where no chunk has the sentence's numbers, the model need not be asked.
    if likely is not None and wanted and any(_has_numbers(each.page_content, each, wanted) for each in chunks):
        index = likely(sentence, chunks)
        quote = None if index is None else _nearest(wanted, chunks[index].page_content)
        if index is not None and quote is not None and _has_numbers(quote, chunks[index], wanted):
            return "likelihood", (index, quote)
    return None, None


def _nearest(wanted: set[str], text: str) -> str | None:
    """The sentence of a text that shares the most of these words; None where it has no sentence."""
    pieces = [text[start:end] for start, end in _telling(text)]
    return max(pieces, key=lambda piece: len(wanted & words(piece)), default=None)


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
