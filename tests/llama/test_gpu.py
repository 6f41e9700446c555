"""On a GPU the same comes out as on a CPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama.engine import Engine, load_engine
from llama.quantize import QuantizedLinear, pack, unpack
from llama.sampling import SamplingParams
from llama.team import Team

QUESTIONS = ("What is the capital of France?", "羊驼吃什么？", "Count from one to twenty.")
GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
)


def prompts_of(engine: Engine) -> list[list[int]]:
    return [engine.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]


@pytest.mark.parametrize("device", [GPU])
@pytest.mark.parametrize(("quant", "tolerance"), [("none", 1e-2), ("int8", 0.2), ("int4", 2.0)])
def test_logits_are_those_of_the_cpu(
    gguf_path: Path, engine: Engine, device: str, quant: str, tolerance: float
) -> None:
    """fp32 sums in another order; quantized, activations are rounded on the CPU alone."""
    there = load_engine(gguf_path, device, "float32", quant)
    assert there.model.norm.weight.device.type == device
    here = engine if quant == "none" else load_engine(gguf_path, "cpu", "float32", quant)
    for prompt in prompts_of(engine):
        found, wanted = (each.next_logits(prompt).float().cpu() for each in (there, here))
        assert (found - wanted).abs().max() < tolerance
        assert found.argmax() == wanted.argmax()


@pytest.mark.parametrize("device", [GPU])
def test_requests_side_by_side(gguf_path: Path, device: str) -> None:
    there = load_engine(gguf_path, device, "float32")
    params = SamplingParams(max_tokens=24)
    found = dict(there.generate_batch(prompts_of(there), params))
    for i, prompt in enumerate(prompts_of(there)):
        request = there.generate(prompt, params)
        assert "".join(request) == request.text == found[i].text
    again = there.generate(prompts_of(there)[0], params)
    assert "".join(again) == found[0].text
    assert again.usage.cached_tokens > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_matrix_elsewhere_than_on_a_cpu(bits: int) -> None:
    """Its shape on the meta device, which any machine has."""
    layer = QuantizedLinear(pack(torch.randn(72, 160), bits), Team(1), torch.bfloat16).to("meta")
    out = layer(torch.empty(2, 3, 160, device="meta"))
    assert (out.shape, out.device.type, out.dtype) == ((2, 3, 72), "meta", torch.float32)
    assert unpack(layer.packed).shape == (72, 160)
