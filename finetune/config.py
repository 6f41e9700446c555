"""A training run as a TOML file describes it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from finetune.adapters import method
from finetune.adapters.base import Options
from finetune.errors import FinetuneError, nearest

RESERVED = ("none", "auto")  # what `--adapter` takes for none of them, and for the one that fits
CONFIGS = Path(__file__).parent / "configs"


# The columns that each format reads, by dataset_info's names.
COLUMNS = {
    "alpaca": ("prompt", "query", "response", "history", "system"),
    "sharegpt": ("messages", "system"),
    "messages": ("messages", "system"),
    "text": ("prompt",),
}
# Keys of a [[data]] table that not all formats read, and those that do.
READ_BY = {
    "dataset": ("dataset_info",),
    "columns": tuple(COLUMNS),
    **dict.fromkeys(("distractors", "unanswerable"), ("squad", "questions")),
    **dict.fromkeys(("retrieve", "impossible", "turns", "elsewhere", "answer_length", "articles"), ("squad",)),
}
FORMATS = {"dataset_info", "squad", "questions", *COLUMNS}


class DataSpec(Options):
    """A [[data]] table: one file and how it is read. The last eight keys are for questions with their paragraphs."""

    file: str = Field(min_length=1)
    format: str = Field(description="alpaca, sharegpt, messages, text, dataset_info, squad or questions")
    dataset: str = Field("", description="which of a dataset_info.json")
    num_samples: int | None = Field(None, ge=1, description="only so many, drawn by the seed")
    only_validate: bool = Field(False, description="its documents are kept for validation, beside those of val_size")
    columns: dict[str, str] = Field(
        default_factory=dict, description="what columns are called, by dataset_info's names"
    )
    distractors: int = Field(3, ge=0, description="squad: at most so many passages beside the one that answers")
    unanswerable: float = Field(0.15, ge=0, le=1, description="squad: share asked without the passage that answers")
    retrieve: bool = Field(True, description="squad: distractors are what the retriever finds, else neighbours")
    impossible: float = Field(1.0, ge=0, le=1, description="squad: share kept of the questions without an answer")
    turns: int = Field(1, ge=1, description="squad: up to so many questions about one paragraph in a conversation")
    elsewhere: float = Field(0.0, ge=0, description="squad: with turns, so many times more about what distractors hold")
    answer_length: int | None = Field(None, ge=1, description="squad: no answers of more characters")
    articles: str = Field("", description='squad: only these, as "0:17" of the articles in their order')

    @model_validator(mode="after")
    def _read(self) -> DataSpec:
        """Refuses what would be passed over without a word. An unknown format is told where it is read."""
        where = f"the [[data]] table of {self.file}"
        for key in sorted(self.model_fields_set & READ_BY.keys()) if self.format in FORMATS else ():
            if self.format not in READ_BY[key]:
                raise FinetuneError(
                    f"'{key}' in {where} is for format {' or '.join(READ_BY[key])}, not for {self.format}; leave it out"
                )
        if self.elsewhere and self.turns == 1:
            raise FinetuneError(f"'elsewhere' in {where} is for conversations; set turns above 1, or leave it out")
        known = COLUMNS.get(self.format, ())
        for name in self.columns if known else ():
            if name not in known:
                raise FinetuneError(
                    f"unknown '{name}' in columns of {where}; did you mean '{nearest(name, known)}'? For {self.format} "
                    f"there are: {', '.join(known)}"
                )
        return self


class Loop(Options):
    """The [train] table."""

    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="at most so many, where epochs would take more")
    batch_size: int = Field(8, ge=1, description="examples (or packs) of one optimizer step, over all processes")
    micro_batch_tokens: int = Field(2048, ge=1, description="tokens computed at once; lower it to save memory")
    learning_rate: float = Field(3e-4, gt=0)
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(0.1, ge=0, description="of matrices; vectors have none")
    max_grad_norm: float = Field(1.0, gt=0)
    cutoff_len: int = Field(2048, ge=2, description="longest example, in tokens")
    template: Literal["chat", "alpaca"] = "chat"
    train_on_prompt: bool = False
    mask_history: bool = False
    packing: bool = Field(False, description="examples are joined to packs of cutoff_len tokens; none sees another")
    val_size: float = Field(0.1, ge=0, description="share of the documents kept for validation, or their number")
    final_scale: float = Field(1.0, gt=0, le=1, description="share of what was learned that stays in the end (LoRA)")
    eval_steps: int = Field(20, ge=1)
    patience: int = Field(5, ge=1, description="validations without a better one until the run ends")
    save_steps: int = Field(20, ge=1)
    save_total_limit: int = Field(2, ge=2, description="checkpoints kept; two, so that one may be damaged")
    gradient_checkpointing: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(0, ge=0)
    distributed: Literal["none", "ddp", "fsdp"] = Field("none", description="how processes of torchrun share the work")

    @model_validator(mode="after")
    def _read(self) -> Loop:
        if self.mask_history and self.train_on_prompt:
            raise FinetuneError(
                "'mask_history' in [train] is for answers alone, and train_on_prompt learns all there is; leave one of "
                "the two out"
            )
        return self


class Config(Options):
    """A whole run. `method` holds the method's name and its own options."""

    name: str = Field(min_length=1, pattern=r"^[\w][\w.-]*$", description="of the adapter; its folder is called so")
    model: str = Field("", description="base model; that of the settings by default")
    start: str = Field("", description="adapter whose values training goes on from, by name or path; fresh by default")
    stage: Literal["sft", "pretrain"] = "sft"
    method: dict[str, Any]
    data: tuple[DataSpec, ...] = Field(min_length=1)
    train: Loop = Field(default_factory=lambda: Loop.model_validate({}))
    store_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @field_validator("name")
    @classmethod
    def _free(cls, given: str) -> str:
        if given in RESERVED:
            raise FinetuneError(
                f'an adapter cannot be called "{given}", which stands for a choice; give it another name'
            )
        return given

    @field_validator("method")
    @classmethod
    def _known(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "name" not in given:
            raise FinetuneError("the table [method] has no name")
        _all_read(options_of(given))
        return given

    @model_validator(mode="after")
    def _of_stage(self) -> Config:
        """Plain text is learned whole: there is no one who asks in it."""
        for key in ("template", "train_on_prompt", "mask_history") if self.stage == "pretrain" else ():
            if key in self.train.model_fields_set:
                raise FinetuneError(f"'{key}' in [train] is for stage = \"sft\", not for pretrain; leave it out")
        return self

    @property
    def method_name(self) -> str:
        return str(self.method["name"])

    @property
    def options(self) -> Options:
        return options_of(self.method)


def options_of(given: dict[str, Any]) -> Options:
    """A method's own options from its table. Raises FinetuneError."""
    rest = {key: value for key, value in given.items() if key != "name"}
    found: Options = checked(method(str(given["name"])).options, rest, "[method]")
    return found


def _all_read(options: Options) -> None:
    """Refuses keys that a user wrote and the method passes over. Not for an adapter's card, which holds every key."""
    for key, other, values in options.READ_WITH:
        if key in options.model_fields_set and getattr(options, other) not in values:
            named = " or ".join(json.dumps(value) for value in values)
            raise FinetuneError(f"'{key}' in [method] is read with {other} = {named} only; leave it out, or set that")


def checked(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    """The model of these values. Raises FinetuneError with the key, where it stands and what it may be."""
    _keys(kind, values, where)
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = "is missing" if first["type"] == "missing" else f"is {first['input']!r}: {first['msg'].lower()}"
        raise FinetuneError(f"'{place}' in {where} {what}") from error


def _keys(kind: type[Any], values: dict[str, Any], where: str) -> None:
    fields = kind.model_fields
    for key, value in values.items():
        if key not in fields:
            raise FinetuneError(f"unknown key '{key}' in {where}; did you mean '{nearest(key, fields)}'?" if fields else
                                f"unknown key '{key}' in {where}, which takes none")  # fmt: skip
        for inner in _models(fields[key].annotation):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict):
                    _keys(inner, each, f"[{key}] of {where}")


def _models(annotation: Any) -> list[type[Any]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models(part)]


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets "train.epochs" or "data.0.file"."""
    table: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(table, list) and parent.isdecimal() and int(parent) < len(table):
            table = table[int(parent)]
        elif isinstance(table, dict):
            table = table.setdefault(parent, {})
        else:
            raise FinetuneError(f"there is no '{key}' to change")
    if not isinstance(table, dict):
        raise FinetuneError(f"there is no '{key}' to change")
    table[last] = value


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}


def load_config(given: str, changes: dict[str, Any] | None = None) -> Config:
    """A file's configuration, or a shipped one's by its name. `changes`: {"train.epochs": 2} over what it says.

    Raises FinetuneError.
    """
    path = Path(given)
    if not path.is_file():
        known = shipped()
        if given not in known:
            raise FinetuneError(
                f"there is no file {given} and no configuration of that name; did you mean '{nearest(given, known)}'?"
            )
        path = known[given]
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FinetuneError(f"{path} cannot be read as TOML: {error}") from error
    for key, value in (changes or {}).items():
        _set(values, key, value)
    found: Config = checked(Config, values, str(path))
    return found
