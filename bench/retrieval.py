"""Retrieval alone, without the LLaMA, in knowledge bases of several sizes; beside it what LangChain offers plainly.

    python bench/retrieval.py [--sizes N ...] [--folder FOLDER] [--questions N] [--peer-up-to N]

A knowledge base of each size is built once and kept in the folder (bench/synthetic.py); the largest takes an hour or
two. Every size is measured in a process of its own, through `Services.retriever`, as questions are answered: the
question is embedded, searched for by vectors and by words, fused, checked for whole documents, and the texts of the
best are read. Peer: langchain-chroma on the same collection and rank-bm25 in memory, fused by reciprocal ranks.

Figures go to standard error as they come; the last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # first, for the tools beside this file

SIZES = (1_000, 100_000, 1_000_000)
BARS_MS = {1_000: 50, 100_000: 100, 1_000_000: 250}
K, POOL = 4, 50
# From here on a smaller graph than the default one is built, or it would take many hours.
LARGE, LARGE_EF_CONSTRUCTION = 500_000, 64


def services(folder: Path, size: int, **more: Any) -> Any:
    """The application over the knowledge base of a size, with the default embedder."""
    from app import config
    from app.services import Services

    home = folder / str(size)
    home.mkdir(parents=True, exist_ok=True)
    embedder = config.state_folder() / "models" / config.DEFAULT_EMBEDDER
    graph = {"hnsw_sync": min(50_000, size)}  # the whole of it is brought to the disk in each
    if size >= LARGE:
        graph["hnsw_ef_construction"] = LARGE_EF_CONSTRUCTION
    return Services(config.load_settings({"PADDOCK_HOME": str(home)}, embedder=str(embedder), **graph, **more))


def questions(wanted: int) -> list[str]:
    """The sample's questions, then others of words that stand in the chunks."""
    from synthetic import sentences

    lines = (ROOT / "data" / "eval" / "sample.jsonl").read_text("utf-8").splitlines()
    found = [str(json.loads(line)["question"]) for line in lines]
    draw, texts = random.Random(0), sentences(False) + sentences(True)
    while len(found) < wanted:
        one, other = (draw.choice(texts) for _ in range(2))
        cut = (lambda text: text[: len(text) // 2]) if draw.random() < 0.5 else str
        found.append(f"{cut(one)} {cut(other)}?")
    draw.shuffle(found)
    return found[:wanted]


def resident() -> int:
    """Bytes of this process that are in memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def percentiles(ask: Callable[[str], Any], asked: list[str]) -> dict[str, float]:
    """Milliseconds of a call for each question, one after the other."""
    import numpy as np

    times = []
    for question in asked:
        started = time.perf_counter()
        ask(question)
        times.append((time.perf_counter() - started) * 1e3)
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50_ms": round(float(p50), 1), "p95_ms": round(float(p95), 1), "max_ms": round(max(times), 1)}


def measure(folder: Path, size: int, asked: list[str]) -> dict[str, Any]:
    """One size, in this process."""
    from app.ingestion import index_cost
    from ingest.filter import Filter

    made = services(folder, size)
    made.embedder.embed_query("The first text loads the model.")
    import chromadb  # noqa: F401  (opening is measured, not importing)
    import tantivy  # noqa: F401

    before = resident()
    started = time.perf_counter()
    made.retriever("default", K).invoke("How much hay does a llama eat?")
    figures: dict[str, Any] = {"open_s": round(time.perf_counter() - started, 2)}
    for question in asked[:20]:
        made.retriever("default", K).invoke(question)

    def ask(mode: str, filter: Any = None) -> Callable[[str], Any]:
        return lambda question: made.retriever("default", K, mode, filter=filter).invoke(question)

    figures["hybrid"] = percentiles(ask("hybrid"), asked)
    figures["memory_mb"] = (resident() - before) >> 20
    figures["embedding"] = percentiles(made.embedder.embed_query, asked)
    figures["dense"] = percentiles(ask("dense"), asked)
    figures["keyword"] = percentiles(ask("keyword"), asked)
    few = asked[: max(1, len(asked) // 5)]
    filters = {"one folder": {"source": "00000/*"}, "one type": {"type": "md"}, "Chinese": {"language": "zh"}}
    for name, values in filters.items():
        figures[f"hybrid, {name}"] = percentiles(ask("hybrid", Filter.of(values)), few)
    figures["disk"] = json.loads(index_cost(made.ingestor, "default", True))
    return figures


def measure_peer(folder: Path, size: int, asked: list[str]) -> dict[str, Any]:
    """langchain-chroma and rank-bm25 on the same chunks, in this process."""
    from chromadb import PersistentClient
    from langchain_chroma import Chroma
    from rank_bm25 import BM25Okapi

    from vectorstore.marker import collection_name

    made = services(folder, size)
    made.embedder.embed_query("The first text loads the model.")
    before = resident()
    started = time.perf_counter()
    client = PersistentClient(str(made.settings.index / "chroma"))
    store = Chroma(collection_name("default"), made.embedder, client=client)
    names, texts = [], []
    while (page := store.get(limit=10_000, offset=len(names), include=["documents"]))["ids"]:
        names += page["ids"]
        texts += page["documents"]
    words = BM25Okapi([text.lower().split() for text in texts])
    figures: dict[str, Any] = {"open_s": round(time.perf_counter() - started, 2)}

    def ask(question: str) -> list[str]:
        ranks: dict[str, float] = {}
        near = [str(each.id) for each in store.similarity_search(question, k=POOL)]
        for side in (near, words.get_top_n(question.lower().split(), names, n=POOL)):
            for place, name in enumerate(side):
                ranks[name] = ranks.get(name, 0.0) + 1 / (60 + place)
        return sorted(ranks, key=lambda name: -ranks[name])[:K]

    ask("How much hay does a llama eat?")
    figures["hybrid"] = percentiles(ask, asked)
    figures["memory_mb"] = (resident() - before) >> 20
    return figures


def main() -> None:
    from app import config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="chunks")
    parser.add_argument("--folder", type=Path, default=config.state_folder() / "cache" / "bench-retrieval")
    parser.add_argument("--questions", type=int, default=300, metavar="N")
    parser.add_argument("--peer-up-to", type=int, default=100_000, metavar="N", help="chunks that the peer is given")
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    config.quiet()
    if args.task:
        run_task(args.task[0], args.folder, int(args.task[1]), args.questions)
        return
    has_peer = all(importlib.util.find_spec(name) for name in ("langchain_chroma", "rank_bm25"))
    if not has_peer:
        print("LangChain's retriever is left out; `make peers` installs it")
    results: dict[str, dict[str, Any]] = {}
    for size in args.sizes:
        child("build", size, args)
        results[str(size)] = {"paddock": child("measure", size, args)}
        if size <= args.peer_up_to and has_peer:
            results[str(size)]["langchain"] = child("peer", size, args)
        print(json.dumps({size: results[str(size)]}), file=sys.stderr, flush=True)
    report(results, args)


def run_task(name: str, folder: Path, size: int, wanted: int) -> None:
    """What a child does; its last line is JSON."""
    if name == "build":
        from synthetic import build

        print(json.dumps({"seconds": round(build(services(folder, size), size), 1)}))
        return
    task = measure if name == "measure" else measure_peer
    print(json.dumps(task(folder, size, questions(wanted))))


def child(name: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a task in a process of its own, so that memory is that of one size alone."""
    words = ["--task", name, str(size), "--folder", str(args.folder), "--questions", str(args.questions)]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def report(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    rows = [("chunks", "", "p50, ms", "p95, ms", "bar, ms", "opening, s", "memory, MB")]
    for size, found in results.items():
        for name, figures in found.items():
            bar = str(BARS_MS.get(int(size), "")) if name == "paddock" else ""
            hybrid = figures["hybrid"]
            line = (f"{int(size):,}", name, hybrid["p50_ms"], hybrid["p95_ms"], bar, figures["open_s"])
            rows.append((*map(str, line), str(figures["memory_mb"])))
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if not number:
            print("|---" * len(row) + "|")
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    machine["disk_free_gb"] = shutil.disk_usage(args.folder).free >> 30
    print(json.dumps({"bench": "retrieval", "machine": machine, "questions": args.questions, "results": results}))


if __name__ == "__main__":
    main()
