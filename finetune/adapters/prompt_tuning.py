"""Prompt tuning (Lester et al. 2021): embeddings in front of the text, plain or out of an encoder (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune.adapters.base import Adapter, Encode, Method, Options, Peft, Tensors, fill
from finetune.errors import FinetuneError
from llama.cache import KVCache
from llama.config import ModelConfig
from llama.model import Transformer
from llama.serving import Serving


class PromptOptions(Options):
    """`prompt_init`: from a text's embeddings, from those of random words, or random numbers.

    `prompt_encoder`: P-Tuning's network behind the embeddings, a feed-forward or a recurrent one; it is not kept.
    """

    num_virtual_tokens: int = Field(20, ge=1)
    prompt_init: Literal["text", "vocabulary", "random"] = "text"
    prompt_text: str = "Read the passages with care and answer the question with words from them, briefly and exactly."
    prompt_encoder: Literal["none", "mlp", "lstm"] = "none"
    prompt_hidden: int = Field(256, ge=2, multiple_of=2)

    READ_WITH = (("prompt_text", "prompt_init", ("text",)), ("prompt_hidden", "prompt_encoder", ("mlp", "lstm")))

    @property
    def front(self) -> int:
        return self.num_virtual_tokens


class PromptTuning(Adapter):
    """Enters before the first token, as tokens with embeddings of their own at positions 0 to n - 1."""

    cannot_merge = "a prompt stands before the text and cannot be merged into the weights"

    def __init__(self, config: ModelConfig, options: PromptOptions) -> None:
        super().__init__()
        self.options, dim, hidden = options, config.dim, options.prompt_hidden
        self.table = nn.Parameter(torch.empty(options.num_virtual_tokens, dim))
        if not self.table.is_meta:
            nn.init.normal_(self.table, std=0.02)
        self.recurrent = (
            nn.LSTM(dim, hidden // 2, num_layers=2, bidirectional=True, batch_first=True)
            if options.prompt_encoder == "lstm"
            else None
        )
        self.network: nn.Sequential | None = None
        if options.prompt_encoder != "none":
            first = nn.Identity() if self.recurrent is not None else nn.Linear(dim, hidden)
            self.network = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def begin(self, model: Transformer, encode: Encode) -> None:
        size, options = self.options.num_virtual_tokens, self.options
        if options.prompt_init == "random":
            return
        ids = torch.randint(model.config.vocab_size, (size,)).tolist()
        if options.prompt_init == "text" and not (ids := encode(options.prompt_text)):
            raise FinetuneError('prompt_text gives no tokens; write a sentence, or set prompt_init = "vocabulary"')
        ids = (ids * -(-size // len(ids)))[:size]
        with torch.no_grad():
            self.table.copy_(model.embed_tokens(torch.tensor(ids, device=self.table.device)))

    @property
    def virtual(self) -> Tensor:
        if self.network is None:
            return self.table
        x = self.table if self.recurrent is None else self.recurrent(self.table[None])[0][0]
        found: Tensor = self.network(x)
        return found

    def stored(self, model: Transformer) -> dict[str, Tensor]:
        return {"table": self.virtual.detach()}

    def restore(self, model: Transformer, tensors: Mapping[str, Tensor]) -> None:
        self.network = self.recurrent = None  # the encoder has done its part
        fill({"table": self.table}, tensors)

    def serve(self, model: Transformer, tensors: Mapping[str, Tensor]) -> Serving:
        """What stands first depends on nothing behind it, so its keys and values are computed once for all texts."""
        self.restore(model, tensors)
        size, weight = self.options.num_virtual_tokens, model.norm.weight
        cache = KVCache(model.config, 1, size + 1, weight.dtype, weight.device)
        with torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.int64, device=weight.device), cache, adaptation=self)
        return Serving(model, front=(cache.k[:, 0, :, :size], cache.v[:, 0, :, :size]))


def _write(options: PromptOptions, config: ModelConfig, stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    return {
        "num_virtual_tokens": options.num_virtual_tokens,
        "token_dim": config.dim,
        "num_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }, {"prompt_embeddings": stored["table"]}


def _read(
    given: Mapping[str, Any], config: ModelConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Tensors]:
    if "prompt_embeddings" not in tensors:
        raise FinetuneError("it has no tensor prompt_embeddings")
    return {"num_virtual_tokens": int(given["num_virtual_tokens"])}, {"table": tensors["prompt_embeddings"]}


PEFT = Peft("PROMPT_TUNING", _write, _read)
METHOD = Method("prompt_tuning", "embeddings in front; P-Tuning's encoder", PromptOptions, PromptTuning, PEFT)
