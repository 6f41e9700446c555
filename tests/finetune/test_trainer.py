"""The loop: what a step is, when it ends, what a kill leaves, and what it says when something goes wrong."""

from __future__ import annotations

import errno
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from finetune import checkpoints
from finetune.adapters.base import Adapter
from finetune.checkpoints import STATE, TENSORS, Checkpoints
from finetune.config import Loop
from finetune.data.samples import Example
from finetune.errors import FinetuneError
from finetune.learner import Batch, Learner
from finetune.log import read_log
from finetune.loss import linear_cross_entropy
from finetune.plan import Plan, packs, split
from finetune.trainer import Trainer, rate
from llama.model import Transformer

from .conftest import FORMS, adapted, examples, shaken

DATA = examples(24)
LOOP = Loop(epochs=4, batch_size=4, learning_rate=1e-2, eval_steps=4, save_steps=4, micro_batch_tokens=60)


def trainer(folder: Path, form: str = "lora", loop: Loop = LOOP, **changes: Any) -> Trainer:
    model, adapter = adapted(form)
    learner = Learner(model, adapter, changes.pop("dtype", torch.float32), loop.gradient_checkpointing)
    training, validation = changes.pop("data", (DATA[:18], DATA[18:]))
    return Trainer(learner, training, validation, loop, folder, changes.pop("identity", "x"), **changes)


def values_of(made: Trainer) -> list[torch.nn.Parameter]:
    return list(made.learner.trained.values())


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_log(folder) if "loss" in row]


def values(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.trained.items()}


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_loss_is_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, for a matrix that trains and one that does not; cut into pieces of two rows."""
    monkeypatch.setattr("finetune.loss.CHUNK_BYTES", 2 * 4 * 11)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    labels = torch.randint(11, (7,))
    total, each = linear_cross_entropy(hidden, weight, labels)
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    assert torch.allclose(each, expected, atol=1e-5)
    ours = torch.autograd.grad(total * 3, (hidden, weight))
    theirs = torch.autograd.grad(expected.sum() * 3, (hidden, weight))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_packed_examples_are_those_examples() -> None:
    """Loss of a row of several == sum of their own losses, and so are the gradients (isolation, positions from 0)."""
    model, adapter = adapted("lora")
    shaken(model, adapter)
    learner = Learner(model, adapter, torch.float32, False)
    together, _ = learner(Batch.of(DATA[:5]))
    together.backward()
    packed = {n: p.grad.clone() for n, p in learner.trained.items() if p.grad is not None}
    learner.zero_grad()
    single = sum(learner(Batch.of([each]))[0] for each in DATA[:5])
    single.backward()  # type: ignore[union-attr]
    assert torch.allclose(together, single, atol=1e-4)  # type: ignore[arg-type]
    assert packed
    for name, parameter in learner.trained.items():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, packed[name], atol=1e-4)


def test_a_batch_counts_what_is_learned() -> None:
    batch = Batch.of([Example((5, 6, 7), (True, False, True), "g", "a"), Example((8, 9), (False, True), "g", "b")])
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.at.tolist() == [1, 3]  # a first token is nobody's prediction
    assert batch.labels.tolist() == [7, 9]
    assert batch.owner.tolist() == [0, 1]


# -- a step ------------------------------------------------------------------------------------------------------------


def test_steps_of_full_tuning_is_a_plain_loops(tmp_path: Path) -> None:
    """Against torch written out: padded rows, cross_entropy with -100, AdamW, clipping. Betas show from the second."""
    loop = LOOP.model_copy(
        update={"max_steps": 3, "batch_size": 18, "learning_rate": 1e-3, "warmup_ratio": 0.0, "weight_decay": 0.1}
    )
    ours = trainer(tmp_path, "full", loop, data=(DATA[:18], []))
    model, _ = adapted("full")
    for _ in range(3):
        ours._step()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    longest = max(len(e.ids) for e in DATA[:18])
    ids, labels = torch.zeros(18, longest, dtype=torch.long), torch.full((18, longest), -100)
    for row, each in enumerate(DATA[:18]):
        ids[row, : len(each.ids)] = torch.tensor(each.ids)
        labels[row, : len(each.ids)] = torch.tensor(
            [i if learned else -100 for i, learned in zip(each.ids, each.learned, strict=True)]
        )
    for step in (1, 2, 3):
        for group in plain.param_groups:
            group["lr"] = rate(step, 3, 1e-3, 0)
        plain.zero_grad()
        logits = model(ids, new=[len(e.ids) for e in DATA[:18]])
        F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        plain.step()
    expected = dict(model.named_parameters())
    for name, parameter in ours.learner.trained.items():
        assert torch.allclose(parameter, expected[name], atol=2e-5), name


@pytest.mark.parametrize("form", ["lora", "prefix_tuning"])
def test_accumulation_changes_nothing(form: str, tmp_path: Path) -> None:
    """One micro-batch or many of unequal lengths: a step's gradient is the mean over its learned tokens."""
    uneven = [Example(e.ids, (False, *(True for _ in e.ids[1:])), e.group, e.origin) if i % 3 else e
              for i, e in enumerate(DATA)]  # fmt: skip
    found = []
    for tokens in (10_000, 30):
        made = trainer(tmp_path / str(tokens), form, LOOP.model_copy(update={"micro_batch_tokens": tokens}),
                       data=(uneven[:18], []))  # fmt: skip
        assert (len(made.plan.step(0)[0]) == 1) == (tokens == 10_000)
        records = [made._step() for _ in range(3)]
        found.append((values(made.learner), [r["loss"] for r in records], [r["grad_norm"] for r in records]))
    (one, loss, norm), (many, losses_, norms) = found
    assert loss == pytest.approx(losses_, rel=1e-5)
    assert norm == pytest.approx(norms, rel=1e-4)
    assert all(torch.allclose(one[n], many[n], atol=1e-4) for n in one)


def test_checkpointed_blocks_are_computed_again(tmp_path: Path) -> None:
    """Twice in a step, with the same result; else once."""
    found = []
    for again in (False, True):
        calls = list[Any]()
        made = trainer(tmp_path / str(again), loop=LOOP.model_copy(update={"gradient_checkpointing": again}))
        made.learner.model.layers[1].register_forward_pre_hook(lambda *given, calls=calls: calls.append(given))
        parts = len(made.plan.step(0)[0])
        made._step()
        assert len(calls) == parts * (1 + again)
        found.append(values(made.learner))
    assert all(torch.allclose(found[1][name], tensor, atol=1e-6) for name, tensor in found[0].items())


def test_gradients_are_no_longer_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, loop=LOOP.model_copy(update={"max_grad_norm": 0.01}))
    lengths, step = list[float](), made.optimizer.step

    def noted() -> None:
        lengths.append(math.sqrt(sum(float(p.grad.square().sum()) for p in values_of(made) if p.grad is not None)))
        step()

    monkeypatch.setattr(made.optimizer, "step", noted)
    record = made._step()
    assert record["grad_norm"] > 0.02, "what is told is the length before"
    assert lengths == [pytest.approx(0.01, rel=1e-3)]


def test_a_share_of_a_step_warms_up_for_one(tmp_path: Path) -> None:
    made = trainer(tmp_path, loop=LOOP.model_copy(update={"warmup_ratio": 0.06}))
    assert made.plan.steps == 18, "of which the share is 1.08"
    rates = [made._step()["learning_rate"] for _ in range(2)]
    assert rates == pytest.approx([LOOP.learning_rate / 2, LOOP.learning_rate])


def test_learning_rate_curve() -> None:
    curve = [rate(step, 100, 2.0, 10) for step in range(1, 101)]
    assert curve[0] == pytest.approx(0.2)
    assert curve[9] == max(curve) == 2.0
    assert curve[54] == pytest.approx(2.0 * 0.55)
    assert curve[-1] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(curve[9:]))
    assert rate(1, 1, 2.0, 0) == pytest.approx(0.2)


# What stands in front of a text, or is looked at through a gate, can only steer frozen random weights: it takes larger
# steps and more of them. The recurrent encoder starts at nearly the same vector for all of its tokens. Its bound is
# still below what is left (0.55) when all that is known are the answers' tokens and how often each comes.
STEERING = {
    **dict.fromkeys(("llama_adapter", "scalar gates", "prefix_tuning", "prefix by a network"), (0.1, 60, 1 / 3)),
    **dict.fromkeys(("prompt_tuning", "p-tuning mlp"), (0.3, 100, 1 / 3)),
    "p-tuning lstm": (0.1, 150, 0.5),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_method_overfits_eight_samples(form: str, tmp_path: Path) -> None:
    """The loop has no method's name in it: all go through it."""
    learning_rate, steps, bound = STEERING.get(form, (3e-2, 60, 1 / 3))
    loop = LOOP.model_copy(update={"epochs": steps, "batch_size": 8, "learning_rate": learning_rate,
                                   "save_steps": 1000, "micro_batch_tokens": 400})  # fmt: skip
    made = trainer(tmp_path, form, loop, data=(DATA[:8], []))
    made.run()
    curve = losses(tmp_path)
    assert len(curve) == steps
    assert curve[-1] < curve[0] * bound


def test_bf16_computes_with_fp32_masters(tmp_path: Path) -> None:
    loop = LOOP.model_copy(update={"learning_rate": 1e-3})
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for form in ("lora", "full"):
            made = trainer(tmp_path / f"{dtype}{form}", form, loop, dtype=dtype, data=(DATA[:18], []))
            for parameter in made.learner.model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
            made.run()
            assert all(p.dtype == torch.float32 for p in made.learner.trained.values())
            found.append(losses(made.folder))
    for exact, rounded in zip(found[:2], found[2:], strict=True):
        assert exact != rounded
        assert exact[:6] == pytest.approx(rounded[:6], rel=0.02)
        assert exact == pytest.approx(rounded, rel=0.1)  # rounding adds up from step to step


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_documents_are_not_split_between_training_and_validation() -> None:
    training, validation = split(DATA, 0.25, seed=1)
    assert {e.group for e in training}.isdisjoint({e.group for e in validation})
    assert len({e.group for e in validation}) == 2
    assert split(DATA, 3, seed=1)[1] != split(DATA, 3, seed=2)[1]
    assert len({e.group for e in split(DATA, 3, seed=1)[1]}) == 3
    assert split(DATA, 0, seed=1)[1] == []
    assert split([replace(e, group="one") for e in DATA], 0.5, seed=1)[1] == []
    one = DATA[0].group
    training, validation = split(DATA, 0, seed=1, aside={one})
    assert {e.group for e in validation} == {one}
    assert len(training) + len(validation) == len(DATA)
    assert len({e.group for e in split(DATA, 2, seed=1, aside={one})[1]}) == 3, "besides those that are drawn"


@pytest.mark.parametrize("processes", [1, 2])
def test_each_epoch_has_each_example_once(processes: int) -> None:
    lengths = [len(e.ids) for e in DATA]
    plan = Plan([(i,) for i in range(24)], lengths, 6, 40, 2.0, None, 3, processes)
    seen = [i for step in range(plan.steps) for rank in plan.step(step) for part in rank for i in part]
    assert plan.steps == 8
    assert sorted(seen[:24]) == list(range(24))
    assert sorted(seen) == sorted([*range(24), *range(24)])
    assert seen[:24] != seen[24:]
    for step in range(plan.steps):
        shares = plan.step(step)
        assert len({len(rank) for rank in shares}) == 1  # as many forwards in each process
        assert all(part for rank in shares for part in rank)
        assert all(len(part) == 1 or sum(lengths[i] for i in part) <= 40 for rank in shares for part in rank)
    assert plan.step(7) == Plan([(i,) for i in range(24)], lengths, 6, 40, 2.0, None, 3, processes).step(7)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "sizes"),
    [
        (1.0, None, [8, 2]),
        (1.0, 100, [8, 2]),
        (1.0, 2, [8, 2]),
        (1.0, 1, [8]),
        (2.5, 3, [8, 8, 8]),
        (2.5, 9, [8, 8, 8, 1]),
    ],
)
def test_max_steps_only_ends_a_run_earlier(epochs: float, max_steps: int | None, sizes: list[int]) -> None:
    plan = Plan([(i,) for i in range(10)], [5] * 10, 8, 100, epochs, max_steps, 0)
    steps = [[i for rank in plan.step(number) for part in rank for i in part] for number in range(plan.steps)]
    assert [len(each) for each in steps] == sizes
    assert len({i for each in steps[:2] for i in each}) == min(10, sum(sizes[:2])), "none again before all were there"


def test_packs_hold_everything_and_no_more_than_fits(tmp_path: Path) -> None:
    made = packs(DATA, 64)
    assert sorted(i for pack in made for i in pack) == list(range(24))
    assert all(sum(len(DATA[i].ids) for i in pack) <= 64 for pack in made)
    assert len(made) <= math.ceil(sum(len(e.ids) for e in DATA) / 64) + 2
    packed = trainer(tmp_path, loop=LOOP.model_copy(update={"packing": True, "cutoff_len": 64, "batch_size": 2}))
    assert packed.plan.steps < trainer(tmp_path, loop=LOOP.model_copy(update={"batch_size": 2})).plan.steps
    packed.run()


# -- validation and early stopping -------------------------------------------------------------------------------------


def test_stops_early_and_restores_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted curve: best at step 4, no better twice, so it ends at step 12 with the values of step 4."""
    script = iter([5.0, 3.0, 4.0, 3.5, 1.0])
    kept: dict[int, dict[str, torch.Tensor]] = {}
    made = trainer(tmp_path, loop=LOOP.model_copy(update={"patience": 2}))

    def scripted(self: Trainer) -> float:
        kept[self.state.step] = values(self.learner)
        return next(script)

    monkeypatch.setattr(Trainer, "validation_loss", scripted)
    state = made.run()
    assert (state.step, state.best_step, state.best_loss) == (12, 4, 3.0)
    assert all(torch.equal(p, kept[4][n]) for n, p in made.learner.trained.items())
    assert any(not torch.equal(kept[12][n], p) for n, p in kept[4].items())
    assert [row["best"] for row in read_log(tmp_path) if "val_loss" in row] == [True, True, False, False]


def test_as_good_is_not_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal ones the first is kept, and a run that only stays as good comes to its end."""
    monkeypatch.setattr(Trainer, "validation_loss", lambda self: 3.0)
    state = trainer(tmp_path, loop=LOOP.model_copy(update={"patience": 2})).run()
    assert (state.step, state.best_step) == (8, 0)


def test_nothing_is_dropped_in_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "dropped", ("lora", {"lora_rank": 4, "lora_dropout": 0.5}))
    made, plain = trainer(tmp_path / "a", "dropped"), trainer(tmp_path / "b")
    for each in (made, plain):
        shaken(each.learner.model, each.learner.adapter, by=0.3)
        each.module.train()  # as a step leaves it
    assert made.validation_loss() == pytest.approx(plain.validation_loss(), rel=1e-6)


def test_validation_is_the_mean_over_learned_tokens(tmp_path: Path) -> None:
    made = trainer(tmp_path, loop=LOOP.model_copy(update={"micro_batch_tokens": 40}))
    total = sum(made.learner(Batch.of([e]))[0].item() for e in DATA[18:])
    assert made.validation_loss() == pytest.approx(total / sum(e.supervised for e in DATA[18:]), rel=1e-5)


# -- resuming ----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_at(step: int) -> Callable[[dict[str, Any]], None]:
    def listen(record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise Killed

    return listen


@pytest.mark.parametrize("form", ["lora", "full", "prefix by a network", "llama_pro"])
def test_resumed_is_uninterrupted_bit_for_bit(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two checkpoints, with dropout drawing random numbers."""
    monkeypatch.setitem(FORMS, "lora", ("lora", {"lora_rank": 4, "lora_dropout": 0.3}))
    straight = trainer(tmp_path / "a", form)
    end = straight.run()
    with pytest.raises(Killed):
        trainer(tmp_path / "b", form, listen=killed_at(10)).run()
    assert len(losses(tmp_path / "b")) == 10
    resumed = trainer(tmp_path / "b", form, resume=True)
    assert resumed.state.step == 8
    state = resumed.run()
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert len(losses(tmp_path / "a")) == straight.plan.steps
    assert (state.best_loss, state.best_step, state.tokens) == (end.best_loss, end.best_step, end.tokens)
    ours, theirs = values(resumed.learner), values(straight.learner)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.parametrize("damage", [TENSORS, STATE, "sha256.json"])
def test_a_checkpoint_cut_short_is_passed_over(damage: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, listen=killed_at(9)).run()
    newest = sorted(tmp_path.glob("step-*"))[-1]
    assert newest.name == "step-0000008"
    file = newest / damage
    file.write_bytes(file.read_bytes()[:-7])
    told: list[str] = []
    assert trainer(tmp_path, resume=True, tell=told.append).state.step == 4
    assert told == ["checkpoint step-0000008 is damaged or was cut short; it is passed over"]


def test_a_killed_write_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path, 2)
    kept.save(1, {"x": torch.ones(1)}, {"step": 1})
    write = checkpoints.write_whole

    def cut(path: Path, data: bytes) -> None:
        write(path, data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_whole", cut)
    with pytest.raises(KeyboardInterrupt):
        kept.save(2, {"x": torch.ones(1)}, {"step": 2})
    found = kept.latest()
    assert found is not None
    assert found[1] == {"step": 1}


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, listen=killed_at(5)).run()
    with pytest.raises(FinetuneError, match="another configuration, dataset or model"):
        trainer(tmp_path, resume=True, identity="y")


def test_old_checkpoints_go(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    assert [p.name for p in sorted(tmp_path.glob("step-*"))] == ["step-0000016", "step-0000018"]


# -- what can go wrong -------------------------------------------------------------------------------------------------


def test_nan_says_step_and_sample(tmp_path: Path) -> None:
    made = trainer(tmp_path, loop=LOOP.model_copy(update={"batch_size": 18, "micro_batch_tokens": 10_000}))
    assert isinstance(made.learner.model, Transformer)
    bad = DATA[11]
    rare = next(i for i in bad.ids if all(i not in e.ids for e in DATA[:18] if e is not bad))
    with torch.no_grad():
        made.learner.model.embed_tokens.weight[rare] = math.nan
    made.validation = []
    # The output matrix is tied: the number is bad in everybody's logits unless it is untied here.
    made.learner.model.lm_head.weight = torch.nn.Parameter(torch.randn(96, 48), requires_grad=False)
    with pytest.raises(FinetuneError, match=r"loss of step 1 is not a number \(sample s11\)"):
        made.run()


def test_a_gradient_that_is_not_a_number_changes_nothing(tmp_path: Path) -> None:
    """The loss before it may be one."""
    made = trainer(tmp_path)
    before = values(made.learner)
    values_of(made)[0].register_hook(lambda grad: grad * math.inf)
    with pytest.raises(FinetuneError, match="the gradient of step 1 is not a number; lower learning_rate"):
        made._step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in made.learner.trained.items())


def test_a_validation_that_is_not_a_number_ends_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.learner.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(FinetuneError, match="the validation's loss after step 0 is not a number; lower learning_rate"):
        made.run()


def test_running_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Learner, batch: Batch) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Learner, "forward", full)
    made = trainer(tmp_path, loop=LOOP.model_copy(update={"micro_batch_tokens": 10_000}), data=(DATA[:18], []))
    with pytest.raises(FinetuneError, match=r"step 1 with \d+ tokens at once; lower micro_batch_tokens below \d+, or"):
        made.run()
    made = trainer(tmp_path, loop=LOOP.model_copy(update={"batch_size": 1}), data=(DATA[:18], []))
    with pytest.raises(FinetuneError, match="lower cutoff_len"):
        made.run()

    def other(self: Learner, batch: Batch) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(Learner, "forward", other)
    with pytest.raises(RuntimeError, match="something else"):
        trainer(tmp_path, data=(DATA[:18], [])).run()


def test_a_full_disk_is_one_line_and_the_run_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoints.write_whole

    def full(path: Path, data: bytes) -> None:
        if "0000008" in str(path):
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoints, "write_whole", full)
    with pytest.raises(FinetuneError, match="step-0000008 cannot be written: the disk is full; make room"):
        trainer(tmp_path).run()
    assert not list(tmp_path.glob(".*part"))
    monkeypatch.setattr(checkpoints, "write_whole", write)
    assert trainer(tmp_path, resume=True).state.step == 4


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="no example is left"):
        trainer(tmp_path, data=([], []))


def test_log_and_tensorboard(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    trainer(tmp_path, listen=records.append).run()
    assert read_log(tmp_path) == json.loads(json.dumps(records))
    step = next(r for r in records if "loss" in r)
    assert {"step", "steps", "loss", "learning_rate", "grad_norm", "tokens_per_s", "seconds_left"} <= step.keys()
    events = list((tmp_path / "tensorboard").glob("events.*"))
    assert len(events) == 1
    assert events[0].stat().st_size > 500


def test_curves_of_a_resumed_run_begin_behind_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard would draw the steps twice that were computed twice."""
    from torch.utils import tensorboard

    purged = []

    class Noted(tensorboard.SummaryWriter):  # type: ignore[misc]
        def __init__(self, *given: Any, **more: Any) -> None:
            purged.append(more.get("purge_step"))
            super().__init__(*given, **more)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(tensorboard, "SummaryWriter", Noted)
    with pytest.raises(Killed):
        trainer(tmp_path, listen=killed_at(10)).run()
    trainer(tmp_path, resume=True).run()
    assert purged == [None, 9]


def test_the_adapter_is_what_trains(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    assert isinstance(made.learner.adapter, Adapter)
    before = {n: p.clone() for n, p in made.learner.model.named_parameters()}
    made.run()
    assert all(torch.equal(p, before[n]) for n, p in made.learner.model.named_parameters())
