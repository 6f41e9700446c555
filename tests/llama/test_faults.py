"""All that is wrong with the tensors of a checkpoint, in one line, whatever its format; and the output matrix."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from llama.checkpoint import load_transformer, open_checkpoint, open_gguf, tensors_of
from llama.errors import LlamaError
from llama.faults import MOST, one_line

from .formats import Shape, Weights, loaded, meta_weights, params, write_gguf, write_hf, write_meta

SHAPE = Shape()


def refused(path: Path) -> str:
    with pytest.raises(LlamaError) as caught:
        loaded(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_every_shard_of_a_folder_is_looked_at(tmp_path: Path) -> None:
    """Nine tensors missing, six surplus, one misshapen, of three shards that an index describes."""
    path = write_hf(tmp_path / "m", SHAPE, meta_weights(SHAPE), 3)
    faults = []
    for shard in sorted(path.glob("*.safetensors")):
        held = load_file(shard)
        faults += [f"{shard.name} lacks {name}" for name in sorted(held)[:3]]
        held = {name: held[name] for name in sorted(held)[3:]}
        extra = {f"junk{i}.{shard.name[9:11]}": torch.ones(2) for i in range(2)}
        faults += [f"surplus {name} in {shard.name}" for name in extra]
        save_file(held | extra, shard)
    norm = "model.layers.1.mlp.up_proj.weight"
    place = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"][norm]
    save_file(load_file(path / place) | {norm: torch.ones(2, 3)}, path / place)
    said = refused(path)
    assert [fault for fault in [*faults, f"{norm} is [2, 3], not [64, 48]"] if fault not in said] == []


def test_files_that_are_gone_and_what_else_is_wrong(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "m", SHAPE, meta_weights(SHAPE), 4)
    first, second, third, last = sorted(path.glob("*.safetensors"))
    first.unlink()
    second.unlink()
    third.write_bytes(third.read_bytes()[:100])
    save_file({**load_file(last), "junk": torch.ones(2)}, last)
    said = refused(path)
    assert [said.count(name) for name in (first.name, second.name)] == [1, 1], "the files, not all that they held"
    assert f"{third.name} is not a whole safetensors file" in said
    assert "surplus junk" in said


def test_every_shard_of_metas_is_looked_at(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "m", SHAPE, meta_weights(SHAPE), 2)
    file = path / "consolidated.01.pth"
    held = torch.load(file, weights_only=True)
    names = [name for name in held if "layers" in name]
    gone, misshapen, typed = names[:5], names[5:9], names[9:12]
    held = {name: value for name, value in held.items() if name not in gone}
    held |= {name: torch.ones(3, 3) for name in misshapen} | {name: held[name].to(torch.int8) for name in typed}
    torch.save(held | {"junk": torch.ones(1)}, file)
    said = refused(path)
    assert [name for name in gone if f"consolidated.01.pth lacks {name}" not in said] == []
    assert [name for name in misshapen if f"parts of {name} do not fit together" not in said] == []
    assert [name for name in typed if f"{name} is of type torch.int8" not in said] == []
    assert "surplus junk" in said
    for i in (0, 1):
        (path / f"consolidated.0{i}.pth").write_bytes(b"damaged")
    said = refused(path)
    assert ("consolidated.00.pth is not" in said, "consolidated.01.pth is not" in said) == (True, True)
    (path / "consolidated.00.pth").rename(path / "consolidated.03.pth")
    assert "lacks consolidated.00.pth, consolidated.02.pth" in refused(path)


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(5), torch.ones(96, 48).to_sparse(), "text"])
def test_an_embedding_that_is_none(tmp_path: Path, value: object) -> None:
    """The size of the vocabulary is told from it; without it, from the output matrix or params.json."""
    weights = meta_weights(SHAPE)
    del weights["norm.weight"]
    for name, kept in {"output": weights, "params": {k: v for k, v in weights.items() if k != "output.weight"}}.items():
        path = write_meta(tmp_path / name, SHAPE, kept)
        torch.save({**kept, "tok_embeddings.weight": value}, path / "consolidated.00.pth")
        if name == "params":
            (path / "params.json").write_text(json.dumps(params(SHAPE) | {"vocab_size": 96}))
        said = refused(path)
        assert "tok_embeddings.weight" in said
        assert "missing norm.weight" in said


def test_numbers_without_their_scale_are_all_named(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "m", SHAPE, meta_weights(SHAPE))
    held = load_file(path / "model.safetensors")
    strange = [*[name for name in held if "proj" in name][:3], "model.norm.weight"]
    save_file(held | {name: held[name].to(torch.int8) for name in strange}, path / "model.safetensors")
    said = refused(path)
    assert said.count("is of type I8") == len({name.replace("s.1.", "s.0.") for name in strange})
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", SHAPE, meta_weights(SHAPE)))
    whole = [dataclasses.replace(each, tensor_type=gguf.GGMLQuantizationType.I32) for each in checkpoint.stored[:2]]
    with pytest.raises(LlamaError) as caught:
        load_transformer(dataclasses.replace(checkpoint, stored=[*whole, *checkpoint.stored[2:]]), torch.float32, "cpu")
    assert str(caught.value).count("is of type I32") == 2


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    """With `model.` in front and without: which of them is meant, nobody knows."""
    path = write_hf(tmp_path / "m", SHAPE, meta_weights(SHAPE))
    held = load_file(path / "model.safetensors")
    save_file(held | {"embed_tokens.weight": torch.zeros(96, 48)}, path / "model.safetensors")
    assert "stored twice, as embed_tokens.weight and as model.embed_tokens.weight" in refused(path)
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", SHAPE, meta_weights(SHAPE)))
    with pytest.raises(LlamaError, match="stored twice, as output_norm"):
        tensors_of(dataclasses.replace(checkpoint, stored=[*checkpoint.stored, checkpoint.stored[1]]))


def test_a_very_long_list_is_cut() -> None:
    """Of each kind for itself, so that no kind hides another; names from outside neither break the line nor fill it."""
    surplus = [f"surplus x{i}" for i in range(MOST + 7)]
    said = one_line(
        [surplus, ["missing a\nb", "missing " + "c" * 9000], [], ["d", "d"], ["layers.1.e", "layers.1.e", "layers.2.e"]]
    )
    assert said.startswith("surplus x0; surplus x1; ")
    assert f"surplus x{MOST - 1}; and 7 more like the last; missing a?b; missing ccc" in said
    assert said.endswith("…; d; layers.1-2.e")
    assert len(said) < 2000
    assert one_line([[], []]) == ""


def tied_folder(path: Path, output: torch.Tensor | None, kind: torch.dtype = torch.float32) -> tuple[Path, Weights]:
    """A folder whose configuration ties the output to the embedding, and that stores an output all the same."""
    weights = meta_weights(SHAPE)
    write_hf(path, dataclasses.replace(SHAPE, tied=True), weights)
    held = {name: value.to(kind) for name, value in load_file(path / "model.safetensors").items()}
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone() if output is None else output
    save_file(held, path / "model.safetensors")
    return path, held


@pytest.mark.filterwarnings("ignore")
def test_an_output_that_differs_from_the_embedding_counts(tmp_path: Path) -> None:
    """As in transformers, whatever `tie_word_embeddings` says; in the last row too."""
    transformers = pytest.importorskip("transformers")
    tokens = torch.arange(60)[None]
    own = torch.randn(96, 48, generator=torch.Generator().manual_seed(5))
    for name, output in {"all": own, "last": None}.items():
        path, held = tied_folder(tmp_path / name, output)
        if output is None:
            held["lm_head.weight"][-1, -1] += 1
            save_file(held, path / "model.safetensors")
        model = loaded(path)
        assert torch.equal(model.lm_head.weight, held["lm_head.weight"])
        assert not open_checkpoint(path).config.tied
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.inference_mode():
            torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_an_output_that_is_the_embedding_is_kept_once(tmp_path: Path, kind: torch.dtype) -> None:
    path, held = tied_folder(tmp_path / "m", None, kind)
    save_file(held | {"lm_head.weight": held["lm_head.weight"].float()}, path / "model.safetensors")
    assert "lm_head.weight" not in tensors_of(open_checkpoint(path))
    model = loaded(path)
    assert model.lm_head.weight is model.embed_tokens.weight


def test_an_output_of_another_shape_is_refused(tmp_path: Path) -> None:
    path, _ = tied_folder(tmp_path / "m", torch.ones(3, 3))
    assert "lm_head.weight is [3, 3], not [96, 48]" in refused(path)
