"""Two processes over gloo give what one gives."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)
from finetune.config import Loop
from finetune.distributed import start
from finetune.learner import Learner
from finetune.trainer import Trainer
from tests.finetune.conftest import adapted, examples

kind, form, out, recompute = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "1"
world = start(kind)
model, adapter = adapted(form)
loop = Loop(max_steps=3, batch_size=6, learning_rate=1e-2, micro_batch_tokens=40, eval_steps=3, save_steps=3)
data = examples(24)
learner = Learner(model, adapter, torch.float32, recompute)
trainer = Trainer(learner, data[:18], data[18:], loop, out / kind, "x", world=world)
state = trainer.run()
found = {n: world.whole(p).clone().contiguous() for n, p in trainer.learner.trained.items()}
found["val_loss"] = torch.tensor(state.best_loss)
stored = {}
def keep():
    stored.update({f"stored/{n}": world.whole(t).clone() for n, t in adapter.stored(learner.model).items()})
world.save(keep, learner)
if world.rank == 0:
    save_file({**found, **{n: t.contiguous() for n, t in stored.items()}}, out / f"{kind}.safetensors")
world.close()
"""


# A run from end to end, and one that ends at its first checkpoint and is gone on with; what each process drew from.
RESUMED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from finetune.config import Loop
from finetune.distributed import start
from finetune.learner import Learner
from finetune.log import read_log
from finetune.trainer import Trainer
from tests.finetune.conftest import FORMS, adapted, examples

out, world = Path(sys.argv[1]), start("ddp")
FORMS["lora"] = ("lora", {"lora_rank": 4, "lora_dropout": 0.3})
loop = Loop(epochs=2, max_steps=4, batch_size=6, learning_rate=1e-2, micro_batch_tokens=40, save_steps=2)
data = examples(24)

class Ended(Exception):
    pass

class Ends(Trainer):
    def _save(self):
        super()._save()
        raise Ended

def ran(kind, folder, resume=False):
    learner = Learner(*adapted("lora"), torch.float32, False)
    trainer = kind(learner, data[:18], data[18:], loop, out / folder, "x", world=world, resume=resume)
    seeds, step = [], trainer._step
    def noted():
        record = step()
        seeds.append(torch.initial_seed())
        return record
    trainer._step = noted
    try:
        trainer.run()
    except Ended:
        assert trainer.state.step == 2
    return {n: p.detach().clone() for n, p in trainer.learner.trained.items()}, seeds

straight, seeds = ran(Trainer, "a")
ran(Ends, "b")
resumed, later = ran(Trainer, "b", resume=True)
assert later == seeds[2:]
assert straight.keys() == resumed.keys()
assert all(torch.equal(straight[n], resumed[n]) for n in straight), "not bit for bit"
if world.rank == 0:
    losses = [[r["loss"] for r in read_log(out / folder) if "loss" in r] for folder in "ab"]
    assert losses[0] == losses[1], losses
(out / f"seeds-{world.rank}").write_text("\\n".join(map(str, seeds)))
world.close()
"""


def port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def run(kind: str, form: str, out: Path, recompute: bool = False) -> dict[str, torch.Tensor]:
    script = out / "run.py"
    script.write_text(SCRIPT)
    started([str(script), kind, form, str(out), str(int(recompute))], kind != "none")
    return load_file(out / f"{kind}.safetensors")


def started(words: list[str], together: bool) -> None:
    if together:
        words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port()), *words]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=240,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("kind", "form"), [("ddp", "lora"), ("ddp", "full"), ("fsdp", "lora"), ("fsdp", "full")])
def test_two_processes_give_the_single_ones_parameters(kind: str, form: str, tmp_path: Path) -> None:
    """After three steps of unequal micro-batches: parameters, validation loss, and what is stored."""
    alone, together = run("none", form, tmp_path), run(kind, form, tmp_path, recompute=form == "full")
    assert alone.keys() == together.keys()
    assert len(alone) > 10
    for name, tensor in alone.items():
        assert torch.allclose(tensor, together[name], atol=2e-5), name


def test_two_processes_with_dropout_go_on_bit_for_bit(tmp_path: Path) -> None:
    """Each process drops what it would have dropped, and never the same as another or as in another step."""
    script = tmp_path / "run.py"
    script.write_text(RESUMED)
    started([str(script), str(tmp_path)], together=True)
    drawn = [seed for rank in (0, 1) for seed in (tmp_path / f"seeds-{rank}").read_text().split()]
    assert len(set(drawn)) == len(drawn) == 8
