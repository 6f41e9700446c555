"""Vocabularies to test with: the real ones, small ones, and as each format stores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from .texts import CHINESE, DIGITS_CUT_OFF, ENGLISH, NASTY

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
TEXTS = [*NASTY, *DIGITS_CUT_OFF, ENGLISH, CHINESE, "\n".join(NASTY)]
ModelProto: Any = vars(sentencepiece_model_pb2)["ModelProto"]


def real(name: str) -> Path:
    if not (REAL / name).is_file():
        pytest.skip(f"the real vocabulary is not beside this repository (../shared/data/tokenizers/{name})")
    return REAL / name


def without_user_defined(path: Path) -> Any:
    """The library's own processor, except that no text becomes a user-defined token."""
    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    for piece in model.pieces:
        piece.type = 3 if piece.type == 4 else piece.type
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def as_gguf(path: Path, **changed: Any) -> dict[str, Any]:
    """The metadata that a converter writes for a SentencePiece model."""
    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.piece for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in model.pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in changed.items()},
    }


def hf_file(path: Path, tiny_spm: Path, prepend: str) -> Any:
    """A tokenizer.json of SentencePiece kind: as Llama 2's with a normalizer, or with Metaspace in a scheme."""
    tokenizers = pytest.importorskip("tokenizers")
    model = ModelProto()
    model.ParseFromString(tiny_spm.read_bytes())
    vocabulary = {piece.piece: i for i, piece in enumerate(model.pieces)}
    by_score = sorted((p for p in model.pieces if p.type == 1 and len(p.piece) > 1), key=lambda p: -p.score)
    merges = [
        (p.piece[:cut], p.piece[cut:])
        for p in by_score
        for cut in range(1, len(p.piece))
        if p.piece[:cut] in vocabulary and p.piece[cut:] in vocabulary
    ]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if prepend == "normalizer":
        made.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        )
    else:
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace("▁", prepend, split=False)
    steps = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    made.decoder = tokenizers.decoders.Sequence([*steps, tokenizers.decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<|im_start|>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(path))
    return made
