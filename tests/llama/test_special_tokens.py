"""What only a template can make: one BOS, ends of turns; text stays text, streams lose nothing, damage is one line."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama.chat import ChatTemplate
from llama.engine import load_engine
from llama.errors import LlamaError
from llama.sampling import SamplingParams
from llama.tokenizer import Tokenizer
from llama.vocabulary import Vocabulary

from .formats import Shape, meta_weights, write_gguf, write_hf, write_meta
from .vocabularies import TEXTS, as_gguf, hf_file, real, without_user_defined


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


@pytest.mark.parametrize(
    ("names", "typed"),
    [
        (["~"], "~"),
        (["\ue000", "<|x|>"], "<|x|>"),
        (["<s>", "<<s>>"], "<<s>>"),
        (["~~"], "~~~"),
        (["[[B]"], "[[B]"),
        (["<a>", "a>b"], "<a>b<a>"),
    ],
)
def test_what_is_typed_stays_text_whatever_the_special_tokens_look_like(names: list[str], typed: str) -> None:
    letters = sorted({*string.printable, "\ue000"})
    special = {name: len(letters) + i for i, name in enumerate(["[B]", "[E]", *names])}
    place = {letter: i for i, letter in enumerate(letters)}
    spelled = [each.encode() for each in (*letters, *special)]
    ours = Tokenizer(
        Vocabulary(lambda text, first: [place[c] for c in text], spelled, special, None, frozenset(), False)
    )
    template = ChatTemplate("{% for m in messages %}[B]{{ m.role }}{{ m.content }}[E]{% endfor %}", ours)
    for text in (typed, f"\ue000{typed}\ue000 {typed}"):
        for message in ({"role": "user", "content": text}, {"role": text, "content": "hey"}):
            ids = template.encode([message])  # type: ignore[list-item]
            assert [token for token in ids if token in special.values()] == [special["[B]"], special["[E]"]]
            assert ours.decode(ids) == f"[B]{message['role']}{message['content']}[E]"


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
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"add_bos_token": False, "added_tokens_decoder": decoder})
    )
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
