"""What a model and its vocabulary are, as hashes of their content: a name or a path says nothing about them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from llama.tokenizer import Tokenizer

PROBED = 1024  # bytes of a tensor: what was trained or rounded in another way differs there, too
# Of a folder: what decides about results. Names are of the three formats that can be read.
PARTS = ("*.safetensors", "*.pth", "config.json", "params.json", "tokenizer.json", "tokenizer.model")


def model_hash(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a model file's content, or of a folder's files with their names.

    cache: a JSON file that remembers the hash for as long as size and time of change of all files stay.
    """
    files = sorted({f for part in PARTS for f in path.glob(part)}) if path.is_dir() else [path]
    stamp = repr([(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files])
    known = _read(cache)
    if stamp in known:
        return known[stamp]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            inner = hashlib.file_digest(source, "sha256").hexdigest()
        digest.update(f"{file.name if path.is_dir() else ''}\0{inner}\0".encode())
    found = digest.hexdigest()
    if cache is not None:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            half = cache.with_suffix(".part")
            half.write_text(json.dumps({**known, stamp: found}), encoding="utf-8")
            half.replace(cache)
        except OSError:
            pass  # it is only remembered
    return found


def _read(cache: Path | None) -> dict[str, str]:
    try:
        found = json.loads(cache.read_text("utf-8")) if cache is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a loaded model's weights as they are computed with, by the first PROBED bytes of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        first = tensor.detach().flatten()[: PROBED // tensor.element_size()].cpu().contiguous().view(torch.uint8)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode() + first.numpy().tobytes())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of what each id stands for, of the special tokens, and of how a text begins and ends."""
    digest = hashlib.sha256()
    for i in range(tokenizer.vocab_size):
        spelled = tokenizer.bytes_of(i)
        digest.update(len(spelled).to_bytes(4, "little") + spelled)
    rest = (sorted(tokenizer.special.items()), tokenizer.bos_id, sorted(tokenizer.eos_ids), tokenizer.add_bos)
    digest.update(repr(rest).encode())
    return digest.hexdigest()
