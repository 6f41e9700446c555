"""Every kind of vocabulary beside the library that defines it: the same ids, and nothing lost."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama import bpe
from llama.chat import ChatTemplate
from llama.tokenizer import Tokenizer

from .texts import CHINESE, NASTY
from .vocabularies import TEXTS, ModelProto, as_gguf, hf_file, real, without_user_defined


@pytest.mark.parametrize("gguf", [False, True])
def test_sentencepiece_ids(spm_path: Path, gguf: bool) -> None:
    ours = Tokenizer.from_gguf(as_gguf(spm_path)) if gguf else Tokenizer.from_model(spm_path)
    theirs = without_user_defined(spm_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == text == theirs.decode(ids)
    assert (ours.bos_id, ours.eos_ids, ours.add_bos) == (1, {2}, True)
    assert ours.vocab_size == theirs.get_piece_size()


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_characters="▁"), max_size=60))
def test_sentencepiece_ids_of_any_text(tiny_spm: Path, text: str) -> None:
    ours = Tokenizer.from_model(tiny_spm)
    plain = text.encode("utf-8", "replace").decode()
    ids = ours.encode(text)
    assert ids == without_user_defined(tiny_spm).encode(plain)
    assert ours.decode(ids) == plain


def test_llama2_golden() -> None:
    """What transformers' documentation shows, and what people asked about most: digits, Chinese, line breaks."""
    ours = Tokenizer.from_model(real("llama2-sentencepiece.model"))
    assert ours.encode("Hello this is a test") == [15043, 445, 338, 263, 1243]
    assert ours.encode("中文") == [29871, 30275, 30333]
    assert ours.encode("12345") == [29871, 29896, 29906, 29941, 29946, 29945]
    assert ours.encode("羊驼\n") == [29871, 234, 193, 141, 236, 172, 191, 13]
    assert ours.encode("don't") == [1016, 29915, 29873]
    assert ours.encode("\n\n") == [29871, 13, 13]


def test_transformers_agrees_on_llama2(tmp_path: Path) -> None:
    """On text without runs of spaces: there transformers 5 merges by the order of pieces, not by their scores."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(real("llama2-sentencepiece.model").read_bytes())
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_model(tmp_path / "tokenizer.model")
    compared = [text for text in TEXTS if "  " not in text and text[:1] != " "]
    assert len(compared) > 15
    for text in compared:
        ids = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours.encode(text) == ids, text


def test_transformers_own_file_of_llama2(tmp_path: Path) -> None:
    """The tokenizer.json that transformers writes, read back: its ids, whatever one thinks of them."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(real("llama2-sentencepiece.model").read_bytes())
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "out")
    ours = Tokenizer.from_hf(tmp_path / "out" / "tokenizer.json", 1, [2])
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids, text


def test_a_prolonged_vocabulary(tmp_path: Path, tiny_spm: Path) -> None:
    """Chinese-LLaMA appends pieces that all have the score 0, so that they come before every other merge."""
    model = ModelProto()
    model.ParseFromString(tiny_spm.read_bytes())
    known = {piece.piece for piece in model.pieces}
    for new in ("的第", "星期", "第三", "三个", "一头", "头一", "羊驼群"):
        if new not in known:
            model.pieces.add(piece=new, score=0.0, type=1)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    theirs = without_user_defined(path)
    assert theirs.encode(CHINESE) != without_user_defined(tiny_spm).encode(CHINESE)
    for text in (CHINESE, "一头一头的第三个", *NASTY):
        ids = theirs.encode(text)
        assert Tokenizer.from_model(path).encode(text) == ids == Tokenizer.from_gguf(as_gguf(path)).encode(text)


def test_no_space_in_front_where_the_file_says_so(tiny_spm: Path) -> None:
    ours = Tokenizer.from_gguf(as_gguf(tiny_spm, add_space_prefix=False))
    spaced = Tokenizer.from_gguf(as_gguf(tiny_spm))
    assert next(spaced.bytes_of(t)[:1] for t in spaced.encode("animal")) == b" "
    assert next(ours.bytes_of(t)[:1] for t in ours.encode("animal")) == b"a"
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text


def test_llama3_ids(llama3: Tokenizer, oracle3: Any) -> None:
    for text in TEXTS:
        ids = llama3.encode(text)
        assert ids == oracle3.encode(text, disallowed_special=()), text
        assert llama3.decode(ids) == text
    # Runs, where one token can be cut in several ways and the order of equal ranks shows.
    for character in " \t\n-=_*#.aA0中。—═ſ\u3000\u00a0":
        for length in (*range(1, 40), 83, 128, 200):
            text = f"a{character * length}"
            assert llama3.encode(text) == oracle3.encode(text), (character, length)


def test_llama3_golden(llama3: Tokenizer) -> None:
    assert llama3.encode("Hello world") == [9906, 1917]
    assert llama3.encode("中文") == [108891]
    assert llama3.encode("12345") == [4513, 1774]
    assert llama3.encode("羊驼\n") == [123815, 77180, 120, 198]
    assert llama3.encode("don't DON'T") == [15357, 956, 45373, 17773]
    assert llama3.encode(" \n\n  x") == [4815, 220, 865]
    assert llama3.vocab_size == 128_256
    assert llama3.eos_ids == {128_001, 128_008, 128_009}
    assert (llama3.bos_id, llama3.special["<|eot_id|>"], llama3.special["<|start_header_id|>"]) == (
        128_000,
        128_009,
        128_006,
    )
    assert llama3.special["<|reserved_special_token_247|>"] == 128_255


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_llama3_ids_of_any_text(llama3: Tokenizer, oracle3: Any, text: str) -> None:
    plain = text.encode("utf-8", "replace").decode()
    assert llama3.encode(text) == oracle3.encode(plain, disallowed_special=())
    assert llama3.decode(llama3.encode(text)) == plain


def test_llama3_from_gguf(llama3_gguf: dict[str, Any], oracle3: Any) -> None:
    ours = Tokenizer.from_gguf(llama3_gguf)
    merged = {merge.replace(" ", "") for merge in llama3_gguf["tokenizer.ggml.merges"]}
    whole = [ours.decode([i]) for i, token in enumerate(llama3_gguf["tokenizer.ggml.tokens"]) if token not in merged]
    assert len(whole) > 500, "tokens that no merge gives: a word that is one is taken as it is"
    for text in [*TEXTS, *(text for text in whole if "\ufffd" not in text and not text.startswith("<|"))]:
        assert ours.encode(text) == oracle3.encode(text, disallowed_special=()), text
    assert ours.add_bos, "llama-bpe wants one where the file does not say"
    assert ours.eos_ids == {128_001, 128_008, 128_009}, "a GGUF file names only one of them"


def test_transformers_agrees_on_llama3(llama3: Tokenizer) -> None:
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    path = real("llama3-tiktoken.model")
    theirs = convert.TikTokenConverter(vocab_file=str(path), pattern=bpe.LLAMA3_WORDS).converted()
    for text in TEXTS:
        assert llama3.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("prepend", ["normalizer", "always", "first", "never"])
def test_sentencepiece_in_a_tokenizer_json(tmp_path: Path, tiny_spm: Path, prepend: str) -> None:
    theirs = hf_file(tmp_path / "tokenizer.json", tiny_spm, prepend)
    ours = Tokenizer.from_hf(tmp_path / "tokenizer.json", 1, [2])
    theirs.encode_special_tokens = True  # what is typed stays text there too
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        if prepend == "normalizer" or not text.startswith(" "):  # Metaspace adds none to a text that has one
            assert ours.decode(ids) == text
    if prepend == "normalizer":
        assert [ours.encode(text) for text in TEXTS] == [without_user_defined(tiny_spm).encode(text) for text in TEXTS]
    # Text behind a special token is spaced as that file has it.
    theirs.encode_special_tokens = False
    chat = ChatTemplate("{{ bos_token }}animal{{ eos_token }}snow {{ messages[0].content }}", ours)
    expected = theirs.encode("<s>animal</s>snow  the bridge", add_special_tokens=False).ids
    assert chat.encode([{"role": "user", "content": " the bridge"}]) == expected
    assert ours.add_bos


def test_a_small_file_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs no real vocabulary: 256 bytes and a few dozen merges, against tiktoken."""
    tiktoken = pytest.importorskip("tiktoken")
    learnt = [
        "th",
        "he",
        "the",
        "in",
        "er",
        "an",
        "",
        "t",
        "",
        "a",
        "",
        "w",
        "",
        "ll",
        "lla",
        "ama",
        "llama",
        "羊",
        "驼",
        "羊驼",
        "\n\n",
        "aa",
        "aaa",
        "aaaa",
        "12",
        "123",
    ]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [token.encode() for token in dict.fromkeys(learnt) if len(token.encode()) > 1]
    ranks = {token: i for i, token in enumerate(tokens)}
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for token, i in ranks.items()))
    monkeypatch.setattr(bpe, "LLAMA3_RANKS", len(ranks))
    ours = Tokenizer.from_model(path)
    theirs = tiktoken.Encoding("small", pat_str=bpe.LLAMA3_WORDS, mergeable_ranks=ranks, special_tokens={})
    for text in [*TEXTS, "llama the lla 羊驼", *("a" * n for n in range(1, 20)), "12345", "1234567"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, disallowed_special=()), text
        assert ours.decode(ids) == text
    assert ours.encode("llama") == [ranks[b"llama"]], "a word that is a token is taken whole"
    assert ours.special["<|begin_of_text|>"] == ours.bos_id == len(ranks)
    assert ours.eos_ids == {len(ranks) + 1, len(ranks) + 8, len(ranks) + 9}
    assert ours.vocab_size == len(ranks) + 256
