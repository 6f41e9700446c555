"""Our trainer beside peft with transformers' Trainer: the same model, data, rank and batch, in one run.

    python bench/finetune.py [--steps 4] [--batch 8] [--rank 16] [--threads N] [--dtype float32] [--sides ours peft]

Each side runs in a process of its own, so that its peak memory is its own. Examples are 200 to 900 tokens of the sample
documents with the last eight learned, as questions about passages are. The first step warms up and is not counted.
Tokens are those of the examples: padding counts for nobody. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app import config  # noqa: E402

config.quiet()
MODEL = config.load_settings().path_of_model(config.DEFAULT_MODEL)
LEARNED = 8


def examples(count: int, seed: int = 0) -> list[list[int]]:
    """Token ids of pieces of the sample documents."""
    from llama.checkpoint import open_checkpoint

    texts = [path.read_text("utf-8") for path in sorted((ROOT / "data" / "inbox").glob("*.md"))]
    ids = open_checkpoint(MODEL).tokenizer().encode("\n\n".join(texts))
    draw, found = random.Random(seed), []
    for _ in range(count):
        size = draw.randint(200, 900)
        start = draw.randrange(len(ids) - size)
        found.append(ids[start : start + size])
    return found


def ours(args: argparse.Namespace, rows: list[list[int]], folder: Path) -> list[float]:
    """Seconds of each step."""
    import torch

    from finetune.config import Config, DataSpec, Loop
    from finetune.data.samples import Example
    from finetune.run import build
    from finetune.trainer import Trainer
    from llama.checkpoint import open_checkpoint

    torch.set_num_threads(args.threads or torch.get_num_threads())
    loop = Loop(
        batch_size=args.batch, max_steps=args.steps + 1, val_size=0, dtype=args.dtype, save_steps=10_000,
        micro_batch_tokens=args.micro_batch_tokens, learning_rate=1e-4, weight_decay=0.0,
    )  # fmt: skip
    method = {"name": "lora", "lora_rank": args.rank, "lora_alpha": 2 * args.rank}
    described = Config(name="bench", method=method, data=(DataSpec(file="-", format="text"),), train=loop)
    checkpoint = open_checkpoint(MODEL)
    learner = build(described, checkpoint, checkpoint.tokenizer(), "cpu")
    data = [
        Example(tuple(ids), (False,) * (len(ids) - LEARNED) + (True,) * LEARNED, str(i), str(i))
        for i, ids in enumerate(rows)
    ]
    trainer = Trainer(learner, data, [], loop, folder, "bench")
    seconds = []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        loss = trainer._step()["loss"]
        seconds.append(time.perf_counter() - started)
        print(f"  ours: step {len(seconds)}, loss {loss:.4f}, {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    return seconds


def peft(args: argparse.Namespace, rows: list[list[int]], folder: Path) -> list[float]:
    """Seconds of each step. The same examples a step, in batches as large as ours is computed in."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(args.threads or torch.get_num_threads())
    transformers.logging.disable_progress_bar()
    # In bf16 the Trainer casts what is computed, as ours does; the weights stay as they were read.
    model = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    described = LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear")
    model = get_peft_model(model, described)

    def collated(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(each["input_ids"]) for each in batch)
        made = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        return {
            name: torch.tensor([each[name] + [fill] * (longest - len(each[name])) for each in batch])
            for name, fill in made.items()
        }

    data = [
        {
            "input_ids": ids,
            "labels": [-100] * (len(ids) - LEARNED) + ids[-LEARNED:],
            "attention_mask": [1] * len(ids),
        }
        for ids in rows
    ]
    seconds: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.started)
            print(f"  peft: step {len(seconds)}, {seconds[-1]:.1f} s", file=sys.stderr, flush=True)

    settings = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=args.peer_batch, max_steps=args.steps + 1, learning_rate=1e-4,
        gradient_accumulation_steps=args.batch // args.peer_batch, adam_beta2=0.95, weight_decay=0.0, report_to=[],
        save_strategy="no", use_cpu=True, bf16=args.dtype == "bfloat16", seed=0, disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model, settings, train_dataset=data, data_collator=collated, callbacks=[Clock()]).train()
    return seconds


SIDES = {"ours": ours, "peft": peft}


def write_folder(folder: Path) -> None:
    """The model for the peer, whose Trainer takes none that was read from a GGUF file."""
    import torch

    from finetune.export import export
    from llama.checkpoint import load_transformer, open_checkpoint

    checkpoint = open_checkpoint(MODEL)
    export(load_transformer(checkpoint, torch.float32, "cpu"), checkpoint, folder, None, torch.float32)


def one(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """A side in this process."""
    rows = examples(args.batch * (args.steps + 1))
    with tempfile.TemporaryDirectory() as folder:
        seconds = SIDES[side](args, rows, Path(folder))
    # Both sides see every example once, but in orders of their own: the mean length stands for each step's.
    tokens = statistics.fmean(map(len, rows)) * args.batch
    return {
        "side": side,
        "tokens_per_s": round(tokens / statistics.median(seconds[1:]), 1),
        "seconds_of_steps": [round(each, 2) for each in seconds],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peer-batch", type=int, help="examples that the peer computes at once (default: all)")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--one", choices=["folder", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.peer_batch = args.peer_batch or args.batch
    if args.one == "folder":
        write_folder(args.folder)
        return
    if args.one:
        print(json.dumps(one(args.one, args)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in ["folder", *args.sides]:
            # A process may begin with its parent's peak: this one stays small.
            words = [sys.executable, __file__, *sys.argv[1:], "--one", side, "--folder", f"{folder}/model"]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            if side != "folder":
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{side}: {rows[-1]['tokens_per_s']} tokens/s, {rows[-1]['peak_memory_mb']} MB", flush=True)
    found: dict[str, Any] = {
        "model": MODEL.name,
        "batch": args.batch,
        "rank": args.rank,
        "dtype": args.dtype,
        "rows": rows,
    }
    if len(rows) == 2:
        found["speedup"] = round(rows[0]["tokens_per_s"] / rows[1]["tokens_per_s"], 2)
        found["memory_ratio"] = round(rows[0]["peak_memory_mb"] / rows[1]["peak_memory_mb"], 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
