"""Cross-entropy of the output matrix's logits, a piece of them at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20  # of logits at once: [tokens, vocabulary] of a whole batch would be gigabytes


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods of labels [K] under softmax(hidden W^T), hidden [K, D], W [V, D].

    Returns their sum, through which gradients flow, and each [K], fp32. The gradients are computed along with the
    logits, so that those of a piece are gone before the next one's are there.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        found: tuple[Tensor, Tensor] = _Loss.apply(hidden.to(dtype), weight.to(dtype), labels)  # type: ignore[no-untyped-call]
    return found


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        each = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        size = max(1, CHUNK_BYTES // (4 * len(weight)))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = (hidden[part] @ weight.T).float()
            label = labels[part, None]
            whole = logits.logsumexp(-1, keepdim=True)
            each[part] = (whole - logits.gather(1, label))[:, 0]
            if to_hidden is None and to_weight is None:
                continue
            slope = logits.sub_(whole).exp_().scatter_add_(1, label, -torch.ones_like(whole)).to(weight.dtype)
            if to_hidden is not None:
                to_hidden[part] = slope @ weight
            if to_weight is not None:
                to_weight.addmm_(slope.T, hidden[part])
        ctx.to_hidden, ctx.to_weight = to_hidden, to_weight
        ctx.mark_non_differentiable(each)
        return each.sum(), each

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight = (None if each is None else each * grads[0] for each in (ctx.to_hidden, ctx.to_weight))
        return hidden, weight, None
