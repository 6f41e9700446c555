"""Vocabularies of Hugging Face's tokenizer.json: byte-level BPE, and SentencePiece's as the converters write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from llama import bpe
from llama.errors import LlamaError
from llama.vocabulary import Prefix, Vocabulary, spelled_byte, without

SPACE = "▁"


def from_json(data: bytes, bos_id: int | None, eos_ids: Iterable[int]) -> Vocabulary:
    """A tokenizer.json. Raises LlamaError where it is neither of the two kinds that a LLaMA has."""
    spec = json.loads(data.decode("utf-8"))
    model = spec["model"]
    kind = next((make for belongs, make in KINDS if model.get("type") == "BPE" and belongs(spec)), None)
    if kind is None:
        raise LlamaError("its vocabulary is neither byte-level BPE nor SentencePiece's BPE with bytes; no LLaMA has it")
    special = {each["content"]: int(each["id"]) for each in spec.get("added_tokens") or []}
    # What is put in front of an empty text is put in front of every text; the ids stand with the rule itself.
    bare = {**spec, "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    front = tokenizers.Tokenizer.from_str(json.dumps(bare)).encode("").ids
    by_id = {**{i: token for token, i in model["vocab"].items()}, **{i: t for t, i in special.items()}}
    tokens = [by_id.get(i, "") for i in range(max(by_id) + 1)]
    encode, spelled, prefix = kind(_ordinary(spec, special), tokens, special)
    add_bos = bos_id is not None and front[:1] == [bos_id]
    return Vocabulary(encode, spelled, special, bos_id, frozenset(eos_ids), add_bos, prefix)


def _ordinary(spec: Mapping[str, Any], special: Mapping[str, int]) -> dict[str, Any]:
    """The same file without its special tokens: nothing that people write can become one."""
    model = dict(spec["model"])
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    model["merges"] = without(((a, b) for a, b in pairs), special)
    # The unknown token has to stay for the library's sake; merges cannot give it.
    model["vocab"] = {t: i for t, i in model["vocab"].items() if t not in special or t == model.get("unk_token")}
    emptied: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return {**spec, **emptied, "model": model}


Made = tuple[Callable[[str, bool], list[int]], Sequence[bytes], Prefix]


def _byte_level(spec: dict[str, Any], tokens: Sequence[str], special: Mapping[str, int]) -> Made:
    spelled = bpe.spell(tokens, set(special.values()))
    return bpe.encoder(tokenizers.Tokenizer.from_str(json.dumps(spec)), spelled), spelled, "never"


def _sentencepiece(spec: dict[str, Any], tokens: Sequence[str], special: Mapping[str, int]) -> Made:
    whole = set(special.values())
    spelled = [
        token.encode() if i in whole else (spelled_byte(token) or token.replace(SPACE, " ").encode())
        for i, token in enumerate(tokens)
    ]
    begins = tokenizers.Tokenizer.from_str(json.dumps(spec))
    later = _unprefixed(spec.get("pre_tokenizer"))
    same = later == spec.get("pre_tokenizer")
    follows = begins if same else tokenizers.Tokenizer.from_str(json.dumps({**spec, "pre_tokenizer": later}))

    def encode(text: str, first: bool) -> list[int]:
        return (begins if first else follows).encode(text, add_special_tokens=False).ids

    def spaced(first: bool) -> bool:
        return b"".join(spelled[i] for i in encode("x", first)).startswith(b" ")

    return encode, spelled, "always" if spaced(False) else "first" if spaced(True) else "never"


def _unprefixed(part: Any) -> Any:
    """A pre-tokenizer that prefixes the very first word only, as it treats the others."""
    if not isinstance(part, dict):
        return part
    if part.get("prepend_scheme") == "first":
        return {**part, "prepend_scheme": "never"}
    inner = part.get("pretokenizers")
    return {**part, "pretokenizers": [_unprefixed(each) for each in inner]} if isinstance(inner, list) else part


def _mentions(part: Any, kind: str) -> bool:
    """Whether a step of that kind is in a part of a tokenizer.json, be it in a sequence of steps."""
    if not isinstance(part, dict):
        return False
    return part.get("type") == kind or any(_mentions(each, kind) for each in part.get("decoders") or ())


# How to recognise a kind, and how to make it.
KINDS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[..., Made]], ...] = (
    (lambda spec: _mentions(spec.get("decoder"), "ByteLevel"), _byte_level),
    (lambda spec: spec["model"].get("byte_fallback") is True and "<0x0A>" in spec["model"]["vocab"], _sentencepiece),
)
