"""A model as a Hugging Face folder that transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from huggingface_hub import save_torch_state_dict
from tokenizers import AddedToken, decoders, models

from finetune.checkpoints import writing
from finetune.errors import FinetuneError
from llama.bpe import PRE_TOKENIZERS
from llama.checkpoint import Checkpoint, GGUFCheckpoint
from llama.config import ModelConfig, llama3_divisors
from llama.model import Transformer

VOCABULARY = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip


def export(
    model: Transformer, checkpoint: Checkpoint, folder: Path, template: str | None, dtype: torch.dtype
) -> list[str]:
    """Writes config.json, safetensors (sharded when large) and the vocabulary. Returns what could not be written.

    checkpoint: that of the base model; template: the chat template that travels along. Raises FinetuneError.
    """
    folder = folder.resolve()  # "." has no name, and is nowhere when the empty folder that was there is gone
    part = folder.with_name(f".{folder.name}.part")
    with writing(folder):
        if folder.exists() and any(folder.iterdir()):
            raise FinetuneError(f"{folder} is there and not empty; choose another folder")
        if folder.exists():
            folder.rmdir()  # now, as one that another disk is mounted at cannot be replaced
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            missing = _files(model, checkpoint, part, template, dtype)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return missing


def _files(
    model: Transformer, checkpoint: Checkpoint, folder: Path, template: str | None, dtype: torch.dtype
) -> list[str]:
    described = {**described_as(model.config), "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps({**described, **_ends(checkpoint)}, indent=1), encoding="utf-8")
    state = {
        name if name.startswith("lm_head.") else f"model.{name}": tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if not (model.config.tied and name.startswith("lm_head."))  # a copy would come untied (PEFT #2777)
    }
    save_torch_state_dict(state, folder)
    missing = _vocabulary(checkpoint, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return missing


def described_as(config: ModelConfig) -> dict[str, Any]:
    """The shape as transformers' LlamaConfig has it, old and new names of the rotary settings both."""
    rope: dict[str, Any] = {"rope_type": "default", **_scaling(config)}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope_theta,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        **({"rope_scaling": rope} if len(rope) > 1 else {}),
    }


def _scaling(config: ModelConfig) -> dict[str, Any]:
    """The rule that the rotary divisors follow. Raises FinetuneError where none that transformers has gives them."""
    found = config.rope_divisors
    if found is None:
        return {}
    if len(set(found)) == 1:
        return {"rope_type": "linear", "factor": found[0]}
    for factor in (8.0, 32.0, max(found)):
        made = llama3_divisors(config.head_dim, config.rope_theta, factor, 1.0, 4.0, 8192.0)
        if all(abs(a - b) <= 1e-4 * b for a, b in zip(found, made, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
    raise FinetuneError("the model's rotary scaling follows no rule that transformers has; it cannot be exported")


def _ends(checkpoint: Checkpoint) -> dict[str, Any]:
    tokenizer = checkpoint.tokenizer()
    ends = sorted(tokenizer.eos_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) != 1 else ends[0]}


def _vocabulary(checkpoint: Checkpoint, folder: Path) -> list[str]:
    if checkpoint.path.is_dir() and (checkpoint.path / "config.json").is_file():
        for name in VOCABULARY:
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, folder / name)
        return []
    metadata = checkpoint.metadata if isinstance(checkpoint, GGUFCheckpoint) else {}
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return [
            "the vocabulary (it is not byte-level BPE from a GGUF file); put the base model's tokenizer files there"
        ]
    _byte_level(metadata, checkpoint, folder)
    return []


def _byte_level(metadata: Mapping[str, Any], checkpoint: Checkpoint, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json from a GGUF file's vocabulary."""
    words, known = PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]], checkpoint.tokenizer()
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=words.whole))
    made.pre_tokenizer, made.decoder = words.cut(), decoders.ByteLevel()
    named = sorted(known.special.items(), key=lambda each: each[1])
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name, _ in named])
    if known.add_bos and known.bos_id is not None:
        bos = tokens[known.bos_id]
        made.post_processor = tokenizers.processors.TemplateProcessing(f"{bos} $A", None, [(bos, known.bos_id)])
    (folder / "tokenizer.json").write_text(made.to_str(pretty=True), encoding="utf-8")
    ends = sorted(known.eos_ids)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[known.bos_id] if known.bos_id is not None else None,
        "eos_token": tokens[ends[-1]] if ends else None,
        "model_max_length": checkpoint.config.context_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
