"""Every kind of vocabulary beside the library that defines it: the same ids, nothing lost, nothing made special."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from llama import bpe
from llama.chat import ChatTemplate
from llama.engine import load_engine
from llama.errors import LlamaError
from llama.sampling import SamplingParams
from llama.tokenizer import Tokenizer

from .formats import Shape, meta_weights, write_gguf, write_hf, write_meta
from .texts import CHINESE, CODE, DIGITS_CUT_OFF, ENGLISH, NASTY

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
TEXTS = [*NASTY, *DIGITS_CUT_OFF, ENGLISH, CHINESE, "\n".join(NASTY)]
ModelProto: Any = vars(sentencepiece_model_pb2)["ModelProto"]


def real(name: str) -> Path:
    if not (REAL / name).is_file():
        pytest.skip(f"the real vocabulary is not beside this repository (../shared/data/tokenizers/{name})")
    return REAL / name


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


def kinds(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Callable[[], Tokenizer]]:
    def tiny() -> Path:
        found: Path = request.getfixturevalue("tiny_spm")
        return found

    def json_file() -> Tokenizer:
        hf_file(tmp_path / "tokenizer.json", tiny(), "normalizer")
        return Tokenizer.from_hf(tmp_path / "tokenizer.json", 1, [2])

    return {
        "sentencepiece": lambda: Tokenizer.from_model(tiny()),
        "gguf": lambda: Tokenizer.from_gguf(as_gguf(tiny())),
        "tokenizer.json": json_file,
        "llama2": lambda: Tokenizer.from_model(real("llama2-sentencepiece.model")),
        "llama3": lambda: request.getfixturevalue("llama3"),
        "llama3 gguf": lambda: Tokenizer.from_gguf(request.getfixturevalue("llama3_gguf")),
    }


@pytest.fixture(params=["sentencepiece", "gguf", "tokenizer.json", "llama2", "llama3", "llama3 gguf"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return kinds(request, tmp_path)[request.param]()


def test_text_never_becomes_a_special_token(tokenizer: Tokenizer) -> None:
    special = set(tokenizer.special.values())
    for spelled in [*tokenizer.special, "<|eot_id|>", "</s>", "<s>", "<unk>", "<0x0A>", "<|im_start|>"]:
        for text in (spelled, f"a {spelled} b{spelled}", f"{spelled}{spelled}"):
            ids = tokenizer.encode(text)
            assert not special & set(ids), text
            assert tokenizer.decode(ids) == text


TEMPLATES = {
    "spells it": "{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
    "does not": "[INST] {{ messages[0].content }} [/INST]",
    "spells it twice": "{{ bos_token }}{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_exactly_one_bos(tokenizer: Tokenizer, name: str) -> None:
    """Whether the template writes it or not; and what somebody types is never one more."""
    typed = "<s> <|begin_of_text|> </s> hey"
    ids = ChatTemplate(TEMPLATES[name], tokenizer).encode([{"role": "user", "content": typed}])
    assert ids.count(tokenizer.bos_id) == 1  # type: ignore[arg-type]
    assert ids[0] == tokenizer.bos_id
    assert ids[1:] == tokenizer.encode(f"[INST] {typed} [/INST]")


def test_no_bos_where_none_is_wanted(tiny_spm: Path) -> None:
    ours = Tokenizer.from_gguf(as_gguf(tiny_spm, add_bos_token=False))
    message: Any = [{"role": "user", "content": "hey"}]
    assert ChatTemplate(TEMPLATES["does not"], ours).encode(message).count(1) == 0
    assert ChatTemplate(TEMPLATES["spells it"], ours).encode(message).count(1) == 1


def test_a_conversation_as_meta_encodes_it(spm_path: Path) -> None:
    """Llama 2: every turn is a text of its own between BOS and EOS, with the space in front that its words have."""
    ours, theirs = Tokenizer.from_model(spm_path), without_user_defined(spm_path)
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    ids = ChatTemplate(source, ours).encode(
        [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "the bridge"},
        ]
    )
    first, second = theirs.encode("[INST] 你好 [/INST] Hi. "), theirs.encode("[INST] the bridge [/INST]")
    assert ids == [1, *first, 2, 1, *second]
    assert ours.decode(ids) == "<s>[INST] 你好 [/INST] Hi. </s><s>[INST] the bridge [/INST]"


def test_streams_lose_nothing(tokenizer: Tokenizer) -> None:
    """Token by token: spaces between words stay, characters come whole, and only what the encoder added goes."""
    for text in TEXTS:
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        pieces = [stream.push(token) for token in ids]
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) + stream.flush() == text
    ids = tokenizer.encode("🦙")
    assert tokenizer.decode(ids[:-1]) == "\ufffd"
    assert tokenizer.bytes_of(tokenizer.vocab_size + 7) == b"", "of a model whose table is padded"


def test_a_folder_with_a_sentencepiece_file_alone(tmp_path: Path, tiny_spm: Path) -> None:
    """Special tokens behind the file's end stand in two other files, and several ids end a turn."""
    from llama.checkpoint import open_checkpoint

    size = Tokenizer.from_model(tiny_spm).vocab_size
    (tmp_path / "tokenizer.model").write_bytes(tiny_spm.read_bytes())
    path = write_hf(tmp_path / "m", Shape(vocabulary=size + 2), meta_weights(Shape(vocabulary=size + 2)))
    config = json.loads((path / "config.json").read_text()) | {"bos_token_id": 1, "eos_token_id": [2]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, size + 1]}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": size}))
    decoder = {"0": {"content": "<unk>"}, str(size + 1): {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    ours = open_checkpoint(tmp_path).tokenizer()
    assert ours.vocab_size == size + 2
    assert (ours.special["[PAD]"], ours.special["<|im_end|>"]) == (size, size + 1)
    assert ours.eos_ids == {2, size + 1}
    assert ours.decode([size + 1]) == "<|im_end|>" == ours.decode(ours.encode("<|im_end|>"))
    assert ours.add_bos
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    assert not open_checkpoint(tmp_path).tokenizer().add_bos
    # A table without rows for them: what a template could make would be out of its range.
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": size + 1, "eos_token_id": 2}))
    smaller = open_checkpoint(tmp_path).tokenizer()
    assert smaller.vocab_size == size + 1
    assert sorted(smaller.special.values())[-1] == size
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": size - 1}))
    with pytest.raises(LlamaError, match="do not belong together"):
        open_checkpoint(tmp_path).tokenizer()


def damages(tiny_spm: Path) -> dict[str, Callable[[Path], Tokenizer]]:
    data = tiny_spm.read_bytes()
    gguf = as_gguf(tiny_spm)

    def file(content: bytes) -> Callable[[Path], Tokenizer]:
        def read(folder: Path) -> Tokenizer:
            (folder / "tokenizer.model").write_bytes(content)
            return Tokenizer.from_model(folder / "tokenizer.model")

        return read

    def changed(**values: Any) -> Callable[[Path], Tokenizer]:
        return lambda folder: Tokenizer.from_gguf(gguf | {f"tokenizer.ggml.{k}": v for k, v in values.items()})

    return {
        "empty": file(b""),
        "cut short": file(data[: len(data) // 2]),
        "a page": file(b"<html>404</html>"),
        "other ranks": file(b"IQ== 0\nIg== 1\n"),
        "half a line": file(b"IQ== 0\nIg==\n"),
        "too few scores": changed(scores=[0.0]),
        "no types": changed(token_type=None),
        "twice the same": changed(tokens=["<unk>"] * len(gguf["tokenizer.ggml.tokens"])),
    }


@pytest.mark.parametrize(
    "name",
    ["empty", "cut short", "a page", "other ranks", "half a line", "too few scores", "no types", "twice the same"],
)
def test_damaged_vocabularies_are_one_line(tmp_path: Path, tiny_spm: Path, name: str) -> None:
    with pytest.raises(LlamaError) as caught:
        damages(tiny_spm)[name](tmp_path)
    assert "\n" not in str(caught.value)


def test_a_conversation_is_the_same_in_every_format(tmp_path: Path, tiny_spm: Path) -> None:
    """From file to answer: the same ids of the prompt, the same tokens and text, whatever the model was stored as."""
    source = "{% for m in messages %}{{ bos_token }}[INST] {{ m.content }} [/INST]{% endfor %}"
    shape = Shape(vocabulary=Tokenizer.from_model(tiny_spm).vocab_size)
    weights = meta_weights(shape)
    vocabulary = as_gguf(tiny_spm) | {"tokenizer.chat_template": source}
    paths = [
        write_hf(tmp_path / "hf", shape, weights, 2),
        write_meta(tmp_path / "meta", shape, weights, 2),
        write_gguf(tmp_path / "m.gguf", shape, weights, vocabulary=vocabulary),
    ]
    for path in paths[:2]:
        (path / "tokenizer.model").write_bytes(tiny_spm.read_bytes())
        (path / "chat_template.jinja").write_text(source)
    config = json.loads((paths[0] / "config.json").read_text())
    (paths[0] / "config.json").write_text(json.dumps(config | {"bos_token_id": 1, "eos_token_id": 2}))
    answers = set()
    for path in paths:
        engine = load_engine(path, "cpu", "float32")
        prompt = engine.encode_chat([{"role": "user", "content": "the bridge </s> 羊驼"}])
        generation = engine.generate(prompt, SamplingParams(max_tokens=40))
        text = "".join(generation)
        assert text == engine.tokenizer.decode(generation.tokens)
        answers.add((tuple(prompt), tuple(generation.tokens), text))
    ((prompt_ids, tokens, _),) = answers
    assert prompt_ids.count(1) == 1
    assert 2 not in prompt_ids
    assert len(tokens) > 3
