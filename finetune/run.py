"""A configured run from its data to the adapter's folder."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from finetune.adapters import method
from finetune.checkpoints import Checkpoints
from finetune.config import Config, DataSpec
from finetune.data import dataset_info
from finetune.data.encode import ALPACA_CHAT, Encoder
from finetune.data.quality import Quality, quality
from finetune.data.readers import READERS, Layout
from finetune.data.samples import Example, Faults, Sample
from finetune.errors import FinetuneError, nearest
from finetune.folder import TENSORS, Base, go_on_from, save_adapter
from finetune.learner import Learner
from finetune.lock import held
from finetune.log import Listener
from finetune.memory import memory
from finetune.plan import split
from finetune.trainer import State, Trainer
from finetune.world import Alone
from llama.chat import ChatTemplate
from llama.checkpoint import Checkpoint, load_transformer
from llama.config import ModelConfig
from llama.engine import choose_device, fast_bfloat16
from llama.identity import model_hash, tokenizer_hash
from llama.tokenizer import Tokenizer

# Readers that need more than the file: the application has those of questions with their passages.
Extra = Mapping[str, Callable[[Path, DataSpec, int, Faults], Sequence[Sample]]]


@dataclass(frozen=True)
class Prepared:
    """What a run trains on, and what it is like."""

    training: list[Example]
    validation: list[Example]
    quality: Quality
    faults: Faults


def read_samples(config: Config, extra: Extra, faults: Faults) -> list[Sample]:
    """The samples of all [[data]] tables. Raises FinetuneError for a file or form that cannot be used at all."""
    found: list[Sample] = []
    for spec in config.data:
        form, path, layout, count = spec.format, Path(spec.file).expanduser(), Layout(spec.columns), spec.num_samples
        before = len(faults.lines)
        if form == "dataset_info":
            entry = dataset_info.entry(path, spec.dataset)
            form, path, layout, count = entry.form, entry.path, entry.layout, count or entry.num_samples
        if form in extra:
            samples = list(extra[form](path, spec, config.train.seed, faults))
        elif form in READERS:
            samples = list(READERS[form](path, layout, faults))
        else:
            known = [*READERS, *extra, "dataset_info"]
            raise FinetuneError(
                f"there is no data format '{form}'; did you mean '{nearest(form, known)}'? There are: "
                f"{', '.join(known)}"
            )
        if not samples:
            why = f" ({faults.lines[-1]})" if len(faults.lines) > before else ""
            raise FinetuneError(f"{path} holds no sample that can be used as {form}{why}")
        if count is not None and count < len(samples):
            kept = sorted(random.Random(config.train.seed).sample(range(len(samples)), count))
            samples = [samples[i] for i in kept]
        found += [replace(sample, aside=spec.only_validate) for sample in samples]
    return found


def prepare(
    config: Config, tokenizer: Tokenizer, template: ChatTemplate | None, extra: Extra, context: int | None = None
) -> Prepared:
    """Reads and encodes the data and splits it by document. context: of the model, in tokens. Raises FinetuneError."""
    loop, faults = config.train, Faults()
    cutoff_len = _cutoff_len(config, context)
    samples = read_samples(config, extra, faults)
    wrong = [s for s in samples if bool(s.text) != (config.stage == "pretrain")]
    if wrong:
        what = "conversations" if config.stage == "pretrain" else "plain text"
        other = "sft" if config.stage == "pretrain" else "pretrain"
        raise FinetuneError(f'{wrong[0].origin} holds {what}, which stage = "{other}" trains on')
    form = "alpaca" if config.stage == "pretrain" else loop.template
    encoder = Encoder(tokenizer, template, cutoff_len, form, loop.train_on_prompt, loop.mask_history)
    # The same conversation twice would be in training and in validation.
    unique = list(
        {json.dumps([s.messages, s.input, s.unlearned]) if s.messages else s.text: s for s in samples}.values()
    )
    examples = list(encoder(unique, faults))
    aside = {sample.group for sample in samples if sample.aside}
    moved = sum(sample.group in aside and not sample.aside for sample in samples)
    report = replace(quality(samples, examples, faults, len(encoder.too_long)), moved=moved)
    training, validation = split(examples, loop.val_size, loop.seed, aside)
    if aside and aside.issuperset(sample.group for sample in samples):
        raise FinetuneError(
            f"nothing is left to train on: all {len(samples)} samples are of documents that only_validate keeps for "
            "validation; leave it out, or give a table of other documents"
        )
    return Prepared(training, validation, report, faults)


def _cutoff_len(config: Config, context: int | None) -> int:
    """The longest example: as configured or, by default, what the model has room for behind virtual tokens."""
    given, front = config.train.cutoff_len, config.options.front
    if context is None or given <= context - front:
        return given
    if context - front < 2:  # one token to read, and one to learn
        raise FinetuneError(
            f"num_virtual_tokens is {front}, and the model reads {context} tokens with them, so none are left for an "
            "example; lower num_virtual_tokens"
        )
    if "cutoff_len" in config.train.model_fields_set:
        behind = f" behind {front} virtual tokens" if front else ""
        raise FinetuneError(
            f"cutoff_len is {given}, and the model has room for {context - front} tokens{behind}; lower it"
        )
    return context - front


def require_fit(config: Config, model: ModelConfig) -> None:
    """Raises FinetuneError where the method's options, or final_scale, are not for this model; it takes no memory."""
    with torch.device("meta"):
        adapter = method(config.method_name).make(model, config.options)
    if config.train.final_scale < 1:
        adapter.weaken(1.0)


def shown(example: Example, tokenizer: Tokenizer) -> str:
    """An example as text, what is learned of it between ⟦ and ⟧."""
    parts: list[str] = []
    start = 0
    for k in range(1, len(example.ids) + 1):
        if k == len(example.ids) or example.learned[k] != example.learned[start]:
            text = tokenizer.decode(example.ids[start:k])
            parts.append(f"⟦{text}⟧" if example.learned[start] else text)
            start = k
    return "".join(parts)


def base_of(checkpoint: Checkpoint, cache: Path | None) -> Base:
    """What a checkpoint is, for an adapter to know its base again."""
    tokens = tokenizer_hash(checkpoint.tokenizer())
    return Base(checkpoint.path.name, model_hash(checkpoint.path, cache), tokens, checkpoint.chat_template)


def identity(config: Config, base: Base, prepared: Prepared, start: Path | None = None) -> str:
    """Hash of all that a run's numbers depend on."""
    digest = hashlib.sha256(config.model_dump_json().encode() + base.model_hash.encode())
    if start is not None:
        digest.update((start / TENSORS).read_bytes())
    for each in (*prepared.training, *prepared.validation):
        digest.update(repr((each.ids, each.learned)).encode())
    return digest.hexdigest()


def build(config: Config, checkpoint: Checkpoint, tokenizer: Tokenizer, device: str) -> Learner:
    """The model with a fresh adapter, what trains in fp32 and the rest in the dtype that is computed in."""
    place = choose_device(device)
    name = config.train.dtype
    dtype = getattr(torch, name) if name != "auto" else torch.bfloat16 if fast_bfloat16(place) else torch.float32
    torch.manual_seed(config.train.seed)
    with memory("while the model was loaded in fp32; close other programs, or take a smaller model or machine"):
        model = load_transformer(checkpoint, torch.float32, str(place))
        adapter = method(config.method_name).make(model.config, config.options)
        model = adapter.enter(model)
        adapter.to(place)
        adapter.begin(model, tokenizer.encode)
    if dtype != torch.float32:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return Learner(model, adapter, dtype, config.train.gradient_checkpointing)


def train(
    config: Config,
    checkpoint: Checkpoint,
    prepared: Prepared,
    runs: Path,
    adapters: Path,
    device: str = "auto",
    cache: Path | None = None,
    resume: bool = False,
    restart: bool = False,
    listen: Listener = lambda record: None,
    tell: Callable[[str], None] = lambda line: None,
    world: Alone | None = None,
    start: Path | None = None,
) -> tuple[Path, State]:
    """Trains, and writes the adapter with the values that validated best. Returns its folder and how the run ended.

    runs, adapters: folders in which the run's and the adapter's own are made, by the configuration's name. resume goes
    on with the run that is there, restart replaces it even where it could go on. start: the folder of the adapter that
    `config.start` names. Raises FinetuneError, also where another process is training one of this name.
    """
    folder, world, tokenizer = runs / config.name, world or Alone(), checkpoint.tokenizer()
    require_fit(config, checkpoint.config)
    with held(folder, world):
        if not (resume or restart) and Checkpoints(folder, config.train.save_total_limit).unfinished():
            raise FinetuneError(
                f"{folder} holds the checkpoints of a run that is not finished; go on with --resume, or start anew "
                "with --restart"
            )
        learner, base = build(config, checkpoint, tokenizer, device), base_of(checkpoint, cache)
        if config.stage == "sft" and config.train.template == "alpaca":
            base = replace(base, chat_template=ALPACA_CHAT)
        if start is not None:
            go_on_from(start, learner.adapter, learner.model, config.method_name, base)
        trainer = Trainer(
            learner,
            prepared.training,
            prepared.validation,
            config.train,
            folder,
            identity(config, base, prepared, start),
            listen,
            tell,
            world,
            resume,
        )
        if trainer.state.step == 0:
            # An earlier run goes only now, that nothing hinders this one; and not before all processes have looked at
            # it.
            world.wait()
            if world.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
        state = trainer.run()
        if config.train.final_scale < 1:
            learner.adapter.weaken(config.train.final_scale)
            if prepared.validation:
                state.best_loss = trainer.validation_loss()  # of what is written
        notes = {
            "configuration": config.model_dump(mode="json", exclude_none=True),
            "quality": prepared.quality.to_json(),
            "training_examples": len(prepared.training),
            "validation_examples": len(prepared.validation),
            "best_step": state.best_step,
            "best_validation_loss": state.best_loss if prepared.validation else None,
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            "tokens": state.tokens,
            "finished": time.strftime("%Y-%m-%d"),
        }
        target = adapters / config.name
        world.save(lambda: save_adapter(
            target, config.method_name, learner.adapter, learner.model, base, getattr(torch, config.store_dtype), notes
        ), learner)  # fmt: skip
        return target, state
