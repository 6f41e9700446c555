"""Chat templates: messages to token ids, the template rendered in a sandbox."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypedDict

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama.errors import LlamaError
from llama.tokenizer import Tokenizer

PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))  # code points for private use


class Message(TypedDict):
    role: str
    content: str


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


class ChatTemplate:
    """A model file's own jinja2 template. It is data from outside: sandboxed, immutable, without any loader."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        # Whatever else the sandbox allows, a template of a few lines needs no long loops.
        environment.globals["range"] = lambda *limits: range(*limits)[:10_000]
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, TypeError) as error:  # the latter for what is no text
            raise LlamaError(f"the model's chat template is not valid ({error}); use another model file") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt as text. Raises LlamaError when the template refuses the messages or leaves the sandbox."""
        names = {i: spelled for spelled, i in self._tokenizer.special.items()}
        context: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": names.get(-1 if self._tokenizer.bos_id is None else self._tokenizer.bos_id, ""),
            "eos_token": next((names[i] for i in sorted(self._tokenizer.eos_ids) if i in names), ""),
        }
        try:
            return self._template.render(context)
        except Exception as error:  # a template can raise anything, from a type error to a sandbox violation
            raise LlamaError(f"the model's chat template failed ({error}); use another model file") from error

    def encode(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of the prompt, with exactly one BOS where the model wants one.

        Only the template's own text can become a special token. In what people and documents wrote, each spelled-out
        special token is hidden behind a character that stands for it before rendering, and put back into the text
        afterwards, so that `<|im_end|>` in a document is encoded as the ten characters that it is.
        """
        special = self._tokenizer.special
        spelled = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        free, hidden = _unused_characters(messages, special), dict[str, str]()

        def hide(text: str) -> str:
            return spelled.sub(lambda hit: hidden.get(hit[0]) or hidden.setdefault(hit[0], next(free)), text)

        guarded: list[Message] = [{"role": hide(m["role"]), "content": hide(m["content"])} for m in messages]
        text = self.render(guarded, add_generation_prompt)
        shown = {ord(character): token for token, character in hidden.items()}
        ids: list[int] = []
        end = 0
        for hit in spelled.finditer(text):
            ids += self._tokenizer.encode(text[end : hit.start()].translate(shown), first=not ids)
            ids.append(special[hit[0]])
            end = hit.end()
        ids += self._tokenizer.encode(text[end:].translate(shown), first=not ids)
        bos = self._tokenizer.bos_id
        if bos is None:
            return ids
        begins = next((i for i, token in enumerate(ids) if token != bos), len(ids))  # how many BOS the template wrote
        return [bos] * (self._tokenizer.add_bos or begins > 0) + ids[begins:]


def _unused_characters(messages: Sequence[Message], special: Iterable[str]) -> Iterator[str]:
    """Characters for private use that neither a message nor a special token contains."""
    texts = [*special, *(message["role"] + message["content"] for message in messages)]
    present = {character for text in texts for character in text}
    return (chr(code) for area in PRIVATE for code in area if chr(code) not in present)
