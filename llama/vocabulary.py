"""What every kind of vocabulary comes down to; `llama.tokenizer` works with nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# GGUF's tokenizer.ggml.token_type, which are SentencePiece's: special tokens, tokens that a fine-tuner added whole, and
# the 256 bytes that spell what no other token does.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6

# Where the encoder puts a space that nobody wrote, for the decoder to take away again: nowhere, at the very beginning,
# or also behind every special token.
Prefix = Literal["never", "first", "always"]


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary, ready to use.

    encode: ordinary text, and whether it stands at the very beginning, to ids. It knows no special tokens, so that
    nothing that people write can become one. spelled: UTF-8 bytes of each id, part of a character perhaps.
    special: tokens that only a template can make, as they are spelled there.
    """

    encode: Callable[[str, bool], list[int]]
    spelled: Sequence[bytes]
    special: Mapping[str, int]
    bos_id: int | None
    eos_ids: frozenset[int]
    add_bos: bool
    prefix: Prefix = "never"


# A file has room for one end-of-text id, but a model ends its turns with several tokens: GGUF names some under keys of
# their own, and Llama 3's are known by name (its generation_config.json lists 128001, 128008 and 128009).
GGUF_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


def gguf_ends(metadata: Mapping[str, object], special: Mapping[str, int]) -> frozenset[int]:
    """Every id that ends a turn, of a GGUF file."""
    named = (metadata.get(f"tokenizer.ggml.{key}") for key in GGUF_ENDS)
    found = {int(str(end)) for end in named if end is not None}
    return frozenset(found | {special[name] for name in ENDS if name in special})


def spelled_byte(token: str) -> bytes | None:
    """The byte that a token like `<0x0A>` stands for."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return None


def without(merges: Iterable[tuple[str, str]], special: Iterable[str]) -> list[tuple[str, str]]:
    """The merges that neither use nor give a special token."""
    barred = frozenset(special)
    return [(a, b) for a, b in merges if a + b not in barred and a not in barred and b not in barred]
