"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019): vocabularies of GGUF files and of Llama 3's own file."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from llama.errors import LlamaError
from llama.vocabulary import CONTROL, ENDS, USER_DEFINED, Vocabulary, gguf_ends, without


def _bytes_to_characters() -> list[str]:
    """The visible character that byte-level BPE writes for each byte (Radford et al. 2019, section 2.2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(rest)) for byte in range(256)]


CHARACTERS = _bytes_to_characters()
BYTE_OF = {character: byte for byte, character in enumerate(CHARACTERS)}
AS_CHARACTERS = dict(enumerate(CHARACTERS))

# Llama 3's words ("The Llama 3 Herd of Models", 2024; the pattern is part of Meta's published tokenizer): contractions,
# letters, up to three digits, punctuation, line breaks, white space.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3_RANKS = 128_000
# Behind the ranks come 256 special tokens that are not in the file; named as of Llama 3.1, the rest are reserved.
LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(3, 248)),
)


@dataclass(frozen=True)
class Words:
    """How text is cut into words before merging. whole: a word that is a token is taken without looking at merges."""

    cut: Callable[[], pre_tokenizers.PreTokenizer]
    whole: bool = False
    add_bos: bool = False  # where the file does not say


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_first() -> pre_tokenizers.PreTokenizer:
    # Every digit stands alone before words are cut: "\n\n1" is a double newline and a 1, as the model was trained.
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3() -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_WORDS), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# tokenizer.ggml.pre -> how text is cut. A guess would silently degrade the model: others are refused.
PRE_TOKENIZERS: dict[str, Words] = {
    "gpt-2": Words(_gpt2),
    "smollm": Words(_digits_first),
    "llama-bpe": Words(_llama3, whole=True, add_bos=True),
    "llama3": Words(_llama3, whole=True, add_bos=True),
}


def byte_level(
    tokens: Sequence[str],
    merges: Iterable[tuple[str, str]],
    words: Words,
    special: Mapping[str, int],
    bos_id: int | None,
    eos_ids: Iterable[int],
    add_bos: bool,
) -> Vocabulary:
    """tokens: every id's spelling in the characters that stand for bytes; special ones as they are."""
    whole = set(special.values())
    ordinary = {token: i for i, token in enumerate(tokens) if i not in whole}
    bpe = tokenizers.Tokenizer(models.BPE(ordinary, without(merges, special), ignore_merges=words.whole))
    bpe.pre_tokenizer = words.cut()
    spelled = spell(tokens, whole)
    return Vocabulary(encoder(bpe, spelled), spelled, special, bos_id, frozenset(eos_ids), add_bos)


def spell(tokens: Sequence[str], special_ids: set[int]) -> list[bytes]:
    """The bytes of each id; none for what stands for no bytes."""

    def bytes_of(token: str) -> bytes:
        try:
            return bytes(map(BYTE_OF.__getitem__, token))
        except KeyError:
            return b""

    return [token.encode() if i in special_ids else bytes_of(token) for i, token in enumerate(tokens)]


def encoder(bpe: tokenizers.Tokenizer, spelled: Sequence[bytes]) -> Callable[[str, bool], list[int]]:
    """Encodes losslessly wherever the vocabulary has all bytes.

    Characters that it cannot spell are left out whole: some have bytes that training never met (SmolLM2 lacks a few
    control characters and planes 4 to 11).
    """
    unspelled = frozenset(range(256)) - {byte for token in spelled if len(token) == 1 for byte in token}

    def encode(text: str, first: bool) -> list[int]:
        if not unspelled.isdisjoint(text.encode()):
            text = "".join(character for character in text if unspelled.isdisjoint(character.encode()))
        return bpe.encode(text, add_special_tokens=False).ids

    return encode


def from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """A GGUF vocabulary of kind 'gpt2'. Raises LlamaError for a pre-tokenizer that is not known exactly."""
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise LlamaError(f"its pre-tokenizer {pre!r} is not known (known: {known}); its answers would be worse")
    words = PRE_TOKENIZERS[pre]
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    special = {tokens[i]: i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)}
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    return byte_level(
        tokens,
        merges,
        words,
        special,
        None if bos is None else int(bos),
        gguf_ends(metadata, special),
        bool(metadata.get("tokenizer.ggml.add_bos_token", words.add_bos)),
    )


def are_ranks(data: bytes) -> bool:
    """Whether a file is tiktoken's: lines of a token in base64 and its rank."""
    return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data) is not None


def from_ranks(data: bytes) -> Vocabulary:
    """Llama 3's tokenizer.model. Raises LlamaError for a file of another size, whose special tokens are not known.

    tiktoken joins the two neighbours whose union has the lowest rank, whatever they are themselves; so each way to cut
    a token into two others is a merge of that token's rank.
    """
    ranks = {}
    for line in data.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token, validate=True)] = int(rank)
    if len(ranks) != LLAMA3_RANKS or set(ranks.values()) != set(range(LLAMA3_RANKS)):
        raise LlamaError(
            f"its tokenizer.model has {len(ranks)} ranks and Llama 3's {LLAMA3_RANKS}; its special tokens are not known"
        )
    ordered = sorted(ranks, key=ranks.__getitem__)
    written = {token: token.decode("latin-1").translate(AS_CHARACTERS) for token in ordered}
    merges = [
        (written[token[:cut]], written[token[cut:]])
        for token in ordered
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    special = {name: LLAMA3_RANKS + i for i, name in enumerate(LLAMA3_SPECIAL)}
    tokens = [*written.values(), *special]
    ends = [special[name] for name in ENDS]
    return byte_level(tokens, merges, PRE_TOKENIZERS["llama3"], special, special["<|begin_of_text|>"], ends, True)
