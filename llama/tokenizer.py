"""Text to token ids and back, built from what the model file itself says."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from llama.errors import LlamaError

# GGUF's tokenizer.ggml.token_type: special tokens, and tokens that a fine-tuner added whole.
CONTROL, USER_DEFINED = 3, 4


def _bytes_to_characters() -> list[str]:
    """The visible character that byte-level BPE writes for each byte (Radford et al. 2019, section 2.2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(rest)) for byte in range(256)]


BYTE_OF = {character: byte for byte, character in enumerate(_bytes_to_characters())}


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_first() -> pre_tokenizers.PreTokenizer:
    # Every digit stands alone before words are cut: "\n\n1" is a double newline and a 1, as the model was trained.
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


# tokenizer.ggml.pre -> how text is cut before merging. A guess would silently degrade the model: others are refused.
PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {"gpt-2": _byte_level, "smollm": _digits_first}


class Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), lossless wherever the vocabulary has all bytes."""

    def __init__(
        self,
        vocabulary: Sequence[str],
        merges: Sequence[tuple[str, str]],
        pre_tokenizer: pre_tokenizers.PreTokenizer,
        special_ids: Iterable[int],
        bos_id: int | None,
        eos_ids: Iterable[int],
        add_bos: bool,
    ) -> None:
        bpe = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, list(merges)))
        bpe.pre_tokenizer = pre_tokenizer
        self._set(bpe, vocabulary, {vocabulary[i]: i for i in special_ids}, bos_id, eos_ids, add_bos)

    def _set(
        self,
        bpe: tokenizers.Tokenizer,
        vocabulary: Sequence[str],
        special: dict[str, int],
        bos_id: int | None,
        eos_ids: Iterable[int],
        add_bos: bool,
    ) -> None:
        """`bpe` knows no special tokens, so that nothing that people write can become one."""
        self._bpe, self.special = bpe, special
        self.bos_id, self.eos_ids, self.add_bos = bos_id, frozenset(eos_ids), add_bos
        self.vocab_size = len(vocabulary)
        whole = set(special.values())
        self._bytes = [
            token.encode() if i in whole else bytes(BYTE_OF[c] for c in token) if set(token) <= BYTE_OF.keys() else b""
            for i, token in enumerate(vocabulary)
        ]
        self._unspelled = frozenset(BYTE_OF.values()) - {
            byte for token in self._bytes if len(token) == 1 for byte in token
        }

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.ggml.*` keys. Raises LlamaError for a kind of vocabulary that is not known exactly."""
        kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        if kind != "gpt2":
            raise LlamaError(f"its vocabulary is of kind {kind!r}; only byte-level BPE ('gpt2') is supported so far")
        if pre not in PRE_TOKENIZERS:
            known = ", ".join(sorted(PRE_TOKENIZERS))
            raise LlamaError(f"its pre-tokenizer {pre!r} is not known (known: {known}); its answers would be worse")
        try:
            vocabulary = metadata["tokenizer.ggml.tokens"]
            types = metadata["tokenizer.ggml.token_type"]
            merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
            bos, eot = metadata.get("tokenizer.ggml.bos_token_id"), metadata.get("tokenizer.ggml.eot_token_id")
            ends = {int(end) for end in (metadata["tokenizer.ggml.eos_token_id"], eot) if end is not None}
            return cls(
                vocabulary,
                merges,
                PRE_TOKENIZERS[pre](),
                [i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)],
                None if bos is None else int(bos),
                ends,
                bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
            )
        except Exception as error:  # the tokenizers library raises plain ones for merges that do not fit
            raise LlamaError(f"its vocabulary is damaged ({error})") from error

    @classmethod
    def from_hf(cls, path: Path, bos_id: int | None, eos_ids: Iterable[int]) -> Tokenizer:
        """From a tokenizer.json of the `tokenizers` library. Raises LlamaError where it is not byte-level BPE."""
        try:
            spec = json.loads(path.read_text("utf-8"))
            if spec["model"].get("type") != "BPE" or not _mentions(spec.get("decoder"), "ByteLevel"):
                raise LlamaError("its vocabulary is not byte-level BPE, which is all that is supported so far")
            special = {each["content"]: int(each["id"]) for each in spec.get("added_tokens") or []}
            # What the whole file puts in front of an empty text is what it puts in front of every text.
            front = tokenizers.Tokenizer.from_str(json.dumps(spec)).encode("").ids
            bpe = tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": [], "post_processor": None}))
            bpe.no_truncation()
            bpe.no_padding()
            by_id = {**{i: token for token, i in spec["model"]["vocab"].items()}, **{i: t for t, i in special.items()}}
            vocabulary = [by_id.get(i, "") for i in range(max(by_id) + 1)]
        except LlamaError:
            raise
        except Exception as error:  # the tokenizers library raises plain ones
            raise LlamaError(f"its tokenizer.json is damaged ({error})") from error
        found = cls.__new__(cls)
        found._set(bpe, vocabulary, special, bos_id, eos_ids, bos_id is not None and front[:1] == [bos_id])
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text: a special token spelled out in it stays text, and no BOS is added.

        Characters that the vocabulary cannot spell are left out whole: some have bytes that training never met
        (SmolLM2 lacks a few control characters and planes 4 to 11). A lone surrogate becomes a question mark.
        """
        data = text.encode("utf-8", "replace")
        text = data.decode("utf-8")
        if not self._unspelled.isdisjoint(data):
            text = "".join(character for character in text if self._unspelled.isdisjoint(character.encode()))
        return self._bpe.encode(text, add_special_tokens=False).ids

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for; they may be part of a character only."""
        return self._bytes[token_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, special tokens spelled out; bytes that form no character become U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def stream(self) -> TokenStream:
        return TokenStream(self)


def _mentions(part: Any, kind: str) -> bool:
    """Whether a step of that kind is in a part of a tokenizer.json, be it in a sequence of steps."""
    if not isinstance(part, dict):
        return False
    return part.get("type") == kind or any(_mentions(each, kind) for each in part.get("decoders") or ())


class TokenStream:
    """Decodes ids as they come and never gives half a character; all pieces joined equal `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.bytes_of(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished, else nothing."""
        return self._decoder.decode(b"", final=True)
