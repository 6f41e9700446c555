"""SentencePiece vocabularies (Kudo & Richardson 2018) of Llama 1 and 2, from their own file or a GGUF file.

Both are run by the `sentencepiece` library: what a GGUF file holds are the pieces, scores and types of the model that
it was made from, so the same model can be put together again. Rank-based merging (as in a tokenizer.json) is not the
same where scores tie, which they do in vocabularies that were prolonged (Chinese-LLaMA).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from llama.errors import LlamaError
from llama.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, gguf_ends, spelled_byte

ModelProto: Any = vars(proto)["ModelProto"]  # generated code, without types
BPE = 2  # TrainerSpec.ModelType
SPACE = "▁"


def from_file(data: bytes) -> Vocabulary:
    """A tokenizer.model; `add_bos` as Meta's LLaMA has it."""
    model = ModelProto()
    model.ParseFromString(data)
    if not model.pieces:
        raise LlamaError("its tokenizer.model is neither SentencePiece's nor tiktoken's; fetch it again")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise LlamaError("its vocabulary puts white space behind words, which no LLaMA does")
    processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    bos, eos = processor.bos_id(), processor.eos_id()
    return _vocabulary(model, bos if bos >= 0 else None, {eos} - {-1}, add_bos=True)


def from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """A GGUF vocabulary of kind 'llama'."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    types = [int(kind) for kind in metadata["tokenizer.ggml.token_type"]]
    if not len(tokens) == len(scores) == len(types):
        raise LlamaError(f"its vocabulary has {len(tokens)} tokens, {len(scores)} scores and {len(types)} types")
    if UNKNOWN not in types:
        types[int(metadata.get("tokenizer.ggml.unknown_token_id", 0))] = UNKNOWN
    model = ModelProto()
    for i, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        # A nameless token pads the vocabulary; the library wants a name, and a control token's is never met in text.
        model.pieces.add(piece=token or f"<padding {i}>", score=score, type=kind if token else CONTROL)
    model.trainer_spec.model_type = BPE
    model.trainer_spec.byte_fallback = BYTE in types
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = bool(
        metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
    )
    special = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in _SPECIAL}
    bos = metadata.get("tokenizer.ggml.bos_token_id", 1)
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", True))
    return _vocabulary(model, int(bos), gguf_ends(metadata, special), add_bos)


_SPECIAL = (UNKNOWN, CONTROL, USER_DEFINED)


def _vocabulary(model: Any, bos_id: int | None, eos_ids: Iterable[int], add_bos: bool) -> Vocabulary:
    special = {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type in _SPECIAL}
    spelled = [_spelled(piece) for piece in model.pieces]
    for piece in model.pieces:
        # The library finds user-defined pieces in any text; a control token's name stays text.
        if piece.type == USER_DEFINED:
            piece.type = CONTROL
    prefix = model.normalizer_spec.add_dummy_prefix
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    return Vocabulary(
        _encoder(processor), spelled, special, bos_id, frozenset(eos_ids), add_bos, "always" if prefix else "never"
    )


def _spelled(piece: Any) -> bytes:
    token: str = piece.piece
    if piece.type == BYTE:
        return spelled_byte(token) or b""
    return token.encode() if piece.type in _SPECIAL else token.replace(SPACE, " ").encode()


def _encoder(processor: Any) -> Callable[[str, bool], list[int]]:
    def encode(text: str, first: bool) -> list[int]:
        # Each text between special tokens gets its space, as Meta's own code and the writers of GGUF files have it.
        ids: list[int] = processor.encode(text)
        return ids

    return encode
