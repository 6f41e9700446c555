"""Knowledge bases of any size for the retrieval benchmark: synthetic chunks, built once and kept in a folder.

A chunk is a sentence of the sample documents among words drawn by Zipf's law from theirs and from made-up ones, one
chunk in four in Chinese. Its vector is a mixture of real sentence vectors with noise, so that questions lie among the
vectors as they do among real ones. What is written is what `paddock ingest` writes: the collection, the keyword index
and the manifest; only the files of the documents are not there.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from langchain_core.documents import Document

if TYPE_CHECKING:
    from app.services import Services

ROOT = Path(__file__).resolve().parent.parent
KB = "default"
CHUNKS_OF_A_DOCUMENT = 10
WORDS = 45  # of a chunk, beside its sentence
MADE_UP = 200_000
PART = 5_000  # chunks written at once
NOISE = 0.35  # its length, in relation to that of a vector


@dataclass
class Material:
    """Sentences with their vectors (s, d), and words by falling frequency, of one language."""

    sentences: list[str]
    vectors: np.ndarray
    words: np.ndarray
    odds: np.ndarray
    join: str


def sentences(chinese: bool) -> list[str]:
    """Sentences of the sample inbox in one of its languages."""
    texts = [
        path.read_text("utf-8") for path in sorted((ROOT / "data").glob("inbox*/*.*")) if path.suffix in (".md", ".txt")
    ]
    found = re.split(r"(?<=[.!?。！？])\s*|\n+", "\n".join(texts))
    kept = [each.strip() for each in found if 20 <= len(each.strip()) <= 300 or (chinese and len(each) > 8)]
    return sorted({each for each in kept if bool(re.search(r"[一-鿿]", each)) == chinese})


def material(services: Services, chinese: bool) -> Material:
    """What chunks of a language are made from."""
    found = sentences(chinese)
    vectors = np.asarray(services.embedder.embed_documents(found), np.float32)
    pattern = r"[一-鿿]" if chinese else r"[a-z]+"
    real: dict[str, int] = {}
    for each in found:
        for word in re.findall(pattern, each.lower()):
            real[word] = real.get(word, 0) + 1
    words = sorted(real, key=lambda word: -real[word])
    draw = random.Random(0)
    if chinese:
        others = [chr(code) for code in range(0x4E00, 0x9FA5) if chr(code) not in real]
        draw.shuffle(others)
        words += others[:4000]
    else:
        parts = ["".join(pair) for pair in ((a, b) for a in "bcdfglmnprstvz" for b in "aeiou")]
        words += list({"".join(draw.choices(parts, k=draw.randint(2, 4))) for _ in range(MADE_UP)} - real.keys())
    odds = 1.0 / np.arange(1, len(words) + 1)
    return Material(found, vectors, np.array(words), odds / odds.sum(), "" if chinese else " ")


def chunks(materials: Sequence[Material], start: int, n: int) -> tuple[list[str], np.ndarray]:
    """Texts and unit vectors (n, d) of the chunks from `start` on; always the same ones for the same arguments."""
    draw = np.random.default_rng(start)
    words = [draw.choice(each.words, (n, WORDS), p=each.odds) for each in materials]
    texts, vectors = [], np.empty((n, materials[0].vectors.shape[1]), np.float32)
    for i in range(n):
        language = int(((start + i) // CHUNKS_OF_A_DOCUMENT) % 4 == 0)
        made, mine = materials[language], words[language][i]
        picked = draw.integers(0, len(made.sentences), 3)
        texts.append(made.join.join([*mine[:20], made.sentences[picked[0]], *mine[20:]]))
        vectors[i] = draw.dirichlet([2.0, 1.0, 1.0]).astype(np.float32) @ made.vectors[picked]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors += draw.standard_normal(vectors.shape).astype(np.float32) * (NOISE / np.sqrt(vectors.shape[1]))
    return texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def documents(texts: Sequence[str], start: int) -> list[Document]:
    """The chunks from `start` on, with the metadata that ingest gives them."""
    found = []
    for i, text in enumerate(texts, start):
        number, ordinal = divmod(i, CHUNKS_OF_A_DOCUMENT)
        doc_id = f"{number:024d}"
        name = f"{doc_id}-{ordinal:05d}"
        data = {"chunk_id": name, "doc_id": doc_id, "source": source(number), "ordinal": ordinal, "kb": KB}
        found.append(Document(text, id=name, metadata={**data, "headings": "Synthetic"}))
    return found


def source(number: int) -> str:
    """A document's name: a hundred to a folder, of three types."""
    return f"{number // 100:05d}/{number:08d}.{('md', 'txt', 'pdf')[number % 3]}"


def build(services: Services, size: int) -> float:
    """Brings a knowledge base up to `size` chunks, on from where an earlier call was cut off. Returns the seconds."""
    from vectorstore.keyword import KeywordIndex, folder_of, read_id

    started = time.perf_counter()
    store = services.store(KB, create=True)
    folder = folder_of(services.ingestor.keyword, KB)
    keyword = KeywordIndex(folder, create=read_id(folder) is None)
    stored, known = store.count(), keyword.count()
    done = min(stored, known)
    materials = [material(services, chinese) for chinese in (False, True)] if done < size else []
    for start in range(done // PART * PART, size if done < size else 0, PART):
        n = min(PART, size - start)
        texts, vectors = chunks(materials, start, n)
        made = documents(texts, start)
        if stored < start + n:
            store.add_documents(made, embeddings=vectors)
        for first in range(0, n if known < start + n else 0, CHUNKS_OF_A_DOCUMENT):
            part = made[first : first + CHUNKS_OF_A_DOCUMENT]
            keyword.put(part[0].metadata["doc_id"], [(str(each.id), each.page_content) for each in part])
        keyword.commit()
        seconds = round(time.perf_counter() - started, 1)
        print(json.dumps({"chunks": start + n, "of": size, "seconds": seconds}), file=sys.stderr, flush=True)
    keyword.close()
    if stored < size:
        settle(services, made[-2:], vectors[-2:])
    note(services, store.collection_id, keyword.id, size)
    return time.perf_counter() - started


def settle(services: Services, last: Sequence[Document], vectors: np.ndarray) -> None:
    """Brings the rest of the graph to the disk, as it is after an ingest with the default of `hnsw_sync`.

    What is not there is added again whenever the knowledge base is opened.
    """
    from app.services import Services

    default = type(services.settings).model_fields["hnsw_sync"].default
    after = Services(services.settings.model_copy(update={"hnsw_sync": default}))
    after.store(KB, create=True).add_documents(list(last), embeddings=vectors)


def note(services: Services, collection_id: str, keyword_id: str, size: int) -> None:
    """Makes the documents known to the manifest."""
    from ingest.manifest import FileRow, KbRow, joined

    manifest, identity = services.ingestor.manifest, services.embedder.identity
    if manifest.chunks(KB) >= size:
        return
    with manifest.transaction():
        manifest.put_kb(KbRow(KB, collection_id, identity, str(services.ingestor.hnsw)))
        manifest.put_keyword_index(KB, keyword_id)
        for number in range(size // CHUNKS_OF_A_DOCUMENT):
            doc_id = f"{number:024d}"
            day_ns = number % 3650 * 86_400 * 10**9  # over ten years
            head = (KB, source(number), 10_000, day_ns, day_ns + 10**9, doc_id, doc_id, CHUNKS_OF_A_DOCUMENT, None)
            languages = joined(["zh" if number % 4 == 0 else "en"])
            manifest.put_file(FileRow(*head, "indexed", None, "synthetic", identity, 0.0, languages))
            manifest.put_keyword(KB, doc_id, done=True)
