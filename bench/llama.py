"""Our engine beside llama.cpp and transformers: the same file, threads and prompts, in turns, in one run.

    python bench/llama.py [--model FILE] [--threads N] [--rounds N] [--only NAME ...]

Every engine lives in a process of its own that loads the model and waits for tasks; the parent asks them in turns,
so that all meet the same weather. Figures are medians over the rounds; those of each round go to standard error as they
come, a JSON object a line. The last line of the output is JSON, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engines import DEFAULT, ENGINES, Transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # first, for this file would else be `llama`

PREFILLS = (128, 512, 1024, 2048)
DECODE_AFTER, DECODE = 512, 64
PROMPT, ANSWER = 1024, 40
CONCURRENT, CONCURRENT_PROMPT = 16, 256
FIRST_PROMPT = 512
SENTENCES = (
    "The refuge stands at {0} metres above the sea and has {1} beds. ",
    "Dinner is served at {2} o'clock, and breakfast from {3} on. ",
    "A night costs {1} euros with a blanket and {0} cents without. ",
    "The path from the valley takes {3} hours in dry weather. ",
    "Bus number {1} leaves the station every {2} minutes. ",
)


def text_of(seed: int, characters: int) -> str:
    """Plain prose that no other seed shares a beginning with."""
    lines = [f"House number {seed}. "]
    n = seed * 7919
    while sum(map(len, lines)) < characters:
        n += 1
        numbers = [(n * k) % m + 1 for k, m in ((37, 3000), (11, 90), (5, 12), (3, 9))]
        lines.append(SENTENCES[n % len(SENTENCES)].format(*numbers))
    return "".join(lines)


def serve(name: str, model: Path, threads: int) -> None:
    """The process of one engine: a task from each line of standard input, its seconds to standard output."""
    import resource

    # Whatever a library prints must not come between.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with model.open("rb") as file:  # into the page cache
        while file.read(1 << 20):
            pass
    ENGINES[name].libraries()
    started = time.perf_counter()
    engine = ENGINES[name](model, threads)
    loaded = time.perf_counter() - started
    print(json.dumps(loaded), file=lines)
    for line in sys.stdin:
        task, *args = json.loads(line)
        if task == "peak":
            found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        elif task == "ids":
            found = engine.encode(text_of(args[0], args[1] * 8))[: args[1]]
        elif task == "forget":
            found = engine.forget()
        else:
            found = getattr(engine, task)(*args)
        print(json.dumps(found), file=lines)


class Peer:
    """An engine in its own process."""

    def __init__(self, name: str, model: Path, threads: int) -> None:
        self.name = name
        command = [sys.executable, __file__, "--serve", name, "--model", str(model), "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        self.load_s = self._read()

    def __call__(self, task: str, *args: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([task, *args]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def one_round(peer: Peer, seed: int) -> dict[str, float]:
    """Every figure of one engine, once."""
    found: dict[str, float] = {}
    for size in PREFILLS:
        found[f"prefill {size}, tokens/s"] = size / peer("prefill", peer("ids", seed, size))
    found["time to first token of 512, s"] = 512 / found["prefill 512, tokens/s"]
    found["decode after 512, tokens/s"] = DECODE / peer("decode", peer("ids", seed + 1, DECODE_AFTER), DECODE)
    prompt = peer("ids", seed + 2, PROMPT)
    peer("forget")
    found["40 tokens after 1,024, cold, s"] = peer("answer", prompt, ANSWER)
    # The same passages, another question behind them.
    changed = [*prompt[:-24], *peer("ids", seed + 3, 24)]
    found["the same, prefix seen before, s"] = peer("answer", changed, ANSWER)
    if peer.name.startswith("paddock"):
        ids = peer("ids", seed + 4, DECODE_AFTER)
        with_, without = (peer("decode", ids, DECODE, lookup) for lookup in (True, False))
        found["decode with prompt lookup, against without"] = without / with_
    found["peak memory of one stream, MB"] = peer("peak")
    if peer.name == Transformers.name:  # one by one, as its single stream is; minutes that would tell nothing new
        return found
    prompts = [peer("ids", seed + 10 + i, CONCURRENT_PROMPT) for i in range(CONCURRENT)]
    peer("forget")
    found["16 requests at once, tokens/s"] = CONCURRENT * ANSWER / peer("many", prompts, ANSWER)
    if peer.name.startswith("paddock"):  # the prompts are known now
        known = CONCURRENT * ANSWER / peer("many", prompts, ANSWER)
        found["16 at once, prompts read before, tokens/s"] = known
        found["16 at once against one stream, prompts read before"] = known * peer("many", prompts[:1], ANSWER) / ANSWER
    peer("forget")
    alone = peer("many", prompts[:1], ANSWER)
    found["16 at once against one stream"] = found["16 requests at once, tokens/s"] / (ANSWER / alone)
    return found


def one_start(peer: Peer) -> dict[str, float]:
    """Figures of an engine that has just been started."""
    found = {"load, s": peer.load_s}
    peer("prefill", peer("ids", 1, FIRST_PROMPT))
    found[f"peak memory after loading and a prompt of {FIRST_PROMPT}, MB"] = peer("peak")
    return found


def main() -> None:
    from app import config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=config.state_folder() / "models" / config.DEFAULT_MODEL)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=sorted(ENGINES), default=DEFAULT, help="engines")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.model, args.threads)
        return
    config.quiet()
    peers = []
    for name in args.only:
        try:
            Peer(name, args.model, args.threads).close()  # compiles and packs what is kept for later starts
            peers.append(Peer(name, args.model, args.threads))
        except RuntimeError as error:
            print(f"{name} is left out: {error}; `make peers` installs it")
    if not peers:
        sys.exit("no engine is left")
    rounds: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    for number in range(args.rounds + 1):  # round 0 warms up and does not count
        for peer in peers:
            found = one_round(peer, 1000 * (number + 1))
            if number:
                fresh = Peer(peer.name, args.model, args.threads)
                found = {**one_start(fresh), **found}
                fresh.close()
                rounds[peer.name].append(found)
            figures = {key: round(value, 3) for key, value in found.items()}
            print(json.dumps({"round": number, "of": args.rounds, "engine": peer.name, **figures}), file=sys.stderr)
    results = {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]}
        for name, found in rounds.items()
    }
    for peer in peers:
        results[peer.name]["peak memory in all, MB"] = peer("peak")
        peer.close()
    report(results, args)


def report(results: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    ours = results.get("paddock") or next(iter(results.values()))
    names = list(results)
    ratios: dict[str, dict[str, float]] = {}
    print(
        f"| {args.model.name}, {args.threads} threads, medians of {args.rounds} | " + " | ".join(names) + " | ratios |"
    )
    print("|---" * (len(names) + 2) + "|")
    for key in ours:
        cells = [f"{results[name][key]:.3g}" if key in results[name] else "" for name in names]
        better = {}
        for name in names:
            if name != "paddock" and key in results[name] and results[name][key]:
                more = key.endswith("tokens/s")
                better[name] = ours[key] / results[name][key] if more else results[name][key] / ours[key]
        ratios[key] = better
        print(f"| {key} | " + " | ".join(cells) + " | " + ", ".join(f"{r:.2f}× {n}" for n, r in better.items()) + " |")
    machine = {"cpu": cpu(), "threads": args.threads, "python": platform.python_version()}
    print(json.dumps({"bench": "llama", "machine": machine, "model": args.model.name, "rounds": args.rounds,
                      "results": results, "ratios": ratios}))  # fmt: skip


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
