"""Several processes of `torchrun`: DDP (Li et al. 2020) and FSDP2. The only import of torch.distributed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from finetune.errors import FinetuneError
from finetune.learner import Learner
from finetune.world import Alone


class Ddp(Alone):
    """Each process has the whole model; gradients are averaged in the step's last micro-batch."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def prepare(self, learner: Learner) -> Any:
        for tensor in learner.trained.values():
            dist.broadcast(tensor.data, 0)
        # What trains in some methods is reached through the model and not through the adapter; both are below.
        return DistributedDataParallel(learner)

    @contextlib.contextmanager
    def accumulating(self, module: nn.Module, more: bool) -> Iterator[None]:
        assert isinstance(module, DistributedDataParallel)
        with module.no_sync() if more else contextlib.nullcontext():
            yield

    def total(self, *values: float) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            summed = summed.cuda()
        dist.all_reduce(summed)
        return summed.tolist()

    def save(self, write: Callable[[], object], learner: Learner) -> None:
        if self.rank == 0:
            write()
        self.wait()

    def wait(self) -> None:
        dist.barrier()

    def close(self) -> None:
        dist.destroy_process_group()


class Fsdp(Ddp):
    """Each process holds a part of every block's parameters, gradients and optimizer state (FSDP2)."""

    def prepare(self, learner: Learner) -> Any:
        for tensor in learner.trained.values():
            dist.broadcast(tensor.data, 0)
        # Gradients are added up in fp32; what is computed in is autocast's affair.
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for block in learner.model.layers:
            fully_shard(block, mp_policy=policy)
        # What is left belongs to the root, which else would stay whole after a forward without a backward.
        return fully_shard(learner, mp_policy=policy, reshard_after_forward=True)

    @contextlib.contextmanager
    def accumulating(self, module: nn.Module, more: bool) -> Iterator[None]:
        assert isinstance(module, FSDPModule)
        module.set_requires_gradient_sync(not more)
        yield

    def whole(self, tensor: Tensor) -> Tensor:
        found = tensor.detach()
        return found.full_tensor() if isinstance(found, DTensor) else found

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole

    def save(self, write: Callable[[], object], learner: Learner) -> None:
        modules = [m for m in learner.modules() if isinstance(m, FSDPModule)]
        for module in modules:
            module.unshard()
        super().save(write, learner)
        for module in modules:
            module.reshard()


KINDS: dict[str, type[Ddp]] = {"ddp": Ddp, "fsdp": Fsdp}


def start(kind: str) -> Alone:
    """Joins the processes that `torchrun` started. kind: "none", "ddp" or "fsdp". Raises FinetuneError."""
    if kind == "none":
        if dist.is_torchelastic_launched():
            raise FinetuneError(
                'train.distributed = "none" would have each process of torchrun train alone, over the others; set '
                'train.distributed = "ddp" or "fsdp", or start it without torchrun'
            )
        return Alone()
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except ValueError as error:
        raise FinetuneError(
            f'distributed = "{kind}" needs processes that torchrun starts: torchrun --nproc-per-node N -m app.cli '
            "finetune train …"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    return KINDS[kind]()
