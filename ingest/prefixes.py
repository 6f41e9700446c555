"""What an embedder wants before a question and before a passage: 'query: ', 'passage: ' and the like."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Names of prompts as sentence-transformers takes them, in its order (SentenceTransformer.encode_document).
PASSAGE_NAMES = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Prefixes:
    """Put before a question, and before a passage, when it is embedded."""

    query: str = ""
    passage: str = ""

    @property
    def mark(self) -> str:
        """Their part of an embedder's identity; empty where there are none."""
        if self == Prefixes():
            return ""
        return "+" + hashlib.sha256(json.dumps([self.query, self.passage]).encode()).hexdigest()[:6]


_ASK_ZH = "为这个句子生成表示以用于检索相关文章："
_ASK = "Represent this sentence for searching relevant passages: "
# Families that were trained with prefixes and whose folders do not say so: Wang et al. 2022, "Text Embeddings by
# Weakly-Supervised Contrastive Pre-training", section 4 (E5); Xiao et al. 2023, "C-Pack" (BGE; BGE-M3 has none).
FAMILIES = (
    (re.compile(r"e5-[a-z]+-instruct\b", re.I),
     Prefixes("Instruct: Given a question, retrieve passages that answer the question\nQuery: ")),
    (re.compile(r"\be5-(?:small|base|large)(?:-v2|-unsupervised)?$", re.I), Prefixes("query: ", "passage: ")),
    (re.compile(r"bge-(?:small|base|large)-en(?:-v[\d.]+)?$", re.I), Prefixes(_ASK)),
    (re.compile(r"bge-(?:small|base|large)-zh(?:-v[\d.]+)?$", re.I), Prefixes(_ASK_ZH)),
)  # fmt: skip
_CARD_NAME = re.compile(r"^model-index:\s*\n- name: *[\"']?([^\"'\n]+)", re.M)


def prefixes_of(folder: Path, weights: Path) -> Prefixes:
    """The prompts of a sentence-transformers folder, else those of the family that the model says it is of.

    weights: the folder in it that holds the Transformer's config.json. The folder's own name plays no part.
    """
    given = _read(folder / "config_sentence_transformers.json")
    prompts = {name: text for name, text in _dict(given.get("prompts")).items() if isinstance(text, str)}
    found = Prefixes(prompts.get("query", ""), next((prompts[name] for name in PASSAGE_NAMES if prompts.get(name)), ""))
    if found == Prefixes() and isinstance(name := given.get("default_prompt_name"), str):
        found = Prefixes(prompts.get(name, ""), prompts.get(name, ""))
    return found if found != Prefixes() else _of_family(_own_name(folder, weights))


def _of_family(name: str) -> Prefixes:
    name = re.sub(r"[_/\\]+", "-", name).rstrip("-")
    return next((prefixes for pattern, prefixes in FAMILIES if pattern.search(name)), Prefixes())


def _own_name(folder: Path, weights: Path) -> str:
    """What the model calls itself: in its config, or in its model card; '' where it does not."""
    name = _read(weights / "config.json").get("_name_or_path")
    if isinstance(name, str) and _of_family(name) != Prefixes():
        return name
    try:
        card = (folder / "README.md").read_text("utf-8", "replace")
    except OSError:
        return ""
    told = _CARD_NAME.search(card[: 1 << 20].split("\n---", 2)[0])  # the table in front
    return told[1].strip() if told else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return _dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def _dict(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}
