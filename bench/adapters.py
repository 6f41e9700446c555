"""What an adapter costs a request: prompts and decoding with each method, beside the bare model, in one process.

    python bench/adapters.py [--model FILE] [--rounds 5] [--threads N] [lora:16 llama_adapter ...]

Weights are random: speed does not depend on them. `lora:16` and `dora:16` are of rank 16 on all products. At last, 8
requests at once with four LoRAs and the bare model among them, against 8 of the bare model. All take turns; of each the
best prompt and the best step count, as the machine may be shared; with one thread it is the processor's time, which
others hardly change. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Hashable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.config import load_settings, quiet

quiet()  # threads that wait must sleep, which is settled when torch is imported

import torch  # noqa: E402

from finetune.adapters import METHODS  # noqa: E402
from llama.engine import Engine, load_engine  # noqa: E402
from llama.model import Transformer  # noqa: E402
from llama.serving import Serving, Variant  # noqa: E402

PROMPT, STEPS, BESIDE = 512, 24, 8
TEXT = "The refuge stands at 2,450 metres. It has 48 beds and is open from June to October. " * 60
USUAL = ["lora:16", "dora:16", "lora:64", "prefix_tuning", "prompt_tuning", "llama_adapter", "bottleneck"]


class Random:
    """Adapters of any method, by `METHOD` or `METHOD:RANK`."""

    def stamp(self, name: str) -> Hashable:
        return name

    def load(self, name: str, model: Transformer) -> Serving:
        method, _, rank = name.partition("#")[0].partition(":")
        made = METHODS["lora" if method == "dora" else method]
        options = {"lora_rank": int(rank)} if rank else {}
        adapter = made.make(model.config, made.options(**options, **({"use_dora": True} if method == "dora" else {})))
        tensors = {key: torch.randn(value.shape) * 0.02 for key, value in adapter.stored(model).items()}
        return adapter.serve(model, tensors)


def forward(engine: Engine, variants: list[Variant], ids: list[int]) -> tuple[float, float]:
    """Tokens per second of the prompts, and of the best step behind them."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    caches = [each.new_cache(1, PROMPT + STEPS) for each in variants]
    start = clock()
    for variant, cache in zip(variants, caches, strict=True):
        piece = PROMPT if variant.grid == 1 else variant.grid  # as the scheduler reads it
        for place in range(0, PROMPT, piece):
            engine.forward([ids[place : place + piece]], [cache], variants=[variant])
    end = clock()
    rate, best = len(caches) * PROMPT / (end - start), 0.0
    for token in ids[PROMPT : PROMPT + STEPS]:
        start = clock()
        engine.forward([[token]] * len(caches), caches, variants=variants)
        best = max(best, len(caches) / (clock() - start))
    return rate, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    settings = load_settings()
    parser.add_argument("adapters", nargs="*", default=USUAL)
    parser.add_argument("--model", type=Path, default=settings.path_of_model(settings.model))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    engine = load_engine(given.model, "cpu", quant="auto", cache=settings.cache / "quantized", adapters=Random())
    ids = engine.tokenizer.encode(TEXT)
    sets: dict[str, list[Variant]] = {"bare": [engine.plain]}
    sets |= {name: [engine.variant(name)] for name in given.adapters}
    sets["bare, 8 at once"] = [engine.plain] * BESIDE
    sets["4 LoRAs and bare, 8 at once"] = [
        engine.variant(f"lora:16#{i % 5}") if i % 5 else engine.plain for i in range(BESIDE)
    ]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sets}
    for round_ in range(given.rounds + 1):
        for name, variants in sets.items():
            rates = forward(engine, variants, ids)
            if round_:  # the first compiles and warms
                found[name].append(rates)
                print(f"{name}: {rates[0]:.0f} and {rates[1]:.1f} tokens/s", file=sys.stderr)
    best = {name: [max(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    result = {}
    for name, (prefill, decode) in best.items():
        bare = best["bare, 8 at once" if "8 at once" in name else "bare"]
        result[name] = {
            "prefill_tokens_s": round(prefill, 1),
            "decode_tokens_s": round(decode, 2),
            "prefill_of_bare": round(prefill / bare[0], 3),
            "decode_of_bare": round(decode / bare[1], 3),
        }
    print(json.dumps({"threads": torch.get_num_threads(), "model": given.model.name, "adapters": result}))


if __name__ == "__main__":
    main()
