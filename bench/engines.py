"""The engines that `bench/llama.py` sets side by side, each behind the same few tasks that take token ids.

prefill(ids) -> seconds to the first token, nothing of the prompt being known. decode(ids, count) -> seconds for `count`
tokens behind the first. answer(ids, count) -> seconds for the whole answer, with whatever was kept of earlier prompts.
many(prompts, count) -> seconds for all the answers. forget() drops what was kept. Where `lookup` is given, only our own
engine heeds it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar


class Engine:
    """What an engine does that has nothing better."""

    name: ClassVar[str]

    def forget(self) -> None:
        """Nothing is kept."""

    def answer(self, ids: list[int], count: int, lookup: bool = True) -> float:
        raise NotImplementedError

    def many(self, prompts: list[list[int]], count: int) -> float:
        """One after the other, for want of batches of requests."""
        spent = 0.0
        for ids in prompts:
            self.forget()
            spent += self.answer(ids, count)
        return spent


class Ours(Engine):
    """Paddock's engine as it answers by default on this machine."""

    name = "paddock"
    options: ClassVar[dict[str, str]] = {}

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
        self.engine.scheduler.forget()

    def prefill(self, ids: list[int]) -> float:
        self.forget()
        return self._timed(ids, 1)[0]

    def decode(self, ids: list[int], count: int, lookup: bool = False) -> float:
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
        started = time.perf_counter()
        found = [r for _, r in self.engine.generate_batch(prompts, self._params(count, False), rows=len(prompts))]
        spent = time.perf_counter() - started
        assert [r.error for r in found] == [None] * len(prompts), "failed; the figure would flatter"
        return spent

    @staticmethod
    def _params(count: int, lookup: bool) -> Any:
        from llama.sampling import SamplingParams

        return SamplingParams(max_tokens=count, lookup=lookup)


class OursPlain(Ours):
    """Our engine with the weights as they are, in the machine's best precision."""

    name = "paddock, not quantized"
    options: ClassVar[dict[str, str]] = {"quant": "none"}


class LlamaCpp(Engine):
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


class Transformers(Engine):
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

    def prefill(self, ids: list[int]) -> float:
        started = time.perf_counter()
        with self.torch.inference_mode():
            self._read(ids).logits[0, -1].argmax()
        return time.perf_counter() - started

    def decode(self, ids: list[int], count: int, lookup: bool = False) -> float:
        with self.torch.inference_mode():
            out = self._read(ids)
            started = time.perf_counter()
            for _ in range(count):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
        return time.perf_counter() - started

    def _read(self, ids: list[int]) -> Any:
        return self.model(self.torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    def answer(self, ids: list[int], count: int, lookup: bool = True) -> float:
        started = time.perf_counter()
        tokens = self.torch.tensor([ids])
        self.model.generate(tokens, attention_mask=self.torch.ones_like(tokens), max_new_tokens=count,
                            min_new_tokens=count, do_sample=False, pad_token_id=0)  # fmt: skip
        return time.perf_counter() - started


ENGINES: dict[str, Any] = {each.name: each for each in (Ours, OursPlain, LlamaCpp, Transformers)}
DEFAULT = [Ours.name, LlamaCpp.name, Transformers.name]
