"""The loop. It knows of a method only what `Adapter` says: which tensors train, and that the forward takes it along."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.checkpoints import Checkpoints
from finetune.config import Loop
from finetune.data.samples import Example
from finetune.errors import FinetuneError, Interrupted
from finetune.interrupt import waiting
from finetune.learner import Batch, Learner
from finetune.log import Listener, Log, Silent
from finetune.memory import memory
from finetune.plan import Plan, packs
from finetune.world import Alone

FLOOR = 0.1  # of the learning rate at the end, against the peak (Touvron et al. 2023, section 2.3)
BETAS = (0.9, 0.95)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class State:
    """Where a run stands, besides its tensors. Seconds and tokens count over all its parts."""

    identity: str
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0  # validations since the best one
    seconds: float = 0.0
    tokens: int = 0
    done: bool = False


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate of step 1 to `steps`: a straight rise over `warmup` of them, then half a cosine to a tenth."""
    if step <= warmup:
        return peak * step / warmup
    through = (step - warmup) / max(1, steps - warmup)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * through)))


class Trainer:
    """Trains what a learner has to be trained, and leaves in it the values that validated best."""

    def __init__(
        self,
        learner: Learner,
        training: Sequence[Example],
        validation: Sequence[Example],
        loop: Loop,
        folder: Path,
        identity: str,
        listen: Listener = lambda record: None,
        tell: Callable[[str], None] = lambda line: None,
        world: Alone | None = None,
        resume: bool = False,
    ) -> None:
        """folder: of the run. identity: hash of all that it depends on; a run goes on only with the same.

        Raises FinetuneError when there is nothing to train on, or `resume` finds another run's checkpoints.
        """
        if not training:
            raise FinetuneError("no example is left to train on; see what was left out, or raise cutoff_len")
        self.learner, self.loop, self.folder = learner, loop, folder
        self.training, self.validation, self.world = training, validation, world or Alone()
        lengths = [len(each.ids) for each in training]
        units = packs(training, loop.cutoff_len) if loop.packing else [(i,) for i in range(len(training))]
        self.plan = Plan(
            units,
            lengths,
            loop.batch_size,
            loop.micro_batch_tokens,
            loop.epochs,
            loop.max_steps,
            loop.seed,
            self.world.size,
        )
        self.warmup = math.ceil(loop.warmup_ratio * self.plan.steps)
        self.device = learner.model.norm.weight.device
        self.checkpoints = Checkpoints(folder, loop.save_total_limit)
        self.state, self._listen, self._tell = State(identity), listen, tell
        found = self.checkpoints.latest(tell) if resume else None
        if resume and found is None:
            tell(f"there is no whole checkpoint in {folder} to go on from; the run begins anew")
        self.module = self.world.prepare(learner)
        matrices = [p for p in self._parameters.values() if p.ndim >= 2]
        vectors = [p for p in self._parameters.values() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": loop.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=BETAS, fused=True)
        if found is not None:
            self._restore(*found)

    @property
    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.learner.trained

    def run(self) -> State:
        """Trains to the end, or until validation has not become better for long. Raises FinetuneError."""
        log = Log(self.folder, self._listen, self.state.step, self._tell) if self.world.rank == 0 else Silent()
        # Processes of torchrun are all interrupted at once, and could not agree on a step.
        alone = waiting() if self.world.size == 1 else contextlib.nullcontext(lambda: False)
        try:
            with alone as asked:
                if self.validation and self.state.step == 0:
                    self._validated(log)  # the base's own loss, to know what was gained
                while not self.state.done:
                    log(self._step())
                    state, last = self.state, self.state.step == self.plan.steps
                    if self.validation and (state.step % self.loop.eval_steps == 0 or last):
                        self._validated(log)
                    state.done = last or state.worse >= self.loop.patience
                    stop = asked()
                    if state.step % self.loop.save_steps == 0 or state.done or stop:
                        self._save()
                    if stop and not state.done:
                        raise Interrupted(f"interrupted after step {state.step}; go on with --resume")
        finally:
            log.close()
        if self.validation:
            self._fill(self.checkpoints.best())
        return self.state

    # -- one step -------------------------------------------------------------------------------------------------

    def _step(self) -> dict[str, Any]:
        """Computes and applies one step's gradient: of the mean over all tokens that it learns, however it is cut."""
        started, state = time.perf_counter(), self.state
        shares = [[self.training[i] for i in part] for part in self.plan.step(state.step)[self.world.rank]]
        mine = sum(each.supervised for part in shares for each in part)
        size = sum(len(each.ids) for part in shares for each in part)
        learned, tokens = self.world.total(mine, size)
        # Dropout draws from seed, step and process alone: no state to keep, and no two processes drop the same.
        torch.manual_seed(random.Random(f"{self.loop.seed}/{state.step}/{self.world.rank}").getrandbits(63))
        speed = rate(state.step + 1, self.plan.steps, self.loop.learning_rate, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = speed
        self.module.train()
        summed = 0.0
        for number, part in enumerate(shares):
            with self._memory(part), self.world.accumulating(self.module, number + 1 < len(shares)):
                loss, each = self.module(batch := Batch.of(part, self.device))
                self._require_finite(loss, each, batch, part)
                # Processes are averaged by whoever exchanges gradients, so each counts as many times as there are.
                (loss * (self.world.size / learned)).backward()
            summed += loss.item()
        values = sum(parameter.numel() for parameter in self._parameters.values())
        with memory(
            f"in step {state.step + 1} for the optimizer's two moments of {values:,} values; choose a method that "
            "trains fewer, as lora does"
        ):
            clipped = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.loop.max_grad_norm)
            norm = float(self.world.whole(clipped))
            if not math.isfinite(norm):
                raise FinetuneError(f"the gradient of step {state.step + 1} is not a number; {self._slower}")
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        (summed,) = self.world.total(summed)
        seconds = time.perf_counter() - started
        state.step, state.seconds, state.tokens = state.step + 1, state.seconds + seconds, state.tokens + int(tokens)
        return {
            "step": state.step,
            "steps": self.plan.steps,
            "loss": summed / learned,
            "learning_rate": speed,
            "grad_norm": norm,
            "tokens": int(tokens),
            "learned_tokens": int(learned),
            "tokens_per_s": tokens / seconds,
            "seconds": round(state.seconds, 3),
            "seconds_left": round(state.seconds / state.step * (self.plan.steps - state.step), 1),
        }

    def _require_finite(self, loss: Tensor, each: Tensor, batch: Batch, part: Sequence[Example]) -> None:
        if math.isfinite(loss.item()):
            return
        bad = (~each.isfinite()).nonzero()[:1, 0].tolist()
        where = part[int(batch.owner[bad[0]])].origin if bad else "not to be told"
        raise FinetuneError(
            f"the loss of step {self.state.step + 1} is not a number (sample {where}); look at that sample, or "
            f"{self._slower}"
        )

    @property
    def _slower(self) -> str:
        """What helps against numbers that grow too large."""
        exact = self.learner.dtype == torch.float32
        return "lower learning_rate" + ("" if exact else ', or set dtype = "float32"')

    def _memory(self, part: Sequence[Example]) -> contextlib.AbstractContextManager[None]:
        """Says what to lower when a forward, or the backward of it, finds no memory."""
        size = sum(len(each.ids) for each in part)
        whole = len(part) == 1 or (self.loop.packing and size <= self.loop.cutoff_len)  # nothing cuts a pack
        lower = "cutoff_len" if whole else "micro_batch_tokens"
        more = "" if self.loop.gradient_checkpointing else ", or set gradient_checkpointing = true"
        return memory(f"in step {self.state.step + 1} with {size} tokens at once; lower {lower} below {size}{more}")

    # -- validation -----------------------------------------------------------------------------------------------

    def _validated(self, log: Any) -> None:
        """Takes the loss of the examples kept aside; the values of the best one are kept on the disk."""
        loss, state = self.validation_loss(), self.state
        better = loss < state.best_loss
        if better:
            state.best_loss, state.best_step, state.worse = loss, state.step, 0
            tensors = {name: self.world.whole(p).cpu().clone() for name, p in self._parameters.items()}
            if self.world.rank == 0:
                self.checkpoints.save_best(tensors)
            self.world.wait()
        else:
            state.worse += 1
        log({"step": state.step, "val_loss": loss, "perplexity": math.exp(min(loss, 700.0)), "best": better})

    def validation_loss(self) -> float:
        """Negative log-likelihood of a learned token, over all of the validation's examples."""
        plan = Plan(
            [(i,) for i in range(len(self.validation))],
            [len(each.ids) for each in self.validation],
            max(len(self.validation), self.world.size),
            self.loop.micro_batch_tokens,
            1.0,
            1,
            0,
        )
        parts = plan.step(0)[0]
        # Every process computes as many forwards, for their exchanges to meet; what it computes twice counts once.
        rounds = math.ceil(len(parts) / self.world.size)
        summed, counted = 0.0, 0
        self.module.eval()
        with torch.no_grad():
            for number in range(rounds):
                place = number * self.world.size + self.world.rank
                part = [self.validation[i] for i in parts[place % len(parts)]]
                with self._memory(part):
                    loss, _ = self.module(Batch.of(part, self.device))
                if place < len(parts):
                    summed, counted = summed + loss.item(), counted + sum(each.supervised for each in part)
        total, count = self.world.total(summed, counted)
        if not math.isfinite(total):
            raise FinetuneError(f"the validation's loss after step {self.state.step} is not a number; {self._slower}")
        return total / count

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        tensors = {}
        for name, parameter in self._parameters.items():
            tensors[f"value/{name}"] = self.world.whole(parameter)
            for moment in MOMENTS:
                tensors[f"{moment}/{name}"] = self.world.whole(self.optimizer.state[parameter][moment])
        if self.world.rank == 0:
            self.checkpoints.save(
                self.state.step, {k: v.cpu().contiguous().clone() for k, v in tensors.items()}, asdict(self.state)
            )
        self.world.wait()

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if state["identity"] != self.state.identity:
            raise FinetuneError(
                f"the checkpoints in {self.folder} are of another configuration, dataset or model; give the run "
                "another name, or start it without --resume"
            )
        self.state = State(**state)
        if self.validation:
            self.checkpoints.best()  # damage is told now, and not when all of the rest has been trained
        self._fill({n.removeprefix("value/"): t for n, t in tensors.items() if n.startswith("value/")})
        for name, parameter in self._parameters.items():
            whole = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
            self.optimizer.state[parameter] = {
                moment: value if moment == "step" else self.world.part(value.to(self.device), parameter)
                for moment, value in whole.items()
            }

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self.world.part(tensors[name].to(self.device), parameter))
