"""Adapters on disk: PEFT's two files where that form can say it, and paddock.json with what has to travel along."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from finetune.adapters import METHODS, method
from finetune.adapters.base import Adapter, Method
from finetune.checkpoints import replace_folder
from finetune.config import options_of
from finetune.data.encode import ALPACA_CHAT
from finetune.errors import FinetuneError
from llama.config import ModelConfig
from llama.model import Transformer
from llama.serving import Serving

CONFIG, TENSORS, OURS = "adapter_config.json", "adapter_model.safetensors", "paddock.json"
FORMAT = 1


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to: names for people, hashes for comparing."""

    model: str
    model_hash: str
    tokenizer_hash: str
    chat_template: str | None


@dataclass(frozen=True)
class Card:
    """What paddock.json holds. `base` is None for an adapter that came from elsewhere and does not say."""

    method: str
    options: dict[str, Any]
    base: Base | None
    peft: bool  # whether the tensors have PEFT's names
    notes: dict[str, Any] = field(default_factory=dict)  # data, figures and time of the training


def save_adapter(
    folder: Path,
    name: str,
    adapter: Adapter,
    model: Transformer,
    base: Base,
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, Any] | None = None,
) -> Card:
    """Writes an adapter's folder; it appears whole or not at all. name: the method's. Raises FinetuneError."""
    made, options = METHODS[name], adapter.options
    stored = {n: t.detach().to("cpu", dtype).contiguous() for n, t in adapter.stored(model).items()}
    described: dict[str, Any] = {"peft_type": None}
    as_peft = False
    if made.peft is not None:
        try:
            keys, stored = made.peft.write(options, model.config, stored)
        except FinetuneError:
            pass  # that form cannot say it, ours can
        else:
            as_peft = True
            described = {
                "peft_type": made.peft.kind,
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base.model,
                "revision": None,
                "inference_mode": True,
                **keys,
            }
    card = Card(name, options.model_dump(mode="json"), base, as_peft, dict(notes or {}))
    tensors = {n: t.contiguous().clone() for n, t in stored.items()}
    files = {
        TENSORS: save(tensors, {"format": "pt"}),
        OURS: json.dumps({"format": FORMAT, **asdict(card)}, ensure_ascii=False, indent=1).encode(),
    }
    if as_peft:
        files[CONFIG] = json.dumps(described, indent=1).encode()
    replace_folder(folder, files, training=True)
    return card


def peft_folder(folder: Path, source: Path, config: ModelConfig) -> None:
    """Writes an adapter in PEFT's form. Raises FinetuneError where that form cannot say it.

    What it was made for goes along, in a file that PEFT passes over.
    """
    card = read_card(source)
    made = method(card.method)
    if not card.peft:
        if made.peft is None:
            can = "merge it, or keep it as it is" if made.merges else "it cannot be merged either, keep it as it is"
            raise FinetuneError(f"PEFT has no form for {card.method}; {can}")
        made.peft.write(_options(made, card), config, _tensors(source))  # says why not
    replace_folder(folder, {
        name: (source / name).read_bytes() for name in (CONFIG, TENSORS, OURS) if (source / name).is_file()
    })  # fmt: skip


def read_card(folder: Path) -> Card:
    """What is known of an adapter without its tensors. Raises FinetuneError for a folder that holds none."""
    if not folder.is_dir():
        raise FinetuneError(f"there is no adapter {folder}; see `paddock finetune list`")
    try:
        if (folder / OURS).is_file():
            given = json.loads((folder / OURS).read_text("utf-8"))
            if given.get("format") != FORMAT:
                raise FinetuneError(f"{folder.name} is of format {given.get('format')!r}; this version reads {FORMAT}")
            base = Base(**given["base"]) if given["base"] else None
            if not isinstance(given["method"], str) or not isinstance(given["options"], dict):
                raise TypeError("its method is no name, or its options are no table")
            if not isinstance(notes := given.get("notes", {}), dict):
                raise TypeError("its notes are no table")
            return Card(given["method"], given["options"], base, given["peft"], notes)
        given = json.loads((folder / CONFIG).read_text("utf-8"))
        kind = given.get("peft_type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FinetuneError(f"{folder.name} is no adapter that can be read ({error})") from error
    known = {made.peft.kind: name for name, made in reversed(METHODS.items()) if made.peft is not None}
    if not isinstance(kind, str) or kind not in known:
        raise FinetuneError(f"{folder.name} is of PEFT's kind {kind!r}; known are {', '.join(known)}")
    return Card(known[kind], {}, None, True, {})


def require_base(name: str, card: Card, base: Base) -> None:
    """Raises FinetuneError when the adapter was made for another model, vocabulary or chat template than `base`."""
    made_for = card.base
    if made_for is None:
        return
    for what, ours, theirs in (
        ("vocabulary", base.tokenizer_hash, made_for.tokenizer_hash),
        ("model", base.model_hash, made_for.model_hash),
    ):
        if ours != theirs:
            raise FinetuneError(
                f"adapter '{name}' was made for {made_for.model}, and {base.model} has another {what} "
                f"({ours[:12]}, not {theirs[:12]}); load that model, or train the adapter anew for this one"
            )
    if base.chat_template != made_for.chat_template == ALPACA_CHAT:
        raise FinetuneError(
            f"adapter '{name}' was trained on Alpaca's prompts, and {base.model} is asked with others; merge it with "
            "`paddock finetune merge`, and use the model that comes of it"
        )
    if base.chat_template != made_for.chat_template:
        raise FinetuneError(
            f"adapter '{name}' was trained with the chat template of {made_for.model}, and {base.model} has another "
            "one; load that model, or train the adapter anew for this one"
        )


def load_adapter(folder: Path, model: Transformer, base: Base | None = None) -> tuple[Transformer, Adapter, Card]:
    """(the model to run, the adapter for its forwards, what is known of it). Raises FinetuneError.

    base: what `model` is; an adapter that was made for another one is refused by name.
    """
    adapter, tensors, card = _read(folder, model.config, base)
    try:
        entered = adapter.enter(model)
        adapter.to(model.norm.weight.device)
        adapter.restore(entered, tensors)
    except FinetuneError as error:
        raise FinetuneError(f"adapter '{folder.name}' cannot be used: {error}") from error
    return entered, adapter.eval().requires_grad_(False), card


def go_on_from(folder: Path, adapter: Adapter, model: Transformer, name: str, base: Base) -> None:
    """Fills a fresh adapter, which has entered `model`, with the values of a trained one. name: its method's.

    Raises FinetuneError where that one is of another method, has other options or was made for another model.
    """
    found, tensors, card = _read(folder, model.config, base)
    theirs, ours = found.options.model_dump(), adapter.options.model_dump()
    other = next((key for key in ours if theirs.get(key) != ours[key]), None)
    if card.method != name or other is not None:
        what = f"{other} = {theirs.get(str(other))}" if card.method == name else f"the method {card.method}"
        raise FinetuneError(f"adapter '{folder.name}' has {what}; [method] has to say the same to go on from it")
    try:
        adapter.restore(model, {key: tensor.to(model.norm.weight.device) for key, tensor in tensors.items()})
    except FinetuneError as error:
        raise FinetuneError(f"training cannot go on from adapter '{folder.name}': {error}") from error


def serve_adapter(folder: Path, model: Transformer, base: Base | None = None) -> Serving:
    """The adapter as requests on `model` take it along; the model stays as it is. As `load_adapter` raises."""
    adapter, tensors, _ = _read(folder, model.config, base)
    device = model.norm.weight.device
    try:
        return adapter.to(device).serve(model, {name: tensor.to(device) for name, tensor in tensors.items()})
    except FinetuneError as error:
        raise FinetuneError(f"adapter '{folder.name}' cannot be used: {error}") from error


def _read(folder: Path, config: ModelConfig, base: Base | None) -> tuple[Adapter, dict[str, Tensor], Card]:
    """(a fresh adapter, what is stored of it in fp32, what is known of it)."""
    card = read_card(folder)
    if base is not None:
        require_base(folder.name, card, base)
    made, tensors = method(card.method), _tensors(folder)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FinetuneError(f"adapter '{folder.name}' cannot be used: {name} is not finite; train it again")
    try:
        if card.peft:
            if made.peft is None:
                raise FinetuneError(f"PEFT has no form for {card.method}, and its card says that it is in that form")
            options, tensors = made.peft.read(json.loads((folder / CONFIG).read_text("utf-8")), config, tensors)
            given = options_of({"name": made.name, **card.options, **options})
        else:
            given = _options(made, card)
        adapter = made.make(config, given)
    except KeyError as error:
        raise FinetuneError(f"adapter '{folder.name}' cannot be used: its {CONFIG} lacks {error}") from error
    except (FinetuneError, OSError, ValueError, TypeError, AttributeError, IndexError, re.error) as error:
        raise FinetuneError(f"adapter '{folder.name}' cannot be used: {error}") from error
    return adapter, {name: tensor.to(torch.float32) for name, tensor in tensors.items()}, card


def _options(made: Method, card: Card) -> Any:
    return options_of({"name": made.name, **card.options})


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return load((folder / TENSORS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise FinetuneError(
            f"{folder.name}/{TENSORS} is missing or damaged ({error}); copy the adapter again"
        ) from error
