"""Prefix tuning (Li & Liang 2021) and P-Tuning v2 (Liu et al. 2022): keys and values in front, in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from finetune.adapters.base import Adapter, Encode, Method, Options, Peft, Tensors, fill, only
from finetune.errors import FinetuneError
from llama.cache import KVCache
from llama.config import ModelConfig
from llama.model import Transformer
from llama.serving import Serving


class PrefixOptions(Options):
    """`prefix_init`: "text" starts from the keys and values of `prefix_text`, at what the base does behind that text;
    "zero" and "random" do not start at the base, so give them a warm-up.

    `prefix_projection`: while it trains, the prefix is what a small network makes of embeddings [n, prefix_hidden]; the
    network is not kept. It starts from random values.
    """

    num_virtual_tokens: int = Field(20, ge=1)
    prefix_init: Literal["text", "zero", "random"] = "text"
    prefix_text: str = "Read the passages with care and answer the question with words from them, briefly and exactly."
    prefix_projection: bool = False
    prefix_hidden: int = Field(512, ge=1)

    READ_WITH = (
        ("prefix_init", "prefix_projection", (False,)),
        ("prefix_text", "prefix_projection", (False,)),
        ("prefix_text", "prefix_init", ("text",)),
        ("prefix_hidden", "prefix_projection", (True,)),
    )

    @property
    def front(self) -> int:
        return self.num_virtual_tokens


class PrefixTuning(Adapter):
    """Enters as keys and values behind the rotary embedding; real tokens start at position n. It does not merge."""

    options: PrefixOptions
    cannot_merge = "a prefix stands in the cache and cannot be merged into the weights"

    def __init__(self, config: ModelConfig, options: PrefixOptions) -> None:
        super().__init__()
        self.options, self.shape = options, (config.n_layers, config.n_kv_heads, config.head_dim)
        size, width = options.num_virtual_tokens, 2 * config.n_layers * config.n_kv_heads * config.head_dim
        self.table: nn.Parameter | None = None
        self.network: nn.ModuleDict | None = None
        if options.prefix_projection:
            hidden = options.prefix_hidden
            self.network = nn.ModuleDict(
                {"embed": nn.Linear(hidden, size, bias=False), "inner": nn.Linear(hidden, hidden)}
            )
            self.network["outer"] = nn.Linear(hidden, width)
        else:
            self.table = nn.Parameter(torch.zeros(size, width))
            if options.prefix_init == "random" and not self.table.is_meta:
                nn.init.normal_(self.table, std=0.02)

    def begin(self, model: Transformer, encode: Encode) -> None:
        if self.table is None or self.options.prefix_init != "text":
            return
        ids = encode(self.options.prefix_text)
        if not ids:
            raise FinetuneError('prefix_text gives no tokens; write a sentence, or set prefix_init = "zero"')
        size = self.options.num_virtual_tokens
        ids = (ids * -(-size // len(ids)))[:size]
        weight = model.norm.weight
        cache = KVCache(model.config, 1, size, weight.dtype, weight.device)
        with torch.no_grad():
            model(torch.tensor([ids], device=weight.device), cache)
            both = torch.stack((cache.k[:, 0], cache.v[:, 0]), 1)  # [L, 2, G, n, E]
            self.table.copy_(both.permute(3, 0, 1, 2, 4).reshape(size, -1))

    @property
    def prefix_length(self) -> int:
        return int(self.options.num_virtual_tokens)

    def prefix(self, layer: int) -> tuple[Tensor, Tensor]:
        _, groups, width = self.shape
        size = 2 * groups * width
        part = self._columns(layer * size, (layer + 1) * size).view(-1, 2, groups, width).permute(1, 2, 0, 3)
        return part[0], part[1]

    def _columns(self, start: int, end: int) -> Tensor:
        if self.network is None:
            assert self.table is not None
            return self.table[:, start:end]
        inner = torch.tanh(self.network["inner"](self.network["embed"].weight))
        outer = self.network["outer"]
        assert isinstance(outer, nn.Linear)
        return F.linear(inner, outer.weight[start:end], outer.bias[start:end])

    def stored(self, model: Transformer) -> dict[str, Tensor]:
        """The table alone: what the network makes of its embeddings, if there was one."""
        layers, groups, width = self.shape
        return {"table": self._columns(0, 2 * layers * groups * width).detach()}

    def restore(self, model: Transformer, tensors: Mapping[str, Tensor]) -> None:
        if self.table is None:  # the network has done its part
            size, width = self.options.num_virtual_tokens, 2 * self.shape[0] * self.shape[1] * self.shape[2]
            self.network, self.table = None, nn.Parameter(torch.zeros(size, width, device=model.norm.weight.device))
        fill({"table": self.table}, tensors)

    def serve(self, model: Transformer, tensors: Mapping[str, Tensor]) -> Serving:
        """A prefix is what a cache begins with; nothing else is done in a forward."""
        self.restore(model, tensors)
        with torch.no_grad():
            parts = [self.prefix(layer) for layer in range(self.shape[0])]
        return Serving(model, front=(torch.stack([k for k, _ in parts]), torch.stack([v for _, v in parts])))


def _write(options: PrefixOptions, config: ModelConfig, stored: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
    """One table [n, 2 L G E]: K, then V, of each layer. The library takes token_dim as G E."""
    return {
        "num_virtual_tokens": options.num_virtual_tokens,
        "token_dim": config.n_kv_heads * config.head_dim,
        "num_layers": config.n_layers,
        "num_attention_heads": config.n_kv_heads,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": config.n_kv_heads * config.head_dim,
        "prefix_projection": False,
    }, {"prompt_embeddings": stored["table"]}


def _read(
    given: Mapping[str, Any], config: ModelConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Tensors]:
    only(given, prefix_projection=False)
    if "prompt_embeddings" not in tensors:
        raise FinetuneError("it has no tensor prompt_embeddings")
    return {"num_virtual_tokens": int(given["num_virtual_tokens"])}, {"table": tensors["prompt_embeddings"]}


PEFT = Peft("PREFIX_TUNING", _write, _read)
METHOD = Method(
    "prefix_tuning", "keys and values in front of every layer; P-Tuning v2", PrefixOptions, PrefixTuning, PEFT
)
