"""Chunks to the passages that the model reads: neighbours become one, and may grow to their whole section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from langchain_core.documents import Document

OVERLAP = range(8, 2001)  # characters that neighbours share; fewer may be alike by chance, and do no harm twice
PARTS = "parts"  # in the metadata of a merged passage: its chunks, in the document's order


def parts_of(passage: Document) -> list[Document]:
    """The chunks that a passage is made of."""
    return list(passage.metadata.get(PARTS, [passage]))


def near_best(chunks: Sequence[Document], share: float) -> list[Document]:
    """The chunks as far as the last whose relevance is at least `share` of the best one's; all where none is known.

    Out of a passage that has little to do with the question, a small model takes another thing of the right kind.
    """
    known = [each.metadata.get("relevance", 0.0) for each in chunks]
    if share == 0 or (best := max(known, default=0.0)) <= 0:
        return list(chunks)
    return list(chunks[: 1 + max(place for place, value in enumerate(known) if value >= share * best)])


def merged(chunks: Sequence[Document]) -> list[Document]:
    """Passages in the order of their best chunks; chunks that stand side by side in a section become one passage."""
    groups: list[list[Document]] = []
    for chunk in chunks:
        beside = [group for group in groups if any(_adjacent(chunk, each) for each in group)]
        if beside:
            beside[0].append(chunk)
            for other in beside[1:]:  # the chunk closes the gap between two
                beside[0].extend(other)
                groups.remove(other)
        else:
            groups.append([chunk])
    return [_passage(group) for group in groups]


def widened(
    chunks: Sequence[Document],
    section_of: Callable[[Document], Sequence[Document]],
    room: int,
    count_tokens: Callable[[str], int],
) -> list[Document]:
    """The chunks, and behind each others of its section, the nearest first, of `room` tokens in all; the best chunk's
    section comes first. `section_of` gives the chunks around one, in the document's order.
    """
    found = list(chunks)
    known = {chunk.metadata["chunk_id"] for chunk in found}
    for chunk in chunks:
        if (place := chunk.metadata.get("ordinal")) is None:
            continue  # given by hand, and of no document
        near = sorted(section_of(chunk), key=lambda each: abs(each.metadata["ordinal"] - place))
        blocked: set[bool] = set()  # a side on which something did not fit: what is behind it would not join
        for each in near:
            side = each.metadata["ordinal"] > place
            if each.metadata["chunk_id"] in known or side in blocked:
                continue
            cost = count_tokens(each.page_content)
            if cost > room:
                blocked.add(side)
                continue
            room -= cost
            known.add(each.metadata["chunk_id"])
            found.append(Document(id=each.id, page_content=each.page_content,
                                  metadata={**each.metadata, "score": chunk.metadata["score"]}))  # fmt: skip
    return found


def in_section(a: Document, b: Document) -> bool:
    """Whether two chunks are of one section and page of one document."""
    keys = ("doc_id", "headings", "page")
    return all(a.metadata.get(key) == b.metadata.get(key) for key in keys)


def _adjacent(a: Document, b: Document) -> bool:
    here, there = a.metadata.get("ordinal"), b.metadata.get("ordinal")
    return here is not None and there is not None and abs(here - there) == 1 and in_section(a, b)


def _passage(group: list[Document]) -> Document:
    """One passage of chunks that stand side by side; the first of `group` is the best and gives its metadata."""
    if len(group) == 1:
        return group[0]
    parts = sorted(group, key=lambda each: int(each.metadata["ordinal"]))
    text = parts[0].page_content
    for before, after in pairwise(parts):
        text += _without_overlap(before.page_content, after.page_content)
    return Document(id=group[0].id, page_content=text, metadata={**group[0].metadata, PARTS: parts})


def _without_overlap(before: str, after: str) -> str:
    """What `after` adds to its neighbour, which it may begin with the end of."""
    longest = min(len(before), len(after), OVERLAP[-1])
    shared = next((size for size in range(longest, OVERLAP[0] - 1, -1) if before.endswith(after[:size])), 0)
    return after[shared:] if shared or before[-1:].isspace() else "\n" + after
