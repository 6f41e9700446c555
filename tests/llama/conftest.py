"""The shipped model beside its oracle (transformers on the same GGUF file), and vocabularies of every kind."""

from __future__ import annotations

import base64
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from llama import bpe
from llama.engine import Engine, load_engine
from llama.tokenizer import Tokenizer

from .texts import CHINESE, CODE, ENGLISH
from .vocabularies import real


@pytest.fixture(scope="session")
def engine(gguf_path: Path) -> Engine:
    return load_engine(gguf_path, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def fast(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """As it answers by default on a CPU: quantized, with the compiled step."""
    return load_engine(gguf_path, device="cpu", quant="int4", cache=tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="session")
def oracle_tokenizer(gguf_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)


@pytest.fixture(scope="session")
def oracle(gguf_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model as LLaMA's: BPE with bytes, a space in front, nothing normalized."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([ENGLISH, CHINESE, CODE] * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=700,
        character_coverage=0.99,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<|im_start|>"],
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    path.write_bytes(written.getvalue())
    return path


@pytest.fixture(params=["tiny", "llama2"])
def spm_path(request: pytest.FixtureRequest) -> Path:
    if request.param == "llama2":
        return real("llama2-sentencepiece.model")
    found: Path = request.getfixturevalue("tiny_spm")
    return found


@pytest.fixture(scope="session")
def llama3() -> Tokenizer:
    return Tokenizer.from_model(real("llama3-tiktoken.model"))


@pytest.fixture(scope="session")
def ranks() -> dict[bytes, int]:
    lines = real("llama3-tiktoken.model").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


@pytest.fixture(scope="session")
def oracle3(ranks: dict[bytes, int]) -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    return tiktoken.Encoding("llama3", pat_str=bpe.LLAMA3_WORDS, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="session")
def llama3_gguf(ranks: dict[bytes, int]) -> dict[str, Any]:
    """The metadata of a Llama 3 GGUF file: tokens in visible characters, and for each one merge."""
    written = {token: "".join(bpe.CHARACTERS[byte] for byte in token) for token in ranks}

    def parts(token: bytes) -> list[bytes]:
        """What lower ranks make of it: two tokens, or more for one that only a whole word can be."""
        found = [bytes([byte]) for byte in token]
        while True:
            rank, at = min((ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(itertools.pairwise(found)))
            if rank >= ranks[token]:
                return found
            found[at : at + 2] = [found[at] + found[at + 1]]

    cut = [parts(token) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    merges = [" ".join(map(written.__getitem__, pair)) for pair in cut if len(pair) == 2]
    assert 0 < len(cut) - len(merges) < 2000
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*written.values(), *bpe.LLAMA3_SPECIAL],
        "tokenizer.ggml.token_type": [1] * len(ranks) + [3] * 256,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 128_000,
        "tokenizer.ggml.eos_token_id": 128_009,
    }
