"""Model files that lie, lack something, run code or compute something else: one clear line for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llama.checkpoint import load_transformer, open_checkpoint
from llama.errors import LlamaError

from .formats import Shape, loaded, meta_weights, params, write_gguf, write_hf, write_meta


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"dim": "gone"}, "lacks 'dim'"),
        ({"dim": "wide"}, "cannot be read"),
        ({"n_heads": 0}, "cannot be read|n_heads"),
        ({"multiple_of": 0}, "cannot be read"),
        ({"moe": {"num_experts": 8}}, "moe"),
        ({"vision_num_layers": 32, "use_qk_norm": True}, "use_qk_norm, vision_num_layers"),
        ({"quantization_args": {}}, "quantization_args"),
        ({"use_scaled_rope": True}, "add rope_scaling_factor"),
        ({"n_kv_heads": 3}, "evenly"),
        ({"vocab_size": 95}, r"tok_embeddings.weight is \[96, 48\], not \[95, 48\]"),
        ({"n_layers": 3}, r"missing layers\.2\.self_attn"),
        ({"n_layers": 1}, r"surplus layers\.1\.attention"),
        ({"multiple_of": 63}, r"layers\.0-1\.feed_forward\.w1\.weight is \[64, 48\], not \[63, 48\]"),
    ],
)
def test_params_that_do_not_fit(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    path = write_meta(tmp_path / "m", Shape(), meta_weights(Shape()))
    found = params(Shape()) | changed
    (path / "params.json").write_text(json.dumps({key: value for key, value in found.items() if value != "gone"}))
    with pytest.raises(LlamaError, match=says) as caught:
        loaded(path)
    assert "\n" not in str(caught.value)
    assert caught.value.args[0].startswith("m ")


class Evil:
    """Runs a command when it is unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.marker}",)


def refused(path: Path) -> str:
    with pytest.raises(LlamaError) as caught:
        loaded(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pickle_that_runs_code(tmp_path: Path) -> None:
    import pickle

    path = write_meta(tmp_path / "m", Shape(), meta_weights(Shape()))
    marker, file = tmp_path / "ran", path / "consolidated.00.pth"
    torch.save({**meta_weights(Shape()), "x": Evil(marker)}, file)
    assert "consolidated.00.pth wants to run posix.system" in refused(path)
    file.write_bytes(pickle.dumps({"x": Evil(marker)}))
    assert "consolidated.00.pth" in refused(path)
    torch.save({"x": Evil(marker)}, file, _use_new_zipfile_serialization=False)
    assert "consolidated.00.pth" in refused(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
def test_weights_in_the_old_format(tmp_path: Path) -> None:
    """As torch wrote it before 1.6: how to convert it is told, and that does it."""
    path = write_meta(tmp_path / "m", Shape(), meta_weights(Shape()))
    file = path / "consolidated.00.pth"
    held = torch.load(file, weights_only=True)
    torch.save(held, file, _use_new_zipfile_serialization=False)
    said = refused(path)
    assert "consolidated.00.pth is in PyTorch's format from before 1.6" in said
    assert said.endswith("torch.save(torch.load('consolidated.00.pth', weights_only=True), 'consolidated.00.pth')")
    torch.save(torch.load(file, weights_only=True), file)
    loaded(path)


def test_damaged_shards(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "m", Shape(), meta_weights(Shape()), 2)
    second = path / "consolidated.01.pth"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    assert "consolidated.01.pth is not a whole file" in refused(path)
    second.write_bytes(b"")
    assert "consolidated.01.pth is not a whole file" in refused(path)
    torch.save([1, 2], second)
    assert "by their names" in refused(path)
    part = torch.load(path / "consolidated.00.pth", weights_only=True)
    torch.save({name: value for name, value in part.items() if "1.attention.wk" not in name}, second)
    assert "consolidated.01.pth lacks layers.1.attention.wk.weight" in refused(path)
    torch.save({**part, "layers.1.attention.wk.weight": torch.ones(3, 48)}, second)
    assert "do not fit together" in refused(path)
    second.unlink()
    assert "tok_embeddings.weight is [96, 24], not [96, 48]" in refused(path), "half of each"
    (path / "consolidated.00.pth").rename(path / "consolidated.03.pth")
    assert "lacks consolidated.00.pth" in refused(path)
    (path / "params.json").write_text("{")
    assert "JSON" in refused(path)


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    """Missing, surplus and misshapen tensors in one line, blocks that share a fault together."""
    shape = Shape(layers=6)
    weights = meta_weights(shape)
    for n in range(6):
        weights[f"layers.{n}.attention.wq.bias"] = torch.ones(48)
        if n != 3:
            del weights[f"layers.{n}.attention.wv.weight"]
    weights["layers.4.feed_forward.w2.weight"] = torch.ones(48, 63)
    weights["adapter.weight"] = torch.ones(2)
    del weights["norm.weight"]
    said = refused(write_meta(tmp_path / "m", shape, weights))
    for fault in (
        "surplus layers.0-5.attention.wq.bias",
        "missing layers.0-2,4-5.self_attn.v_proj.weight",
        "layers.4.feed_forward.w2.weight is [48, 63], not [48, 64]",
        "surplus adapter.weight",
        "missing norm.weight",
    ):
        assert fault in said


def test_weights_that_need_a_scale_are_refused(tmp_path: Path) -> None:
    """int8 or float8 without its scales would load and mean nothing."""
    weights = meta_weights(Shape())
    weights["layers.0.attention.wv.weight"] = weights["layers.0.attention.wv.weight"].to(torch.float8_e4m3fn)
    assert "layers.0.attention.wv.weight is of type torch.float8" in refused(
        write_meta(tmp_path / "m", Shape(), weights)
    )
    path = write_hf(tmp_path / "hf", Shape(), meta_weights(Shape()))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    assert "quantized (gptq)" in refused(path)


@pytest.mark.parametrize(
    ("architecture", "extra", "says"),
    [
        ("qwen2", {}, "architecture is 'qwen2'"),
        ("mixtral", {}, "architecture is 'mixtral'"),
        ("llama", {"llama.expert_count": 8}, "mixture of experts"),
        ("llama", {"split.count": 3}, "one of 3 parts"),
        ("llama", {"llama.rope.dimension_count": 6}, "only part of each head"),
    ],
)
def test_gguf_files_that_compute_something_else(
    tmp_path: Path, architecture: str, extra: dict[str, int], says: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", Shape(), meta_weights(Shape()), architecture)
    checkpoint = open_checkpoint(path)
    checkpoint.metadata.update(extra)  # type: ignore[attr-defined]
    with pytest.raises(LlamaError, match=says):
        load_transformer(checkpoint, torch.float32, "cpu")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": "mixtral"}, "mixtral"),
        ({"model_type": "mistral", "sliding_window": 0}, "context_length is 0"),
        ({"model_type": "mistral", "sliding_window": "wide"}, "cannot be read"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part of each head"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
    ],
)
def test_folders_that_compute_something_else(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    path = write_hf(tmp_path / "m", Shape(), meta_weights(Shape()))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changed))
    assert says in refused(path)


def test_a_damaged_safetensors_file_is_one_line(tmp_path: Path) -> None:
    """100 heads with a byte changed, and lengths that lie: each loads or is refused, and nothing else is raised."""
    path = write_hf(tmp_path / "m", Shape(), meta_weights(Shape()))
    file = path / "model.safetensors"
    whole = file.read_bytes()
    rng = np.random.default_rng(3)
    lying = [(1 << 62).to_bytes(8, "little"), (len(whole)).to_bytes(8, "little"), bytes(8)]
    damaged = [length + whole[8:] for length in lying] + [whole[:5], whole[:200], whole[:-1], b""]
    for _ in range(100):
        data = bytearray(whole)
        data[int(rng.integers(0, 2200))] = int(rng.integers(0, 256))
        damaged.append(bytes(data))
    said = []
    for data in damaged:
        file.write_bytes(data)
        try:
            loaded(path)
        except LlamaError as error:
            said.append(str(error))
    assert len(said) > 50
    assert [line for line in said if "\n" in line] == []
