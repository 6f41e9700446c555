"""Our engine beside llama.cpp and transformers: the same file, threads and prompts, in turns, in one run.

    python bench/llama.py [--model FILE] [--threads N] [--rounds N] [--only NAME ...]

Every engine lives in a process of its own that loads the model and waits for tasks; the parent asks them in turns,
so that all meet the same weather. Figures are medians over the rounds. The last line is JSON.
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PREFILLS = (128, 512, 1024, 2048)
DECODE_AFTER, DECODE = 512, 64
PROMPT, ANSWER = 1024, 40
CONCURRENT, CONCURRENT_PROMPT = 16, 256
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


class Ours:
    """Paddock's engine as it answers by default on this machine."""

    name = "paddock"
    options: dict[str, str] = {}  # noqa: RUF012  read only

    @staticmethod
    def libraries() -> None:
        """Imports what loading needs; not counted as loading."""
        from app import config

        config.quiet()
        import llama.engine

        assert llama.engine

    def __init__(self, model: Path, threads: int) -> None:
        import torch

        from app import config
        from llama.engine import load_engine

        torch.set_num_threads(threads)
        cache = config.state_folder() / "cache" / "quantized"
        self.engine = load_engine(model, quant=self.options.get("quant", "auto"), cache=cache,
                                  dtype=self.options.get("dtype", "auto"))  # fmt: skip

    def encode(self, text: str) -> list[int]:
        return self.engine.tokenizer.encode(text)

    def forget(self) -> None:
        self.engine.scheduler.prefixes.clear()

    def prefill(self, ids: list[int]) -> float:
        self.forget()
        return self._timed(ids, 1)[0]

    def decode(self, ids: list[int], count: int, lookup: bool = False) -> float:
        """Seconds for `count` tokens behind the first."""
        first, whole = self._timed(ids, count + 1, lookup)
        return whole - first

    def answer(self, ids: list[int], count: int, lookup: bool = True) -> float:
        return self._timed(ids, count, lookup)[1]

    def _timed(self, ids: list[int], count: int, lookup: bool = False) -> tuple[float, float]:
        request = self.engine.generate(ids, self._params(count, lookup))
        started = time.perf_counter()
        first = None
        for _ in request:
            first = first or time.perf_counter() - started
        whole = time.perf_counter() - started
        assert request.usage.answer_tokens == count, "ended early; the figure would flatter"
        return first or whole, whole

    def many(self, prompts: list[list[int]], count: int) -> float:
        self.forget()
        started = time.perf_counter()
        found = [r for _, r in self.engine.generate_batch(prompts, self._params(count, False), rows=len(prompts))]
        assert len(found) == len(prompts)
        return time.perf_counter() - started

    @staticmethod
    def _params(count: int, lookup: bool) -> Any:
        from llama.sampling import SamplingParams

        return SamplingParams(max_tokens=count, lookup=lookup)


class OursPlain(Ours):
    """Our engine with the weights as they are, in the machine's best precision."""

    name = "paddock, not quantized"
    options = {"quant": "none"}  # noqa: RUF012  read only


class LlamaCpp:
    """llama-cpp-python with flash attention; `generate` keeps the prefix that it shares with the request before."""

    name = "llama.cpp"

    @staticmethod
    def libraries() -> None:
        import llama_cpp

        assert llama_cpp

    def __init__(self, model: Path, threads: int) -> None:
        from llama_cpp import Llama

        self.llama = Llama(str(model), n_ctx=4096, n_threads=threads, n_threads_batch=threads, n_batch=2048,
                           n_ubatch=512, flash_attn=True, verbose=False)  # fmt: skip

    def encode(self, text: str) -> list[int]:
        return list(self.llama.tokenize(text.encode(), add_bos=False))

    def forget(self) -> None:
        self.llama.reset()

    def prefill(self, ids: list[int]) -> float:
        self.forget()
        started = time.perf_counter()
        self.llama.eval(ids)
        self._next()
        return time.perf_counter() - started

    def decode(self, ids: list[int], count: int, lookup: bool = False) -> float:
        self.prefill(ids)
        token = self._next()
        started = time.perf_counter()
        for _ in range(count):
            self.llama.eval([token])
            token = self._next()
        return time.perf_counter() - started

    def _next(self) -> int:
        return int(self.llama.sample(temp=0.0))

    def answer(self, ids: list[int], count: int, lookup: bool = True) -> float:
        """Through `generate`, which keeps the longest common prefix with the request before."""
        started = time.perf_counter()
        for i, _ in enumerate(self.llama.generate(ids, temp=0.0, top_k=1)):
            if i == count - 1:
                break
        return time.perf_counter() - started

    def many(self, prompts: list[list[int]], count: int) -> float:
        """One after the other: the binding has no batch of requests."""
        started = time.perf_counter()
        for ids in prompts:
            self.forget()
            self.answer(ids, count)
        return time.perf_counter() - started


class Transformers:
    """transformers on the same file, dequantized to bf16 where the CPU computes it fast, else fp32."""

    name = "transformers"

    @staticmethod
    def libraries() -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        assert AutoModelForCausalLM, (AutoTokenizer, LlamaForCausalLM)

    def __init__(self, model: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from llama.engine import fast_bfloat16

        torch.set_num_threads(threads)
        dtype = torch.bfloat16 if fast_bfloat16(torch.device("cpu")) else torch.float32
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
        self.model = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=dtype).eval()

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def forget(self) -> None:
        pass

    def prefill(self, ids: list[int]) -> float:
        started = time.perf_counter()
        with self.torch.inference_mode():
            self.model(self.torch.tensor([ids]), use_cache=True, logits_to_keep=1).logits[0, -1].argmax()
        return time.perf_counter() - started

    def decode(self, ids: list[int], count: int, lookup: bool = False) -> float:
        torch = self.torch
        with torch.inference_mode():
            out = self.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            started = time.perf_counter()
            for _ in range(count):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
        return time.perf_counter() - started

    def answer(self, ids: list[int], count: int, lookup: bool = True) -> float:
        started = time.perf_counter()
        tokens = self.torch.tensor([ids])
        self.model.generate(tokens, attention_mask=self.torch.ones_like(tokens), max_new_tokens=count,
                            min_new_tokens=count, do_sample=False, pad_token_id=0)  # fmt: skip
        return time.perf_counter() - started


ENGINES: dict[str, Any] = {each.name: each for each in (Ours, OursPlain, LlamaCpp, Transformers)}


DEFAULT = [Ours.name, LlamaCpp.name, Transformers.name]


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
    found["16 requests at once, tokens/s"] = CONCURRENT * ANSWER / peer("many", prompts, ANSWER)
    alone = peer("many", prompts[:1], ANSWER)
    found["16 at once against one stream"] = found["16 requests at once, tokens/s"] / (ANSWER / alone)
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
    names = args.only
    rounds: dict[str, list[dict[str, float]]] = {}
    loads: dict[str, list[float]] = {}
    peers = []
    for name in names:
        try:
            Peer(name, args.model, args.threads).close()  # compiles and packs what is kept for later starts
            peers.append(Peer(name, args.model, args.threads))
        except RuntimeError as error:
            print(f"{name} is left out: {error}; `make peers` installs it")
    for number in range(args.rounds + 1):
        for peer in peers:
            found = one_round(peer, 1000 * (number + 1))
            if number:  # the first round warms up
                rounds.setdefault(peer.name, []).append(found)
                again = Peer(peer.name, args.model, args.threads)
                loads.setdefault(peer.name, []).append(again.load_s)
                again.close()
        print(f"round {number} of {args.rounds}", file=sys.stderr)
    results = {
        name: {
            "load, s": statistics.median(loads[name]),
            **{key: statistics.median(each[key] for each in found) for key in found[0]},
        }
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
