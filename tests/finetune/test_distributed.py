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


def port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def run(kind: str, form: str, out: Path, recompute: bool = False) -> dict[str, torch.Tensor]:
    script = out / "run.py"
    script.write_text(SCRIPT)
    words = [str(script), kind, form, str(out), str(int(recompute))]
    if kind != "none":
        words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port()), *words]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=240,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / f"{kind}.safetensors")


@pytest.mark.parametrize(("kind", "form"), [("ddp", "lora"), ("ddp", "full"), ("fsdp", "lora"), ("fsdp", "full")])
def test_two_processes_give_the_single_ones_parameters(kind: str, form: str, tmp_path: Path) -> None:
    """After three steps of unequal micro-batches: parameters, validation loss, and what is stored."""
    alone, together = run("none", form, tmp_path), run(kind, form, tmp_path, recompute=form == "full")
    assert alone.keys() == together.keys()
    assert len(alone) > 10
    for name, tensor in alone.items():
        assert torch.allclose(tensor, together[name], atol=2e-5), name
