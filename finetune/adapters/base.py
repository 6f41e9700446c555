"""What a fine-tuning method is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from finetune.errors import FinetuneError
from llama.adaptation import Adaptation
from llama.config import ModelConfig
from llama.model import Block, Transformer
from llama.serving import Serving

# The seven products of a block, by the names that Hugging Face's LLaMA gives them, and where they stand in it.
PRODUCTS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}

Encode = Callable[[str], list[int]]


class Options(BaseModel):
    """Settings of a method; its fields are the keys that stand beside the method's name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # (key, another, values): the key is read where the other one has one of the values, and nowhere else.
    READ_WITH: ClassVar[tuple[tuple[str, str, tuple[Any, ...]], ...]] = ()

    @property
    def front(self) -> int:
        """Positions that the method takes up before a text."""
        return 0


class Adapter(Adaptation):
    """A method on one model: what it does in a forward, what trains, what is stored, how it merges.

    Made for a `ModelConfig`, on the default device (meta works). A fresh one goes `enter`, `begin`; a stored one goes
    `enter`, `restore`. What `enter` gives is the model to run, with this adapter as its forward's `adaptation`.
    """

    options: Any  # the method's Options

    def enter(self, model: Transformer) -> Transformer:
        """The model that the method runs in, frozen but for what trains."""
        return model.requires_grad_(False)

    def begin(self, model: Transformer, encode: Encode) -> None:
        """First values that depend on the model or on text; `encode` gives a text's token ids."""

    def trained(self, model: Transformer) -> dict[str, nn.Parameter]:
        """The parameters that train, by name."""
        return dict(self.named_parameters())

    def stored(self, model: Transformer) -> dict[str, Tensor]:
        """The tensors that travel with the adapter."""
        return {name: value.detach() for name, value in self.trained(model).items()}

    def restore(self, model: Transformer, tensors: Mapping[str, Tensor]) -> None:
        """Takes over stored tensors. Raises FinetuneError where they are not those of this method and model."""
        fill(self.trained(model), tensors)

    def serve(self, model: Transformer, tensors: Mapping[str, Tensor]) -> Serving:
        """What requests take along, made once from stored tensors; called instead of `enter`, on a fresh adapter.

        The model, which may be quantized, stays as it is, for others run with it meanwhile. Raises FinetuneError where
        the tensors are not those of this method and model.
        """
        self.restore(model, tensors)
        return Serving(model, self.eval().requires_grad_(False))

    def merge(self, model: Transformer) -> dict[str, Tensor]:
        """Puts the adapter into the model's weights; the model then needs it no more.

        Returns the tensors that were changed, as they were before, for `unmerge`. Raises FinetuneError for a method
        whose mathematics does not allow it.
        """
        raise FinetuneError(f"{self.cannot_merge}; serve it beside its base model instead")

    def weaken(self, share: float) -> None:
        """Keeps a share of what the adapter adds to the weights: a point on the line from the base to what was learned
        (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3). Raises FinetuneError.
        """
        raise FinetuneError("final_scale is for lora and qlora without use_dora; leave it out")

    cannot_merge: ClassVar[str] = "this method cannot be merged into the weights"


Tensors = dict[str, Tensor]
PEFT_LAYER = "base_model.model.model.layers.{}.{}"


@dataclass(frozen=True)
class Peft:
    """How a method is written in the form of Hugging Face's PEFT library, and read from it.

    kind: its `peft_type`. write: options, the model's shape and stored tensors to adapter_config.json's keys and its
    tensors; raises FinetuneError for what that form cannot say. read: the reverse, to options and our tensors.
    """

    kind: str
    write: Callable[[Any, ModelConfig, Mapping[str, Tensor]], tuple[dict[str, Any], Tensors]]
    read: Callable[[Mapping[str, Any], ModelConfig, Mapping[str, Tensor]], tuple[dict[str, Any], Tensors]]


@dataclass(frozen=True)
class Method:
    """An entry of the registry. `make` gives a fresh adapter for a model's shape."""

    name: str
    summary: str
    options: type[Options]
    make: Callable[[ModelConfig, Any], Adapter]
    peft: Peft | None = None

    @property
    def merges(self) -> bool:
        """Whether its mathematics allows a merge."""
        return getattr(self.make, "merge", None) is not Adapter.merge


def unmerge(model: Transformer, before: Mapping[str, Tensor]) -> None:
    """Undoes a `merge`: the model's tensors are what they were, bit for bit."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in before.items():
            parameters[name].copy_(tensor)


def fill(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors into parameters of the same names and shapes. Raises FinetuneError where they differ."""
    same(parameters, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def same(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises FinetuneError where tensors have not the names and shapes of parameters."""
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise FinetuneError(
            f"the adapter lacks {missing[0]} and {len(missing) - 1} more; it is of another kind or shape"
        )
    if surplus := sorted(tensors.keys() - parameters.keys()):
        raise FinetuneError(f"the adapter has {surplus[0]}, which its method does not know; it is of another kind")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise FinetuneError(
                f"the adapter's {name} is {list(tensors[name].shape)}, not {list(parameter.shape)}; "
                "it was made for another model"
            )


def products(model: Transformer, names: Sequence[str]) -> Iterator[tuple[int, str, nn.Module, Block]]:
    """(layer, product's name, its module, its block) of the named products in all blocks."""
    for layer, block in enumerate(model.layers):
        assert isinstance(block, Block)
        for name in names:
            yield layer, name, block.get_submodule(f"{PRODUCTS[name]}.{name}"), block


def only(config: Mapping[str, Any], **plain: Any) -> None:
    """Raises FinetuneError where a PEFT configuration asks for other than the `plain` values done here."""
    for key, value in plain.items():
        if config.get(key, value) not in (value, None, False, [], {}, ""):
            raise FinetuneError(f"its adapter_config.json has {key} = {config[key]!r}, which is not supported")


def dense(linear: nn.Module) -> Tensor:
    """A product's matrix [out, in], unpacked where it is kept in few bits."""
    found: Tensor = linear.dense() if hasattr(linear, "dense") else linear.weight  # type: ignore[assignment,operator]
    return found


def parameter_name(layer: int, name: str) -> str:
    """Name of a product's matrix among the model's parameters."""
    return f"layers.{layer}.{PRODUCTS[name]}.{name}.weight"
