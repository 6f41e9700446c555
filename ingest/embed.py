"""Embeddings from a sentence-transformers folder, on this machine; tokens are counted without torch."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from langchain_core.embeddings import Embeddings

from ingest.errors import IngestError
from ingest.prefixes import Prefixes, prefixes_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    from ingest.bert import BertEncoder

# What the vectors depend on. Read-mes and training notes may change without changing a vector.
PARTS = ("*.safetensors", "*.bin", "*.json", "vocab.txt", "*.model", "*/config.json", "*/*.safetensors", "*/*.bin",
         "*/tokenizer.json", "*/sentence_bert_config.json")  # fmt: skip
NOT_PARTS = ("README.md", "data_config.json", "train_script.json")
BATCH = 32


class Embedder(Embeddings):
    """Turns texts into unit vectors. Safe to share among threads; the model is loaded at the first text."""

    def __init__(
        self,
        folder: Path,
        hash_cache: Path | None = None,
        device: str = "cpu",
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
    ) -> None:
        """`folder` is a sentence-transformers model. `hash_cache` is a file that spares hashing the weights again.

        Prefixes stand before what is embedded; None is what the folder asks for. Raises IngestError if the folder is
        missing or incomplete.
        """
        self.folder = folder
        self.device = device
        self._hash_cache = hash_cache
        self._lock = threading.Lock()
        self._model: BertEncoder | SentenceTransformer | None = None
        if not folder.is_dir():
            raise IngestError(
                f"there is no embedding model {folder}; run `paddock models pull` for the default one, or set "
                "`embedder` to one that is there"
            )
        self._require(folder / "modules.json")
        inner, kind = self._first_module()
        self._inner = folder / inner
        # A table of static embeddings has no network to configure.
        for name in ("tokenizer.json",) if kind.endswith("StaticEmbedding") else ("config.json", "tokenizer.json"):
            self._require(self._inner / name)
        if not any(path.stat().st_size for pattern in PARTS[:2] for path in self._inner.glob(pattern)):
            raise self._incomplete("its weights are missing")
        asked = prefixes_of(folder, self._inner)
        self.prefixes = Prefixes(
            asked.query if query_prefix is None else query_prefix,
            asked.passage if passage_prefix is None else passage_prefix,
        )

    def _first_module(self) -> tuple[str, str]:
        """Where network and tokenizer lie in the folder (older ones have them in one of their own), and their class."""
        try:
            first = json.loads((self.folder / "modules.json").read_text("utf-8"))[0]
            return str(first["path"]), str(first["type"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._incomplete("modules.json is damaged") from error

    def _require(self, path: Path) -> None:
        if not path.is_file() or not path.stat().st_size:
            raise self._incomplete(f"{path.name} is missing")

    def _incomplete(self, cause: str) -> IngestError:
        return IngestError(f"the embedding model {self.folder} cannot be used ({cause}); run `paddock models pull`")

    # -- identity ------------------------------------------------------------------------------------------------

    @cached_property
    def identity(self) -> str:
        """Name, content hash and prefixes: the same for the same vectors, wherever the folder lies."""
        files = sorted({path for pattern in PARTS for path in self.folder.glob(pattern) if path.name not in NOT_PARTS})
        stamps = {
            path.relative_to(self.folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns] for path in files
        }
        key = str(self.folder.resolve())
        known = self._read_hashes()
        entry = known.get(key)
        if not isinstance(entry, dict) or entry.get("files") != stamps or not isinstance(entry.get("hash"), str):
            digest = hashlib.sha256()
            for path in files:
                with path.open("rb") as file:
                    part = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(f"{path.relative_to(self.folder).as_posix()} {part}\n".encode())
            entry = known[key] = {"files": stamps, "hash": digest.hexdigest()[:12]}
            self._write_hashes(known)
        return f"{self.folder.name}@{entry['hash']}{self.prefixes.mark}"

    def _read_hashes(self) -> dict[str, Any]:
        try:
            known = json.loads(self._hash_cache.read_text("utf-8")) if self._hash_cache else {}
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write_hashes(self, known: dict[str, Any]) -> None:
        if self._hash_cache is None:
            return
        try:
            self._hash_cache.parent.mkdir(parents=True, exist_ok=True)
            part = self._hash_cache.with_name(f"{self._hash_cache.name}.{threading.get_ident()}.part")
            part.write_text(json.dumps(known, indent=1), "utf-8")
            part.replace(self._hash_cache)
        except OSError:
            pass  # it is only a cache

    # -- tokens --------------------------------------------------------------------------------------------------

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(self._inner / "tokenizer.json"))
        except Exception as error:  # the library raises a bare Exception
            raise self._incomplete("tokenizer.json is damaged") from error
        tokenizer.no_truncation()  # these files often cut and pad to the length they were trained with
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def max_tokens(self) -> int:
        """Tokens of a passage that the model reads; what is beyond is ignored. Special tokens and the prefix are not
        counted.
        """
        limit = 0
        for name, key in (
            ("sentence_bert_config.json", "max_seq_length"),
            ("tokenizer_config.json", "model_max_length"),
            ("config.json", "max_position_embeddings"),
        ):
            try:
                found = json.loads((self._inner / name).read_text("utf-8")).get(key)
            except (OSError, ValueError, AttributeError):
                continue
            if isinstance(found, int) and 0 < found < 1 << 20:
                limit = limit or found
        taken = self._tokenizer.num_special_tokens_to_add(is_pair=False) + self.count_tokens(self.prefixes.passage)
        return (limit or 512) - taken

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, special ones not counted."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def count_tokens_batch(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, in parallel."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(each) for each in found]

    def coverage(self, text: str) -> float:
        """Share of a text's characters that the vocabulary knows, in [0, 1]; white space is not counted.

        A model reads every unknown word, or character of an unknown script, as one and the same token.
        """
        found = self._tokenizer.encode(text, add_special_tokens=False)
        sizes = [end - start for start, end in found.offsets]
        unknown = sum(size for size, token in zip(sizes, found.ids, strict=True) if token == self._unknown)
        return 1.0 - unknown / sum(sizes) if any(sizes) else 0.0

    @cached_property
    def _unknown(self) -> int | None:
        """The id that unknown words get; None for a vocabulary that has every byte."""
        model = json.loads(self._tokenizer.to_str())["model"]
        name = model.get("unk_token")
        return model.get("unk_id") if name is None else self._tokenizer.token_to_id(str(name))

    # -- vectors -------------------------------------------------------------------------------------------------

    def _loaded(self) -> BertEncoder | SentenceTransformer:
        """The model; call with the lock held."""
        if self._model is None:
            from ingest.bert import load_bert

            try:
                self._model = load_bert(self.folder, self.device) or self._from_library()
            except Exception as error:
                raise self._incomplete(" ".join(str(error).split())[:120]) from error
        return self._model

    def _from_library(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        return SentenceTransformer(str(self.folder), device=self.device, local_files_only=True).eval()

    def _encode(self, texts: list[str], prefix: str) -> list[list[float]]:
        from ingest.bert import BertEncoder

        with self._lock:
            model = self._loaded()
            if isinstance(model, BertEncoder):
                return model.encode([prefix + text for text in texts], BATCH)
            # Told as a prompt, as some poolings leave its tokens out; '' keeps the library from a default of its own.
            found = model.encode(
                texts, prompt=prefix, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
            )
            return cast(list[list[float]], found.tolist())

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors (n, d) of passages, in their order."""
        return self._embed(texts, self.prefixes.passage)

    def _embed(self, texts: Sequence[str], prefix: str) -> list[list[float]]:
        """Batches hold texts of like length, so that little is padded."""
        if not texts:
            return []
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = self._encode([texts[i] for i in order], prefix)
        result: list[list[float]] = [[] for _ in texts]
        for place, i in enumerate(order):
            result[i] = vectors[place]
        return result

    def embed_query(self, text: str) -> list[float]:
        """The unit vector (d,) of a question."""
        return self._embed([text], self.prefixes.query)[0]
