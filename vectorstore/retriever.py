"""The dense retriever: the chunks whose meaning is nearest to the question's."""

from __future__ import annotations

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field


class DenseRetriever(BaseRetriever):
    """Top-k by cosine similarity, without those below `min_score`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    store: VectorStore = Field(description="its similarity_search_with_score returns cosine similarities")
    k: int = Field(4, ge=1, description="chunks returned at most")
    min_score: float = Field(0.2, ge=-1.0, le=1.0, description="chunks less similar than this are left out")

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        """Documents, best first, with metadata["score"] (float) and metadata["page"] (int, or None without pages)."""
        found = self.store.similarity_search_with_score(query, self.k)
        return [
            Document(
                id=each.id,
                page_content=each.page_content,
                metadata={**each.metadata, "page": each.metadata.get("page"), "score": float(score)},
            )
            for each, score in sorted(found, key=lambda pair: -pair[1])
            if score >= self.min_score
        ]
