"""Text to chunks: by headings, then by paragraphs, sentences, lines and words, never above a number of tokens.

A document is cut into atoms (sentences, lines, table rows) that are packed greedily; a chunk is closed at the strongest
boundary in its second half. Every atom is counted once, so the work grows linearly with the text. LangChain's splitters
are not used: they drop white space and headings, count again at each level, and know no repeated table header.

Rules: a chunk never holds text of two sections, but a heading without text of its own goes with the section under it;
a chunk never crosses a page; the text of a chunk is the document's, unaltered, except that a table cut in two has its
header rows repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from langchain_core.documents import Document

VERSION = 1  # a higher number makes every document be split and embedded again

# How well a text may be cut behind an atom.
WORD, LINE, SENTENCE, PARAGRAPH = range(4)

HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)$")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
TABLE_ROW = re.compile(r"[ \t]*\|")
TABLE_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
ITEM = re.compile(r"[ \t]*([-*+•·]|\d{1,3}[.)、])[ \t]")
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*[ \t]+|[。！？；]+[”’」』）\"']*[ \t]*")
WHOLE_ATOM = 600  # characters; longer ones are cut into pieces before they are counted
PIECE = re.compile(r"[\s\S]{1,64}(?<=\s)|\S{1,32}|\s+")  # some words, or a part of an endless one
LONG_WORD = re.compile(r"\S{65,}")  # tokenizers may count such a word as one unknown token
CHARS_PER_TOKEN = 8  # a chunk has no more characters than this for each token, whatever the tokenizer says
BATCH = 2048  # atoms counted together


@dataclass
class _Atom:
    text: str
    cut: int  # how well the text may be cut behind it
    header: str = ""  # the table's header rows, to be repeated where a chunk begins with this row
    cost: int = 0


@dataclass
class _Section:
    path: list[str]
    blocks: list[list[_Atom]] = field(default_factory=list)


def split(
    documents: Iterable[Document],
    count_tokens: Callable[[str], int],
    max_tokens: int,
    overlap: int,
    count_batch: Callable[[Sequence[str]], list[int]] | None = None,
) -> list[Document]:
    """Chunks of one file's documents (its pages), in order.

    Each has metadata "headings" (the path, joined by " > ") beside what its document had. embed_text(chunk) never
    counts more than `max_tokens`. Neighbouring chunks of a section share up to `overlap` tokens of whole atoms.
    `count_batch` counts many texts at once, where that is faster.
    """
    counter = _Counter(count_tokens, count_batch or (lambda texts: [count_tokens(text) for text in texts]))
    chunks: list[Document] = []
    stack: list[tuple[int, str]] = []
    for document in documents:
        for section in _sections(document.page_content, stack):
            path = _fitting_path(section.path, count_tokens, max_tokens // 3)
            room = max_tokens - (count_tokens(path) if path else 0)
            packer = _Packer(counter, room, min(overlap, room // 2), path, max_tokens)
            metadata = {**document.metadata, "headings": path}
            chunks.extend(Document(text, metadata=dict(metadata)) for text in packer.pack(section.blocks))
    return chunks


def embed_text(chunk: Document) -> str:
    """What is embedded: the heading path on a line of its own, then the text without the headings it begins with."""
    path = str(chunk.metadata.get("headings", ""))
    if not path:
        return chunk.page_content
    names = set(path.split(" > "))
    lines = chunk.page_content.split("\n")
    start = 0
    while start < len(lines):
        heading = HEADING.match(lines[start])
        if lines[start].strip() and not (heading and _name(heading[2]) in names):
            break
        start += 1
    return path + "\n" + "\n".join(lines[start:])


# -- structure ---------------------------------------------------------------------------------------------------


def _sections(text: str, stack: list[tuple[int, str]]) -> Iterator[_Section]:
    """Sections of a text; `stack` holds the headings above, and goes on from page to page."""
    section = _Section([name for _, name in stack])
    only_headings = True  # the section has no text yet, so that a deeper heading may join it
    last_level = 0
    for kind, lines in _runs(text):
        if kind == "heading":
            match = HEADING.match(lines[0])
            assert match is not None
            level = len(match[1])
            if section.blocks and not (only_headings and level > last_level):
                yield section
                section = _Section([])
            while stack and stack[-1][0] >= level:
                stack.pop()
            stack.append((level, _name(match[2])))
            section.path = [name for _, name in stack]
            only_headings, last_level = True, level
        elif any(line.strip() for line in lines):
            only_headings = False
        section.blocks.append(_block(kind, lines))
    if any(atom.text.strip() for block in section.blocks for atom in block):
        yield section


def _name(heading: str) -> str:
    """A heading's text without closing #s and emphasis."""
    return re.sub(r"\s+#+\s*$", "", heading).strip().strip("*_").strip()


def _runs(text: str) -> Iterator[tuple[str, list[str]]]:
    """Runs of lines of a kind: heading (one line), code, table, text. The lines together are the text."""
    kind, run = "text", list[str]()
    fence = ""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        whole = line + "\n" if number < len(lines) - 1 else line
        mark = FENCE.match(line) if len(line) < 1000 else None
        if fence:
            now = "code"
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        elif mark:
            now, fence = "code", mark[1]
            if run and kind == "code":
                yield kind, run
                run = []
        elif HEADING.match(line):
            now = "heading"
        else:
            now = "table" if TABLE_ROW.match(line) else "text"
        if run and (now != kind or now == "heading"):
            yield kind, run
            run = []
        kind = now
        run.append(whole)
    if run:
        yield kind, run


def _block(kind: str, lines: list[str]) -> list[_Atom]:
    """The atoms of a run of lines."""
    if kind == "heading":
        return [_Atom(lines[0], WORD)]
    if kind == "table":
        header = "".join(lines[:2]) if len(lines) > 2 and TABLE_RULE.match(lines[1][:1000]) else ""
        atoms = [_Atom(line, LINE, header if number > 1 else "") for number, line in enumerate(lines)]
    elif kind == "code":
        atoms = [_Atom(line, LINE if line.strip() else SENTENCE) for line in lines]
    else:
        return list(_prose(lines))
    atoms[-1].cut = PARAGRAPH
    return atoms


def _prose(lines: list[str]) -> Iterator[_Atom]:
    """Sentences and line ends of paragraphs."""
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        stripped = line.rstrip()
        start = 0
        for end in SENTENCE_END.finditer(line):
            if end.end() < len(stripped):
                yield _Atom(line[start : end.end()], SENTENCE)
                start = end.end()
        ends = SENTENCE_END.match(stripped[-1:] + " ") or ITEM.match(following)
        cut = SENTENCE if ends else LINE
        yield _Atom(line[start:], PARAGRAPH if not following.strip() else cut)


def _fitting_path(path: list[str], count_tokens: Callable[[str], int], room: int) -> str:
    """The heading path within `room` tokens: the outermost names go first, then the end of the last one."""
    names = [name[: 20 * room] for name in path if name]
    while len(names) > 1 and count_tokens(" > ".join(names) + "\n") > room:
        del names[0]
    while names and names[0] and count_tokens(names[0] + "\n") > room:
        names[0] = names[0][: len(names[0]) * 3 // 4].rstrip()
    return " > ".join(name for name in names if name)


# -- packing -----------------------------------------------------------------------------------------------------


class _Counter:
    """Counts tokens as if words that are too long to be words were cut into parts."""

    def __init__(self, one: Callable[[str], int], many: Callable[[Sequence[str]], list[int]]) -> None:
        self.one = one
        self.many = many

    def costs(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, at least one for CHARS_PER_TOKEN characters."""
        parts: list[str] = []
        ends: list[int] = []
        for text in texts:
            if not text.isspace():
                parts.extend(PIECE.findall(text) if LONG_WORD.search(text) else [text])
            ends.append(len(parts))
        counts = self.many(parts) if parts else []
        starts = [0, *ends]
        return [
            max(sum(counts[start:end]), len(text) // CHARS_PER_TOKEN)
            for text, start, end in zip(texts, starts, ends, strict=False)
        ]


class _Packer:
    """Packs the atoms of one section into chunks of at most `room` tokens."""

    def __init__(self, counter: _Counter, room: int, overlap: int, path: str, max_tokens: int) -> None:
        self.counter = counter
        self.room = room
        self.overlap = overlap
        self.path = path
        self.max_tokens = max_tokens
        self.open: list[_Atom] = []
        self.shared = 0  # how many of the open atoms were in the last chunk already
        self.used = 0

    def pack(self, blocks: list[list[_Atom]]) -> Iterator[str]:
        for atom in self._sized(atom for block in blocks for atom in block):
            while self.used + atom.cost > self.room and len(self.open) > self.shared:
                yield from self._close(atom)
            if self.used + atom.cost > self.room:  # what is shared leaves no place for it
                self._drop_shared()
            self.open.append(atom)
            self.used += atom.cost
        if len(self.open) > self.shared:
            yield from self._checked(self.open)

    def _sized(self, atoms: Iterable[_Atom]) -> Iterator[_Atom]:
        """The atoms with their costs; those above the room are cut into pieces."""
        for batch in _batched(_pieces(atoms), BATCH):
            for atom, cost in zip(batch, self.counter.costs([atom.text for atom in batch]), strict=True):
                atom.cost = cost
                yield from self._halves(atom)

    def _halves(self, atom: _Atom) -> Iterator[_Atom]:
        """The atom, cut in the middle, at a space if there is one, until the parts fit."""
        if atom.cost <= self.room or len(atom.text) < 2:
            yield atom
            return
        middle = len(atom.text) // 2
        middle = atom.text.rfind(" ", 1, middle) + 1 or middle
        texts = [atom.text[:middle], atom.text[middle:]]
        for text, cut, cost in zip(texts, (WORD, atom.cut), self.counter.costs(texts), strict=True):
            yield from self._halves(_Atom(text, cut, atom.header, cost))

    def _close(self, incoming: _Atom) -> Iterator[str]:
        """Gives out the open atoms up to the best cut; the rest stays open, behind a table's header or some overlap."""
        end = self._best_cut()
        chunk, rest = self.open[:end], self.open[end:]
        yield from self._checked(chunk)
        shared = self._header((rest or [incoming])[0]) or self._tail(chunk)
        self.open = shared + rest
        self.shared = len(shared)
        self.used = sum(atom.cost for atom in self.open)

    def _best_cut(self) -> int:
        """How many atoms the chunk keeps: up to the last of the strongest boundaries in its second half."""
        best, best_cut, used = len(self.open), -1, 0
        for number, atom in enumerate(self.open):
            used += atom.cost
            if number >= self.shared and used * 2 >= self.used and atom.cut >= best_cut:
                best, best_cut = number + 1, atom.cut
        return best

    def _header(self, atom: _Atom) -> list[_Atom]:
        """The header rows that belong above this row, unless they would take half of the room."""
        if not atom.header:
            return []
        cost = self.counter.costs([atom.header])[0]
        return [_Atom(atom.header, WORD, cost=cost)] if cost <= self.room // 2 else []

    def _tail(self, chunk: list[_Atom]) -> list[_Atom]:
        """The last atoms within the overlap, from the start of a sentence or line on; never the whole chunk."""
        tail: list[_Atom] = []
        used = 0
        for number in range(len(chunk) - 1, 0, -1):
            used += chunk[number].cost
            if used > self.overlap:
                break
            if chunk[number - 1].cut > WORD:
                tail = chunk[number:]
        return list(tail)

    def _drop_shared(self) -> None:
        self.open = self.open[self.shared :]
        self.shared = 0
        self.used = sum(atom.cost for atom in self.open)

    def _checked(self, atoms: list[_Atom]) -> Iterator[str]:
        """The text of the atoms; halved if the tokenizer counts it higher as a whole than in parts."""
        text = "".join(atom.text for atom in atoms).strip("\n")
        if not text.strip():
            return
        whole = f"{self.path}\n{text}" if self.path else text
        if len(atoms) > 1 and self.counter.one(whole) > self.max_tokens:
            middle = len(atoms) // 2
            yield from self._checked(atoms[:middle])
            yield from self._checked(atoms[middle:])
        else:
            yield text


def _pieces(atoms: Iterable[_Atom]) -> Iterator[_Atom]:
    """The atoms, those of more than WHOLE_ATOM characters cut into pieces of some words."""
    for atom in atoms:
        if len(atom.text) <= WHOLE_ATOM:
            yield atom
            continue
        pieces = [_Atom(match[0], WORD, atom.header) for match in PIECE.finditer(atom.text)]
        pieces[-1].cut = atom.cut
        yield from pieces


def _batched(atoms: Iterable[_Atom], size: int) -> Iterator[list[_Atom]]:
    """Lists of `size` atoms; itertools has it from Python 3.12 on."""
    rest = iter(atoms)
    while batch := list(islice(rest, size)):
        yield batch
