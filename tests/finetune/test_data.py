"""Data files to ids and masks: forms, faults, what is learned, and what a dataset is like."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune.config import Config, options_of
from finetune.data.encode import Encoder
from finetune.data.grounded import GroundedQuestion, conversations, grounded
from finetune.data.quality import language, quality
from finetune.data.readers import READERS, Layout
from finetune.data.samples import Faults, Sample
from finetune.errors import FinetuneError
from finetune.run import Prepared, prepare, shown
from llama.chat import ChatTemplate
from llama.checkpoint import open_checkpoint
from llama.tokenizer import Tokenizer

Spoken = tuple[Tokenizer, ChatTemplate]


@pytest.fixture(scope="module")
def spoken(gguf_path: Path) -> Spoken:
    checkpoint = open_checkpoint(gguf_path)
    tokenizer = checkpoint.tokenizer()
    assert checkpoint.chat_template is not None
    return tokenizer, ChatTemplate(checkpoint.chat_template, tokenizer)


def config(path: Path, form: str, **more: Any) -> Config:
    train = more.pop("train", {})
    data = [{"file": str(path), "format": form, **more.pop("data", {})}]
    method = more.pop("method", {"name": "lora"})
    return Config(name="x", method=method, data=data, train={"val_size": 0, **train}, **more)


def prepared(spoken: Spoken, path: Path, form: str, **more: Any) -> Prepared:
    return prepare(config(path, form, **more), *spoken, {})


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def learned(found: Prepared, tokenizer: Tokenizer) -> list[list[str]]:
    """What is learned of each example, a text for each stretch."""
    return [[part.split("⟧")[0] for part in shown(example, tokenizer).split("⟦")[1:]] for example in found.training]


TALK = [("user", "Where?"), ("assistant", "Here."), ("user", "When?"), ("assistant", "Now.")]
FORMS = {
    "messages": {"messages": [{"role": role, "content": text} for role, text in TALK]},
    "sharegpt": {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": t} for r, t in TALK]},
    "alpaca": {"instruction": "When?", "input": "", "output": "Now.", "history": [["Where?", "Here."]]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_in_every_form(form: str, spoken: Spoken, tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", [FORMS[form]])
    found = prepared(spoken, path, form)
    assert learned(found, spoken[0]) == [["Here.<|im_end|>", "Now.<|im_end|>"]]
    assert learned(prepared(spoken, path, form, train={"mask_history": True}), spoken[0]) == [["Now.<|im_end|>"]]
    ids = found.training[0].ids
    asked = spoken[1].encode([{"role": r, "content": t} for r, t in TALK[:3]])
    assert list(ids[: len(asked)]) == asked, "the prompt is the one that serving builds"
    assert ids[-1] in spoken[0].eos_ids, "the last thing learned is to stop"
    whole = prepared(spoken, path, form, train={"train_on_prompt": True}).training[0]
    assert all(whole.learned)
    assert whole.supervised == len(whole.ids) - 1


def test_a_json_list_is_read_as_lines_are(spoken: Spoken, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([FORMS["messages"]]))
    assert learned(prepared(spoken, path, "messages"), spoken[0]) == [["Here.<|im_end|>", "Now.<|im_end|>"]]


def test_alpaca_prompts_learn_output_and_end_only(spoken: Spoken, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "La."},
        {"instruction": "Seed.", "instances": [{"input": "", "output": "Grown."}]},
    ]
    found = prepared(spoken, written(tmp_path / "a.jsonl", rows), "alpaca", train={"template": "alpaca"})
    end = spoken[0].decode([min(spoken[0].eos_ids)])
    assert learned(found, spoken[0]) == [[f"3{end}"], [f"La.{end}"], [f"Grown.{end}"]]
    first, second, _ = (shown(e, spoken[0]) for e in found.training)
    assert "further context" in first
    assert "### Input:\n1 and 2\n\n### Response:⟦" in first
    assert "further context" not in second
    assert second.endswith(f"### Instruction:\nSing.\n\n### Response:⟦La.{end}⟧")


def test_alpaca_prompts_have_the_whole_instruction_and_the_whole_input(spoken: Spoken, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.\nThen stop.", "input": "1\n2", "output": "3"},
        {"instruction": "Sing.\nThen stop.", "output": "La."},
    ]
    found = prepared(spoken, written(tmp_path / "a.jsonl", rows), "alpaca", train={"template": "alpaca"})
    first, second = (shown(e, spoken[0]) for e in found.training)
    assert "### Instruction:\nAdd.\nThen stop.\n\n### Input:\n1\n2\n\n### Response:⟦3" in first
    assert "### Instruction:\nSing.\nThen stop.\n\n### Response:⟦La." in second


@pytest.mark.parametrize("more", [{"system": "Be kind."}, {"history": [["a", "b"]]}])
def test_alpaca_prompts_have_no_place_for_more(more: dict[str, Any], spoken: Spoken, tmp_path: Path) -> None:
    rows = [{"instruction": "Sing.", "output": "La.", **each} for each in ({}, more)]
    path = written(tmp_path / "a.jsonl", rows)
    found = prepared(spoken, path, "alpaca", train={"template": "alpaca"})
    assert len(found.training) == 1
    [line] = found.faults.lines
    assert line.startswith(f'{path}:2: template = "alpaca" takes one question and one answer, no system message')


def test_an_answer_of_weight_0_is_not_learned(spoken: Spoken, tmp_path: Path) -> None:
    def row(*weights: Any) -> dict[str, Any]:
        turns = FORMS["messages"]["messages"]
        return {"messages": [dict(turns[0]), {**turns[1], "weight": weights[0]}, dict(turns[2]),
                             {**turns[3], "weight": weights[1]}]}  # fmt: skip

    path = written(tmp_path / "a.jsonl", [row(0, 1), row(1, 0), row(0, 0), row(1, 0.5)])
    found = prepared(spoken, path, "messages")
    assert learned(found, spoken[0]) == [["Now.<|im_end|>"], ["Here.<|im_end|>"]], "though their turns are the same"
    assert found.quality.duplicates == 0
    assert sorted(found.faults.lines) == [
        f"{path}:3: no token of it would be learned; it is left out",
        f"{path}:4: an answer has the weight 0.5; there are 0 and 1; it is left out",
    ]
    found = prepared(spoken, written(path, [row(0, 1)]), "messages", train={"train_on_prompt": True})
    assert "train_on_prompt learns all there is" in found.faults.lines[0]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"history": 5}, "'history' is not a list of pairs of texts"),
        ({"history": [["a"]]}, "'history' is not a list of pairs of texts"),
        ({"history": [["a", 5]]}, "'history' is not a list of pairs of texts"),
        ({"system": 7}, "'system' is not a text"),
        ({"input": ["z"]}, "'input' is not a text"),
    ],
)
def test_a_column_of_another_kind_is_one_sample_s_fault(
    more: dict[str, Any], told: str, spoken: Spoken, tmp_path: Path
) -> None:
    row = {"instruction": "Sing.", "input": None, "output": "La.", "system": None, "history": None}
    path = written(tmp_path / "a.jsonl", [{**row, **more}, row])
    found = prepared(spoken, path, "alpaca")
    assert len(found.training) == 1
    [line] = found.faults.lines
    assert line.startswith(f"{path}:1: {told}")
    path = written(path, [{**FORMS["messages"], "system": 7}, FORMS["messages"]])
    assert prepared(spoken, path, "messages").faults.lines == [f"{path}:1: 'system' is not a text; it is left out"]


def test_special_tokens_in_data_stay_text(spoken: Spoken, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "a <|im_end|> b"}]}
    example = prepared(spoken, written(tmp_path / "a.jsonl", [row]), "messages").training[0]
    ends = [k for k, (i, flag) in enumerate(zip(example.ids, example.learned, strict=True)) if flag and i == 2]
    assert ends == [len(example.ids) - 1]


def test_chinese_is_learned_whole(spoken: Spoken, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "羊驼吃什么？"}, {"role": "assistant", "content": " 干草。🦙\n"}]}
    found = prepared(spoken, written(tmp_path / "a.jsonl", [row]), "messages")
    assert learned(found, spoken[0]) == [["干草。🦙<|im_end|>"]]
    assert found.quality.languages == {"zh": 1}


BAD = [
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}, "an answer is empty"),
    ({"messages": [{"role": "user", "content": "a"}]}, "no answer to learn from"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "nothing was asked"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "a turn without a known 'role'"),
    ({"text": "a"}, "no list 'messages' (it has text)"),
    (["a"], "not an object"),
    ({"messages": [{"role": "user", "content": "long " * 600}, {"role": "assistant", "content": "b"}]}, "it takes 6"),
]


def test_single_faults_are_told_and_the_rest_is_used(spoken: Spoken, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [*(row for row, _ in BAD), FORMS["messages"]])
    path.write_text(path.read_text() + "\n{not json\n")
    found = prepared(spoken, path, "messages", train={"cutoff_len": 256})
    assert len(found.training) == 1
    lines = sorted(found.faults.lines)
    for number, (_, told) in enumerate(BAD, 1):
        assert any(line.startswith(f"{path}:{number}: {told}") for line in lines), told
    assert any(":9: not JSON; it is left out" in line for line in lines)
    assert found.quality.left_out == len(BAD) + 1
    assert found.quality.too_long == 1


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        (
            "alpaca",
            '{"question": "a", "answer": "b"}',
            "no text in 'instruction' and 'output' (it has question, answer)",
        ),
        ("messages", "", "is empty"),
        ("messages", "[1", "is not JSON"),
        ("mesages", "{}", "no data format 'mesages'; did you mean 'messages'?"),
        ("text", "plain", 'stage = "pretrain" trains on'),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    form: str, text: str, told: str, spoken: Spoken, tmp_path: Path
) -> None:
    (tmp_path / "a.x").write_text(text)
    with pytest.raises(FinetuneError) as raised:
        prepared(spoken, tmp_path / "a.x", form)
    assert told in str(raised.value)
    with pytest.raises(FinetuneError, match="there is no data file"):
        prepared(spoken, tmp_path / "none", "messages")


def test_a_row_ends_where_its_line_does(spoken: Spoken, tmp_path: Path) -> None:
    """Not at U+2028 or U+0085, which JSON allows in a text."""
    row = {"instruction": "Which?", "output": "One\u2028two\u0085three\x0c."}
    line = json.dumps(row, ensure_ascii=False).encode()
    (path := tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n[]\r\n" + line)
    faults = Faults()
    found = list(READERS["alpaca"](path, Layout(), faults))
    assert [(s.origin, s.messages[-1]["content"]) for s in found] == [
        (f"{path}:1", row["output"]), (f"{path}:4", row["output"]),
    ]  # fmt: skip
    assert faults.lines == [f"{path}:3: not an object; it is left out"]


def test_columns_of_their_own(spoken: Spoken, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"q": "Where?", "a": "Here."}])
    found = prepared(spoken, path, "alpaca", data={"columns": {"prompt": "q", "response": "a"}})
    assert learned(found, spoken[0]) == [["Here.<|im_end|>"]]


def test_plain_text_is_cut_and_learned_whole(spoken: Spoken, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("The herd comes down in October. " * 30)
    (tmp_path / "texts" / "b.md").write_text("Snow.")
    (tmp_path / "texts" / "c.txt").write_bytes(b"\xff\xfe\xff")
    found = prepared(spoken, tmp_path / "texts", "text", stage="pretrain", train={"cutoff_len": 64})
    pieces = [e for e in found.training if e.group.endswith("a.txt")]
    assert all(len(e.ids) <= 64 for e in pieces)
    whole = [pieces[0].ids[0], *(i for e in pieces for i in e.ids[1:])]
    assert spoken[0].decode(whole[:-1]) == "The herd comes down in October. " * 30
    assert whole[-1] in spoken[0].eos_ids
    assert [spoken[0].decode(e.ids[:-1]) for e in found.training if e.group.endswith("b.md")] == ["Snow."]
    assert any("not UTF-8" in line for line in found.faults.lines)
    rows = written(tmp_path / "a.jsonl", [{"text": "Snow."}, {"no": 1}])
    assert len(prepared(spoken, rows, "text", stage="pretrain").training) == 1


@pytest.mark.parametrize("more", [0, 1, 2, 20])
def test_every_text_learns_its_end(more: int, spoken: Spoken, tmp_path: Path) -> None:
    """Also where the end would be a piece of its own, with nothing before it to learn it from."""
    text = "The herd comes down in October. " * 3
    size = len(spoken[0].encode(text)) + 1
    (tmp_path / "a.txt").write_text(text)
    cut = {"cutoff_len": size - more}
    found = prepared(spoken, tmp_path / "a.txt", "text", stage="pretrain", train=cut).training
    ends = [e.ids for e in found if e.ids[-1] in spoken[0].eos_ids]
    assert len(ends) == 1
    assert 2 <= len(ends[0]) <= cut["cutoff_len"]
    assert sum(e.supervised for e in found) == size - 1


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("cutoff_len", [2, 3, 4, 17, 18, 19])
def test_every_token_of_a_text_is_learned_once(cutoff_len: int, bos: bool, spoken: Spoken, tmp_path: Path) -> None:
    """A token is learned from the one before it, so that pieces share one; nothing stands before the first of all."""
    tokenizer = copy(spoken[0])
    tokenizer.add_bos, tokenizer.bos_id = bos, 1
    ids = [*[1] * bos, *tokenizer.encode("The herd comes down in October. " * 3)[: 17 - bos], min(tokenizer.eos_ids)]
    text = tokenizer.decode(ids[bos:-1])
    encoder = Encoder(tokenizer, None, cutoff_len, "alpaca")
    pieces = list(encoder([Sample(text=text, group="g", origin="o")], Faults()))
    assert max(len(piece.ids) for piece in pieces) <= cutoff_len
    learned = [
        i for piece in pieces for k, (i, is_learned) in enumerate(zip(piece.ids, piece.learned, strict=True))
        if is_learned and k > 0
    ]  # fmt: skip
    assert learned == ids[1:]
    marked = sum(sum(piece.learned) for piece in pieces)
    assert marked == sum(piece.supervised for piece in pieces), "what a dry run marks is what is learned"


# -- dataset_info.json -------------------------------------------------------------------------------------------------


def info(folder: Path, **entry: Any) -> Path:
    path = folder / "dataset_info.json"
    path.write_text(json.dumps({"ours": {"file_name": "a.jsonl", **entry}}))
    return path


def test_dataset_info(spoken: Spoken, tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", [{"talk": [{"who": "me", "what": "Where?"}, {"who": "it", "what": "Here."}]}] * 2)
    path = info(
        tmp_path, formatting="sharegpt", columns={"messages": "talk"}, num_samples=1,
        tags={"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"},
    )  # fmt: skip
    found = prepared(spoken, path, "dataset_info", data={"dataset": "ours"})
    assert learned(found, spoken[0]) == [["Here.<|im_end|>"]]
    assert found.quality.samples == 1


@pytest.mark.parametrize(
    ("entry", "name", "told"),
    [
        ({}, "our", "no dataset 'our'; did you mean 'ours'?"),
        ({"file_name": None}, "ours", "no 'file_name'; only files are read"),
        ({"rankin": True}, "ours", "unknown 'rankin'; did you mean 'ranking'?"),
        ({"ranking": True}, "ours", "no training from preferences"),
        ({"columns": {"images": "i"}}, "ours", "unknown 'images' in columns; did you mean"),
        ({"columns": {"messages": "m"}}, "ours", "unknown 'messages' in columns; did you mean 'response'?"),
        ({"formatting": "sharegpt", "columns": {"message": "m"}}, "ours", "did you mean 'messages'? For sharegpt"),
        ({"formatting": "sharegpt", "columns": {"prompt": "m"}}, "ours", "are: messages, system"),
        ({"columns": {"prompt": "q", "query": "i"}}, "ours", "'query' in columns; did you mean 'prompt'? For text"),
        ({"formatting": "sharegpt", "tags": {"rol_tag": "r"}}, "ours", "'rol_tag' in tags; did you mean 'role_tag'?"),
        ({"tags": {"role_tag": "r"}}, "ours", "tags are for formatting sharegpt, not for alpaca; leave them out"),
        ({"columns": {"prompt": "q"}, "tags": {"role_tag": "r"}}, "ours", "sharegpt, not for text; leave them out"),
        ({"split": "train[:9]"}, "ours", "split = 'train[:9]' is not read: a file is taken whole; leave it out"),
        ({"subset": "en"}, "ours", "subset = 'en' is not read: a file is taken whole; leave it out"),
        ({"formatting": "odd"}, "ours", "there are alpaca and sharegpt"),
        ({"columns": []}, "ours", "columns is not an object of names"),
        ({"columns": {"prompt": ["q"]}}, "ours", "columns is not an object of names"),
        ({"tags": 5}, "ours", "tags is not an object of names"),
        ({"num_samples": -3}, "ours", "num_samples is -3; give a whole number above 0"),
        ({"num_samples": 0}, "ours", "num_samples is 0;"),
        ({"num_samples": "3"}, "ours", "num_samples is '3';"),
    ],
)
def test_dataset_info_that_cannot_be_used(
    entry: dict[str, Any], name: str, told: str, spoken: Spoken, tmp_path: Path
) -> None:
    path = info(tmp_path, **entry)
    with pytest.raises(FinetuneError) as raised:
        prepared(spoken, path, "dataset_info", data={"dataset": name})
    assert told in str(raised.value)


def test_what_is_null_in_dataset_info_is_absent(spoken: Spoken, tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", [FORMS["alpaca"]])
    path = info(tmp_path, columns=None, tags=None, num_samples=None, subset=None, split="train")
    assert len(prepared(spoken, path, "dataset_info", data={"dataset": "ours"}).training) == 1


def test_dataset_info_for_pretraining(spoken: Spoken, tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", [{"body": "Snow falls."}])
    path = info(tmp_path, columns={"prompt": "body"})
    assert len(prepared(spoken, path, "dataset_info", stage="pretrain", data={"dataset": "ours"}).training) == 1


# -- beginning of text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "stage"), [("alpaca", "sft"), ("text", "pretrain")])
def test_where_the_vocabulary_begins_texts_so_does_the_data(
    form: str, stage: str, spoken: Spoken, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.jsonl", [{"instruction": "Sing.", "output": "La.", "text": "Snow falls."}])
    begun = copy(spoken[0])
    begun.add_bos = True
    assert begun.bos_id is not None
    train = {"template": "alpaca"} if stage == "sft" else {}
    bare, with_bos = (
        prepare(config(path, form, stage=stage, train=train), tokenizer, None, {}).training[0]
        for tokenizer in (spoken[0], begun)
    )
    assert with_bos.ids == (begun.bos_id, *bare.ids)
    assert with_bos.supervised == bare.supervised + (form == "text"), "the first id is learned from nothing"


# -- templates ---------------------------------------------------------------------------------------------------------


def test_a_template_that_ends_no_turn_learns_to_stop_all_the_same(spoken: Spoken) -> None:
    plain = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                         "{% if add_generation_prompt %}assistant: {% endif %}", spoken[0])  # fmt: skip
    encoder, faults = Encoder(spoken[0], plain, 200), Faults()
    one = Sample(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}), origin="one")
    two = Sample(one.messages * 2, origin="two")
    found = list(encoder([one, two], faults))
    asked = plain.encode(one.messages[:1])
    assert list(found[0].ids[: len(asked)]) == asked, (
        "the prompt of serving, though its last space melts into an answer"
    )
    assert found[0].ids[-1] in spoken[0].eos_ids
    assert found[0].learned[-1]
    assert [line.partition(":")[0] for line in faults.lines] == ["two"]


@pytest.mark.parametrize("space", [" ", "\n"])
def test_of_several_ends_an_unended_template_learns_the_first(space: str, spoken: Spoken) -> None:
    """As Alpaca's prompts and plain text do; the space melts into the answer's first token, the line feed does not."""
    tokenizer = copy(spoken[0])
    tokenizer.eos_ids = frozenset({0, 2})
    plain = ChatTemplate("{% for m in messages %}{{ m.role }}:" + space + "{{ m.content }}{% endfor %}"
                         "{% if add_generation_prompt %}assistant:" + space + "{% endif %}", tokenizer)  # fmt: skip
    said = Sample(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}), origin="o")
    faults = Faults()
    ends = [
        example.ids[-1]
        for encoder in (Encoder(tokenizer, plain, 200), Encoder(tokenizer, None, 200, "alpaca"))
        for sample in (said, Sample(text="Snow.", origin="t"))
        for example in encoder([sample], faults)
    ]
    assert ends == [0] * 4
    assert not faults.lines


def test_a_space_before_an_answer_is_learned_only_where_it_is_meant(spoken: Spoken) -> None:
    tokenizer, template = spoken
    said = Sample(({"role": "user", "content": "a"}, {"role": "assistant", "content": " Sable Hut "}))
    faults = Faults()
    for exact, answer in ((False, "Sable Hut"), (True, " Sable Hut ")):
        [found] = Encoder(tokenizer, template, 200)([replace(said, exact=exact)], faults)
        learned = [id_ for id_, is_learned in zip(found.ids, found.learned, strict=True) if is_learned]
        assert tokenizer.decode(learned[:-1]) == answer
        assert list(found.ids[: -len(learned)]) == template.encode(said.messages[:1])
    assert not faults.lines


def test_a_template_that_rewrites_history_is_refused(spoken: Spoken) -> None:
    last = ChatTemplate("{{ messages[-1].role }}: {{ messages[-1].content }}<|im_end|>", spoken[0])
    faults = Faults()
    sample = Sample(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}), origin="x")
    assert list(Encoder(spoken[0], last, 200)([sample], faults)) == []
    assert "does not render its turns one after another" in faults.lines[0]


def test_no_template_asks_for_the_alpaca_prompts(spoken: Spoken) -> None:
    with pytest.raises(FinetuneError, match='set template = "alpaca"'):
        Encoder(spoken[0], None, 100)


# -- quality -----------------------------------------------------------------------------------------------------------


def test_quality_counts(spoken: Spoken, tmp_path: Path) -> None:
    other = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]}
    same = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Nowhere."}]}
    found = prepared(spoken, written(tmp_path / "a.jsonl", [other, other, same]), "messages")
    assert (found.quality.duplicates, found.quality.same_prompt) == (1, 1)
    assert len(found.training) == 2, "what is given twice is trained on once"
    assert found.quality.tokens == {"to 64": 2}
    assert found.quality.learned_tokens == sum(e.supervised for e in found.training)
    assert "2 examples of 3 samples" in found.quality.lines()[0]
    assert (language("羊驼 llama 羊驼羊驼羊驼"), language("Hello"), language("123"), language("Привет")) == (
        "zh", "en", "other", "other",
    )  # fmt: skip
    assert quality([], [], Faults(), 0).lines()


# -- questions with their passages -------------------------------------------------------------------------------------


class Shelf:
    """Passages by number; the retriever finds the gold one third."""

    def gold(self, question: GroundedQuestion) -> str | None:
        return None if "lost" in question.text else f"gold of {question.id}"

    def others(self, question: GroundedQuestion, count: int) -> list[str]:
        return [f"other {k}" for k in range(count)]

    def rank(self, question: GroundedQuestion) -> int:
        return 2

    def messages(self, question: str, passages: Any) -> Any:
        return [{"role": "user", "content": f"{question}|{'|'.join(passages)}"}]

    def again(self, question: str) -> Any:
        return {"role": "user", "content": question}

    def answer(self, question: GroundedQuestion, passages: Any) -> str | None:
        return min(question.answers, key=len) if f"gold of {question.id}" in passages and question.answers else None

    def is_gold(self, passage: str, question: GroundedQuestion) -> bool:
        return passage == f"gold of {question.id}" or question.id in passage.split()

    def refusal(self, question: str) -> str:
        return "I could not find it."


def ask(count: int, unanswerable: float = 0.0, distractors: int = 4, **more: Any) -> list[list[str]]:
    text, answers = more.get("text", "q?"), more.get("answers", ("a long one", "short"))
    questions = [GroundedQuestion(str(i), text, answers, "g", "o") for i in range(count)]
    made = grounded(questions, Shelf(), distractors, unanswerable, seed=1)
    return [[*sample.messages[0]["content"].split("|"), sample.messages[1]["content"]] for sample in made]


def test_grounded_questions() -> None:
    rows = ask(400)
    assert all(row[-1] == "short" for row in rows)
    assert all(sum("gold" in part for part in row) == 1 for row in rows)
    assert {len(row) - 3 for row in rows} == {0, 1, 2, 3, 4}
    places = [row.index(next(p for p in row if "gold" in p)) - 1 for row in rows if len(row) == 7]
    assert set(places) == {0, 1, 2, 3, 4}
    assert places.count(2) > len(places) * 0.6, "mostly where the retriever puts it"
    assert ask(20) == ask(20)


def test_unanswerable_questions_are_refused() -> None:
    rows = ask(400, unanswerable=0.3)
    refused = [row for row in rows if row[-1] == "I could not find it."]
    assert 80 < len(refused) < 160
    assert not [part for row in refused for part in row if "gold" in part]
    assert all(len(row) > 2 for row in refused), "with passages that do not hold it"
    assert [row[-1] for row in ask(3, answers=())] == ["I could not find it."] * 3
    assert ask(3, text="lost?") == [], "no passage holds the answer, so it is neither"


def test_no_question_is_dropped_without_a_line() -> None:
    class Bare(Shelf):
        def others(self, question: GroundedQuestion, count: int) -> list[str]:
            return []

    lost = GroundedQuestion("0", "lost?", ("a",), "g", "f:1", "p")
    open_ = GroundedQuestion("1", "who?", (), "g", "f:2", "q")
    faults = Faults()
    assert list(grounded([lost, open_], Bare(), 2, 0.0, 1, faults)) == []
    assert faults.lines == [
        "f:1: no passage holds its answer; it is left out", "f:2: no passage is found for it; it is left out",
    ]  # fmt: skip
    found, faults = GroundedQuestion("2", "q?", ("a",), "g", "f:3", "r"), Faults()
    cut = GroundedQuestion("3", "cut?", ("b",), "g", "f:4", "r")
    made = list(conversations([lost, open_, found, cut], Shelf(), 0, 0.0, 1, 4, faults=faults))
    assert sum(len(sample.messages) for sample in made) == 2
    assert [line.partition(": ")[0] for line in faults.lines[:2]] == ["f:1", "f:2"]
    assert len(faults.lines) == 3, "and the one of the two whose passage is not shown"
    assert faults.lines[2].endswith("hold another part of its paragraph; it is left out")


@pytest.mark.parametrize("seed", range(6))
def test_a_question_without_its_passage_leaves_the_conversation_to_the_others(seed: int) -> None:
    """Whichever of them is asked first; and those that have no answer are no less asked behind it."""
    rows = [("0", "lost?", ("a",)), ("1", "lost too?", ("a",)), ("2", "q?", ("b",)), ("3", "who?", ())]
    questions = [GroundedQuestion(id_, text, answers, "g", f"f:{id_}", "p") for id_, text, answers in rows]
    faults = Faults()
    [sample] = conversations(questions, Shelf(), 0, 0.0, seed, 4, faults=faults)
    assert sorted(m["content"] for m in sample.messages[1::2]) == ["I could not find it.", "b"]
    assert sorted(faults.lines) == [f"f:{k}: no passage holds its answer; it is left out" for k in (0, 1)]
    assert faults.count == 2


@pytest.mark.parametrize("seed", range(4))
def test_a_question_that_its_own_paragraph_does_not_answer_is_in_no_conversation(seed: int) -> None:
    """Neither in its own nor, as one to be refused, in another: there a passage may say the same of something else."""
    questions = [
        GroundedQuestion(f"{p}{n}", f"{p}{n}?", ("a",), "g", f"f:{p}{n}", p, lost=n == 0)
        for p in "pq"
        for n in range(3)
    ]
    faults = Faults()
    made = list(conversations(questions, Shelf(), 0, 0.9, seed, 4, faults=faults))
    asked = " ".join(m["content"] for sample in made for m in sample.messages if m["role"] == "user")
    assert "q1?" in asked
    assert not {"p0?", "q0?"}.intersection(asked.replace("|", " ").split())
    assert "gold of p0" not in asked, "nor is its passage what the others are asked about"
    assert "gold of q0" not in asked
    assert sorted(line for line in faults.lines if "no passage" in line) == [
        f"f:{p}0: no passage holds its answer; it is left out" for p in "pq"
    ]
    alone = Faults()
    assert len(list(grounded(questions, Shelf(), 0, 1.0, 0, alone))) == 4
    assert alone.count == 2


def test_however_many_ask_of_other_paragraphs_one_asks_of_the_conversation_s_own() -> None:
    """Else nothing would be known of its passages, and it would be lost."""
    questions = [GroundedQuestion(f"{p}{n}", f"{p}{n}?", ("a",), "doc", "x", p) for p in "pqrst" for n in range(3)]
    made = list(conversations(questions, Shelf(), 0, 1.0, seed=0, turns=2))
    assert len(made) == len(questions)
    for sample in made:
        assert sorted(m["content"] for m in sample.messages if m["role"] == "assistant") == [
            "I could not find it.",
            "a",
        ]


class TwoHeld(Shelf):
    """The first distractor holds the answers to questions 0 and 1 of every other paragraph."""

    def others(self, question: GroundedQuestion, count: int) -> list[str]:
        return [" ".join(f"{p}{n}" for p in "pqrst" if p != question.paragraph for n in (0, 1))][:count]

    def answer(self, question: GroundedQuestion, passages: Any) -> str | None:
        return "a" if question.paragraph in str(passages) else None


@pytest.mark.parametrize(("elsewhere", "more"), [(0.0, 0), (0.34, 1), (1.0, 3), (9.0, 8)])
def test_some_questions_are_about_what_a_distractor_holds(elsewhere: float, more: int) -> None:
    """Else the first answer would give away the passage of all others."""
    questions = [GroundedQuestion(f"{p}{n}", f"{p}{n}?", ("a",), "doc", "x", p) for p in "pqrst" for n in range(3)]
    orders = set()
    for sample in conversations(questions, TwoHeld(), 9, 0.0, seed=0, turns=3, elsewhere=elsewhere):
        asked = [m["content"].split("|")[0] for m in sample.messages if m["role"] == "user"]
        own = sample.messages[0]["content"].split("gold of ")[1][0]
        foreign = [each for each in asked if each[0] != own]
        count = more if "|" in sample.messages[0]["content"].split("gold of")[0].split("|", 1)[1] else 0
        assert len(asked) - len(foreign) == 3
        assert len(foreign) == count
        assert all(each[1] in "01" for each in foreign), "only what a passage answers"
        assert {m["content"] for m in sample.messages if m["role"] == "assistant"} == {"a"}
        orders.add(tuple(each[0] == own for each in asked))
    assert elsewhere < 1 or len(orders) > 1, "in no fixed order"


# -- configuration -----------------------------------------------------------------------------------------------------


def test_readers_give_samples_lazily(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [FORMS["messages"]])
    assert [s.origin for s in READERS["messages"](path, Layout(), Faults())] == [f"{path}:1"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "lora", "lora_rnk": 4}, "unknown key 'lora_rnk' in \\[method\\]; did you mean 'lora_rank'"),
        ({"name": "lora", "lora_rank": 0}, "'lora_rank' in \\[method\\] is 0"),
        ({"name": "full", "x": 1}, "which takes none"),
        ({"name": "lroa"}, "did you mean 'lora'"),
    ],
)
def test_method_options_are_checked(given: dict[str, Any], told: str) -> None:
    with pytest.raises(FinetuneError, match=told):
        options_of(given)


@pytest.mark.parametrize(
    ("form", "more", "told"),
    [
        ("alpaca", {"columns": {"promt": "q"}}, "unknown 'promt' in columns of .*; did you mean 'prompt'"),
        ("messages", {"columns": {"message": "q"}}, "did you mean 'messages'"),
        ("messages", {"turns": 4}, "'turns' in .* is for format squad, not for messages"),
        ("questions", {"articles": "0:3"}, "'articles' in .* is for format squad, not for questions"),
        ("text", {"distractors": 2}, "'distractors' in .* is for format squad or questions, not for text"),
        ("squad", {"dataset": "x"}, "'dataset' in .* is for format dataset_info, not for squad"),
        ("dataset_info", {"columns": {}}, "'columns' in .* is for format alpaca or sharegpt or messages or text"),
    ],
)
def test_keys_that_a_format_does_not_read_are_refused(form: str, more: dict[str, Any], told: str) -> None:
    with pytest.raises(FinetuneError, match=told):
        config(Path("a.jsonl"), form, data=more)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"data": {"elsewhere": 0.4}}, "'elsewhere' in .* is for conversations; set turns above 1, or leave it out"),
        ({"stage": "pretrain", "train": {"template": "chat"}}, "'template' in .train. is for stage = \"sft\""),
        ({"stage": "pretrain", "train": {"train_on_prompt": True}}, "'train_on_prompt' in .train. is for stage"),
        ({"stage": "pretrain", "train": {"mask_history": True}}, "'mask_history' in .train. is for stage"),
        (
            {"train": {"mask_history": True, "train_on_prompt": True}},
            "'mask_history' in .train. .* leave one of the two",
        ),
        *(
            ({"method": {"name": name, key: value, **other}}, f"'{key}' in .method. is read with {needed} only; leave")
            for name, key, value, other, needed in (
                ("prefix_tuning", "prefix_init", "zero", {"prefix_projection": True}, "prefix_projection = false"),
                ("prefix_tuning", "prefix_text", "A", {"prefix_projection": True}, "prefix_projection = false"),
                ("prefix_tuning", "prefix_text", "A", {"prefix_init": "zero"}, 'prefix_init = "text"'),
                ("prefix_tuning", "prefix_hidden", 9, {}, "prefix_projection = true"),
                ("prompt_tuning", "prompt_text", "A", {"prompt_init": "random"}, 'prompt_init = "text"'),
                ("prompt_tuning", "prompt_hidden", 8, {}, 'prompt_encoder = "mlp" or "lstm"'),
            )
        ),
    ],
)
def test_keys_that_nothing_reads_beside_others_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(FinetuneError, match=told):
        config(Path("a.json"), "squad", **given)


def test_keys_that_are_read_are_taken() -> None:
    some: list[dict[str, Any]] = [
        {"name": "prefix_tuning", "prefix_projection": True, "prefix_hidden": 9},
        {"name": "prefix_tuning", "prefix_init": "text", "prefix_text": "A"},
        {"name": "prompt_tuning", "prompt_encoder": "lstm", "prompt_hidden": 8, "prompt_text": "A"},
    ]
    for method in some:
        made = config(Path("a.json"), "squad", method=method, data={"turns": 2, "elsewhere": 0.4})
        # What an adapter's card holds names every key, and is no one's wish.
        assert options_of({"name": method["name"], **made.options.model_dump()}) == made.options
    config(Path("a.json"), "squad", data={"elsewhere": 0.0}, train={"mask_history": True, "train_on_prompt": False})
