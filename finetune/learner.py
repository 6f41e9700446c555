"""The model and its adapter as one module whose forward is the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finetune.adapters.base import Adapter
from finetune.data.samples import Example
from finetune.loss import linear_cross_entropy
from llama.model import Run, Step, Transformer, plainly


@dataclass(frozen=True)
class Batch:
    """Examples behind each other in one row: no padding. Each is attended to alone and begins at position 0.

    tokens: int64 [1, S]; documents: their lengths; at: int64 [K], positions whose next token is learned; labels: [K],
    those tokens; owner: [K], the example that each belongs to.
    """

    tokens: Tensor
    documents: tuple[int, ...]
    at: Tensor
    labels: Tensor
    owner: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
        ids = torch.tensor([i for each in examples for i in each.ids], device=device)
        learned = torch.tensor([flag and k > 0 for each in examples for k, flag in enumerate(each.learned)])
        owner = torch.tensor([number for number, each in enumerate(examples) for _ in each.ids])
        places = learned.nonzero()[:, 0]
        return cls(
            ids[None],
            tuple(len(each.ids) for each in examples),
            (places - 1).to(device),
            ids[places.to(device)],
            owner[places],
        )


def _again(block: nn.Module, x: Tensor, step: Step) -> Tensor:
    """A block that keeps its input only and is computed again in the backward pass."""
    found: Tensor = checkpoint(block, x, step, use_reentrant=False)
    return found


class Learner(nn.Module):
    """Gives a batch's loss; knows of the method only that it adapts a forward."""

    def __init__(self, model: Transformer, adapter: Adapter, dtype: torch.dtype, recompute: bool) -> None:
        super().__init__()
        self.model, self.adapter, self.dtype = model, adapter, dtype
        self._run: Run = _again if recompute else plainly

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        return self.adapter.trained(self.model)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the negative log-likelihoods of what is learned, and each of them [K]."""
        with contextlib.ExitStack() as stack:
            if self.dtype != torch.float32:
                stack.enter_context(torch.autocast(batch.tokens.device.type, self.dtype))
            hidden = self.model.hidden(
                batch.tokens, at=batch.at, documents=batch.documents, adaptation=self.adapter, run=self._run
            )
            return linear_cross_entropy(hidden[0], self.model.lm_head.weight, batch.labels)
