"""Embeddings that need no model: words hashed into a few dimensions."""

from __future__ import annotations

import hashlib
import math

from langchain_core.embeddings import Embeddings

DIMENSIONS = 64


class WordEmbeddings(Embeddings):
    """Texts that share words are near to each other. Counts what it embeds."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * DIMENSIONS
        words = text.lower().split() if text.isascii() else list(text)
        for word in words or ["nothing"]:
            vector[hashlib.md5(word.encode()).digest()[0] % DIMENSIONS] += 1.0
        norm = math.sqrt(sum(value * value for value in vector))
        return [value / norm for value in vector]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded.extend(texts)
        return [self.embed_query(text) for text in texts]
