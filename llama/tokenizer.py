"""Text to token ids and back, built from what the model's own files say; the kind is known by their content."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama import bpe, hf_tokenizer, spm
from llama.errors import LlamaError
from llama.vocabulary import Vocabulary

# tokenizer.ggml.model -> what reads it.
GGUF_KINDS: dict[str, Callable[[Mapping[str, Any]], Vocabulary]] = {"gpt2": bpe.from_gguf, "llama": spm.from_gguf}


@contextlib.contextmanager
def _damaged(what: str) -> Iterator[None]:
    """Whatever else is raised by a file that lies about itself becomes one line."""
    try:
        yield
    except LlamaError:
        raise
    except Exception as error:  # the tokenizers and sentencepiece libraries raise plain ones
        raise LlamaError(f"its {what} is damaged ({error})") from error


class Tokenizer:
    """A vocabulary with its rules; safe to share among threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.special = dict(vocabulary.special)
        self.bos_id, self.eos_ids, self.add_bos = vocabulary.bos_id, vocabulary.eos_ids, vocabulary.add_bos
        self.vocab_size = len(vocabulary.spelled)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.ggml.*` keys. Raises LlamaError for a kind of vocabulary that is not known exactly."""
        kind = metadata.get("tokenizer.ggml.model")
        if kind not in GGUF_KINDS:
            known = ", ".join(sorted(GGUF_KINDS))
            raise LlamaError(f"its vocabulary is of kind {kind!r}, which is not known (known: {known})")
        with _damaged("vocabulary"):
            return cls(GGUF_KINDS[kind](metadata))

    @classmethod
    def from_hf(cls, path: Path, bos_id: int | None, eos_ids: Iterable[int]) -> Tokenizer:
        """From a tokenizer.json of the `tokenizers` library. Raises LlamaError where no LLaMA has such a one."""
        with _damaged(path.name):
            return cls(hf_tokenizer.from_json(path.read_bytes(), bos_id, eos_ids))

    @classmethod
    def from_model(
        cls,
        path: Path,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        added: Mapping[str, int] | None = None,
        add_bos: bool = True,
    ) -> Tokenizer:
        """From a tokenizer.model: SentencePiece's (Llama 1 and 2), or tiktoken's ranks (Llama 3).

        bos_id, eos_ids, added: what other files say of it; `added` are special tokens behind the vocabulary's end.
        Raises LlamaError for a file that is neither.
        """
        with _damaged(path.name):
            data = path.read_bytes()
            found = bpe.from_ranks(data) if bpe.are_ranks(data) else spm.from_file(data)
            spelled = list(found.spelled)
            for name, i in sorted((added or {}).items(), key=lambda each: each[1]):
                if i >= len(spelled):
                    spelled += [b""] * (i - len(spelled)) + [name.encode()]
        return cls(
            replace(
                found,
                spelled=spelled,
                special={**found.special, **{name: i for name, i in (added or {}).items() if i >= len(found.spelled)}},
                bos_id=found.bos_id if bos_id is None else bos_id,
                eos_ids=found.eos_ids | set(eos_ids),
                add_bos=add_bos,
            )
        )

    def within(self, rows: int) -> Tokenizer:
        """The same for a model whose table has so many rows: special tokens behind it are left out.

        Raises LlamaError when other tokens lie behind it: then the vocabulary is not that model's.
        """
        if self.vocab_size <= rows:
            return self
        special = {name: i for name, i in self.special.items() if i < rows}
        outside = set(range(rows, self.vocab_size)) - set(self.special.values())
        if outside or self.bos_id not in {None, *range(rows)}:
            raise LlamaError(
                f"its vocabulary has {self.vocab_size} tokens and the model {rows}; they do not belong together"
            )
        found = self._vocabulary
        return Tokenizer(replace(found, special=special, spelled=found.spelled[:rows]))

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of ordinary text: a special token spelled out in it stays text, and no BOS is added.

        first: whether the text stands at the very beginning; some vocabularies put a space there. Characters that the
        vocabulary cannot spell are left out. A lone surrogate becomes a question mark.
        """
        return self._vocabulary.encode(text.encode("utf-8", "replace").decode("utf-8"), first)

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for; they may be part of a character only.

        None for ids behind the vocabulary's end, which a model has whose table is padded.
        """
        return self._vocabulary.spelled[token_id] if token_id < self.vocab_size else b""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, special tokens spelled out; bytes that form no character become U+FFFD."""
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self) -> TokenStream:
        return TokenStream(self, self._vocabulary.prefix)


class TokenStream:
    """Decodes ids as they come and never gives half a character; all pieces joined equal `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer, prefix: str) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.special.values()) if prefix == "always" else frozenset()
        self._strip = prefix != "never"  # whether a space that comes next was put there by the encoder
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        data = self._tokenizer.bytes_of(token_id)
        if token_id in self._special:
            self._strip = True
        elif data:
            # Only the one space that encoding added: those inside the text are as much a part of it as its letters.
            data, self._strip = data[1:] if self._strip and data.startswith(b" ") else data, False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished, else nothing."""
        return self._decoder.decode(b"", final=True)
