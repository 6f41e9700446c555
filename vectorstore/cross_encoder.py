"""A cross-encoder reads question and passage together and gives one figure (Nogueira and Cho 2019)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.documents import Document

from vectorstore.errors import StoreError

BATCH = 8


class CrossEncoderScorer:
    """Scores passages with a folder of sentence-transformers' CrossEncoder, or a plain sequence classifier.

    One label: its logit. Two: the logit of the second against the first. Safe to share among threads; loaded at the
    first question.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Raises StoreError if the folder is missing."""
        if not (folder / "config.json").is_file():
            raise self._unusable(folder, "it has no config.json")
        self.folder, self.device = folder, device
        self._lock = threading.Lock()
        self._model: Any = None

    def __call__(self, question: str, passages: Sequence[Document]) -> list[float]:
        """The log-odds of each passage. Raises StoreError when the model cannot be used."""
        import torch

        pairs = [(question, text_of(passage)) for passage in passages]
        with self._lock:
            try:
                if self._model is None:
                    self._model = self._load()
                found = self._model.predict(
                    pairs, batch_size=BATCH, activation_fn=torch.nn.Identity(), show_progress_bar=False
                )
            except StoreError:
                raise
            except Exception as error:  # whatever a foreign folder makes the library raise
                raise self._unusable(self.folder, " ".join(str(error).split())[:120]) from error
        return [float(row) if row.ndim == 0 else float(row[1] - row[0]) for row in found]

    def _load(self) -> Any:
        from sentence_transformers import CrossEncoder
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model = CrossEncoder(str(self.folder), device=self.device, local_files_only=True)
        if model.num_labels > 2:
            raise self._unusable(self.folder, f"it has {model.num_labels} labels, and not one or two")
        return model.eval()

    @staticmethod
    def _unusable(folder: Path, cause: str) -> StoreError:
        return StoreError(
            f"the reranking model {folder} cannot be used ({cause}); give a cross-encoder's folder, or set rerank = "
            '"off" or "likelihood"'
        )


def text_of(passage: Document) -> str:
    """What a scorer reads: the headings on a line of their own, and the text."""
    headings = str(passage.metadata.get("headings") or "")
    return f"{headings}\n{passage.page_content.strip()}" if headings else passage.page_content.strip()
