"""Every method of the trainer on one small task, with the same examples: what it costs and what it brings.

    python bench/methods.py SET.json [--minutes 10] [--questions 100] [--kept 6] [--methods lora dora ...]

SET is a file in SQuAD's form. Its last articles are kept aside; each shipped configuration of a method is trained on
the others for the same time, in steps of four conversations with five questions about a paragraph each, in a process
of its own, and answers questions about the articles kept aside from the right paragraph. How many steps the time is
enough for is found by three steps before. Memory is the peak of the training process, tokens a second are a step's
median without the first. The bare model stands beside them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app import config  # noqa: E402
from finetune.config import CONFIGS  # noqa: E402
from finetune.folder import TENSORS  # noqa: E402

TASK = "data/train/reader.json"  # configurations that name it are those of the methods
TURNS = 5  # questions of a conversation about one paragraph
PROBE = 3  # steps that tell how long one takes
COLUMNS = ("trainable", "memory_mb", "tokens_per_s", "steps", "seconds", "f1", "contains")
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)"


def methods() -> list[str]:
    """The shipped configurations that train a method on the common task."""
    tables = {path.stem: path.read_text("utf-8").split("[[data]]")[1:] for path in CONFIGS.glob("*.toml")}
    return sorted(name for name, (first, *more) in tables.items() if TASK in first and not more)


def split(path: Path, kept: int, folder: Path) -> tuple[Path, Path]:
    """(the articles to train on, those kept aside) as files."""
    whole = json.loads(path.read_text("utf-8"))
    parts = (whole["data"][:-kept], whole["data"][-kept:])
    for name, articles in zip(("training", "kept"), parts, strict=True):
        (folder / f"{name}.json").write_text(json.dumps({**whole, "data": articles}), "utf-8")
    return folder / "training.json", folder / "kept.json"


def paddock(home: Path, *words: str) -> tuple[str, int]:
    """(what a command printed, the peak memory of its process in MB). Its messages pass through."""
    inner = [sys.executable, "-m", "app.cli", *words]
    code = f"import subprocess, sys; subprocess.run({inner!r}, check=True, stdout=sys.stdout); {PEAK}"
    environment = {**os.environ, "PADDOCK_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    *said, peak = done.stdout.splitlines()
    return "\n".join(said), int(peak)


def scores(home: Path, kept: Path, questions: int, adapter: str) -> dict[str, float]:
    words = ("eval", "answers", "--squad", str(kept), "--gold-context", "--limit", str(questions), "--json")
    found = json.loads(paddock(home, *words, "--adapter", adapter)[0])["figures"]
    return {name: round(100 * found[name]["value"], 1) for name in ("f1", "contains")}


def measure(home: Path, name: str, training: Path, kept: Path, args: argparse.Namespace) -> dict[str, Any]:
    changes = {
        "data.0.file": json.dumps(str(training)), "data.0.num_samples": 1_000_000, "data.0.turns": TURNS,
        "data.0.distractors": 0, "data.0.retrieve": "false", "data.0.unanswerable": 0.0, "train.val_size": 0,
        "train.epochs": 100, "train.batch_size": 4, "train.warmup_ratio": 0.1,
    }  # fmt: skip

    def train(count: int) -> tuple[list[dict[str, Any]], int]:
        """(the log of so many steps, the peak memory in MB)."""
        sets = [f"--set={key}={value}" for key, value in {**changes, "train.max_steps": count}.items()]
        _, memory = paddock(home, "finetune", "train", name, *sets)
        log = (home / "runs" / name / "log.jsonl").read_text("utf-8").splitlines()
        return [row for row in map(json.loads, log) if "tokens_per_s" in row], memory

    probe, _ = train(PROBE)
    step_s = (probe[-1]["seconds"] - probe[0]["seconds"]) / (PROBE - 1)
    steps, memory = train(max(2, round(60 * args.minutes / step_s)))
    from safetensors.torch import load_file

    return {
        "method": name,
        "trainable": sum(each.numel() for each in load_file(home / "adapters" / name / TENSORS).values()),
        "memory_mb": memory,
        "tokens_per_s": round(statistics.median(row["tokens_per_s"] for row in steps[1:])),
        "steps": len(steps),
        "seconds": round(steps[-1]["seconds"]),
        **scores(home, kept, args.questions, name),
    }


def main() -> None:
    known = methods()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--kept", type=int, default=6, help="articles kept aside")
    parser.add_argument("--methods", nargs="+", choices=known, default=known, metavar="NAME")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'method':<16}" + "".join(f"{name:>14}" for name in COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "models").symlink_to(config.load_settings().home / "models")
        training, kept = split(args.set, args.kept, home)
        rows.append({"method": "none", **scores(home, kept, args.questions, "none")})
        for name in ["", *args.methods]:
            if name:
                rows.append(measure(home, name, training, kept, args))
            print(f"{rows[-1]['method']:<16}" + "".join(f"{rows[-1].get(c, '–'):>14}" for c in COLUMNS), flush=True)
    print(json.dumps({"bench": "methods", "minutes": args.minutes, "questions": args.questions, "rows": rows}))


if __name__ == "__main__":
    main()
