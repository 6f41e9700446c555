"""Samples to token ids with a mask of what is learned, in the very form that serving gives the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from finetune.data.samples import Example, Faults, Sample
from finetune.errors import FinetuneError
from llama.chat import ChatTemplate, Message
from llama.errors import LlamaError
from llama.tokenizer import Tokenizer

# Taori et al. 2023: the two prompts of Stanford Alpaca, for models without a chat template.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

# The same as a chat template, to ask what was trained on it. A system message stands before the instruction.
ALPACA_CHAT = (
    "{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' }}"
    "{% set before = namespace(text='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set before.text = message['content'] + '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '### Instruction:\\n' + before.text + message['content'] + '\\n\\n### Response:' }}"
    "{% set before.text = '' %}"
    "{% else %}{{ message['content'] + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
)


class Encoder:
    """Turns samples into examples of at most `cutoff_len` tokens; what is longer is told and left out, never cut.

    train_on_prompt: what was asked is learned too. mask_history: only the last answer of a conversation is learned.
    Plain text is cut into pieces of `cutoff_len` tokens, of which each begins with the last token of the one before:
    so every token is learned once but the text's first, which nothing stands before.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        cutoff_len: int,
        form: Literal["chat", "alpaca"] = "chat",
        train_on_prompt: bool = False,
        mask_history: bool = False,
    ) -> None:
        if form == "chat" and template is None:
            raise FinetuneError('the model has no chat template; set template = "alpaca", or choose a chat model')
        if not tokenizer.eos_ids:
            raise FinetuneError("the model's vocabulary has no end of text, so no answer could ever stop")
        self.tokenizer, self.template, self.cutoff_len, self.form = tokenizer, template, cutoff_len, form
        self.train_on_prompt, self.mask_history = train_on_prompt, mask_history
        self.too_long: list[tuple[str, int]] = []  # origins and tokens of what did not fit

    def __call__(self, samples: Sequence[Sample], faults: Faults) -> Iterator[Example]:
        for sample in samples:
            try:
                yield from self._text(sample) if sample.text else self._conversation(sample)
            except (FinetuneError, LlamaError) as error:
                faults.add(sample.origin, str(error))

    def _conversation(self, sample: Sample) -> Iterator[Example]:
        answers = [i for i, turn in enumerate(sample.messages) if turn["role"] == "assistant"]
        wanted = [i for i in (answers[-1:] if self.mask_history else answers) if i not in sample.unlearned]
        if not wanted:
            raise FinetuneError("no token of it would be learned")
        if self.train_on_prompt and sample.unlearned:
            raise FinetuneError("an answer of it has the weight 0, and train_on_prompt learns all there is")
        if not sample.exact:
            # A space before an answer would be learned as its first token, or melt into the prompt's last.
            sample = replace(sample, messages=tuple(
                {**m, "content": m["content"].strip()} if m["role"] == "assistant" else m for m in sample.messages
            ))  # fmt: skip
        ids, learned = self._chat(sample.messages, wanted) if self.form == "chat" else self._alpaca(sample)
        if len(ids) > self.cutoff_len:
            self.too_long.append((sample.origin, len(ids)))
            raise FinetuneError(f"it takes {len(ids)} tokens, and cutoff_len is {self.cutoff_len}")
        if not any(learned[1:]):
            raise FinetuneError("no token of it would be learned")
        if self.train_on_prompt:
            learned = [True] * len(ids)
        yield Example(tuple(ids), tuple(learned), sample.group, sample.origin)

    def _chat(self, turns: Sequence[Message], answers: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Ids by the model's template. What is learned is found by rendering prefixes: no template has to mark it.

        answers: the places of those to learn.
        """
        assert self.template is not None
        ids = self.template.encode(turns, add_generation_prompt=False)
        learned = [False] * len(ids)
        for i in answers:
            before = self.template.encode(turns[:i], add_generation_prompt=True)
            after = self.template.encode(turns[: i + 1], add_generation_prompt=False)
            if ids[: len(before)] != before or len(after) <= len(before) or ids[: len(after)] != after:
                if i != len(turns) - 1 or not self._goes_on(turns):
                    raise FinetuneError("the chat template does not render its turns one after another")
                # The prompt's last characters melt into the answer's first token, which serving cannot have.
                answer = [*self.tokenizer.encode(turns[i]["content"], first=False), min(self.tokenizer.eos_ids)]
                earlier = [k < len(learned) and learned[k] for k in range(len(before))]
                return [*before, *answer], [*earlier, *(True for _ in answer)]
            stop = next((k + 1 for k in range(len(before), len(after)) if ids[k] in self.tokenizer.eos_ids), None)
            if stop is None:
                # The template leaves the end to the model: it has to be learned all the same.
                if i != len(turns) - 1:
                    raise FinetuneError("the chat template ends no turn, so only a single one can be learned")
                ids, stop = [*ids, min(self.tokenizer.eos_ids)], len(ids) + 1
                learned.append(False)
            learned[len(before) : stop] = [True] * (stop - len(before))
        last = max(k for k, is_learned in enumerate(learned) if is_learned) + 1
        return ids[:last], learned[:last]  # what the template writes behind the end is nobody's to say

    def _goes_on(self, turns: Sequence[Message]) -> bool:
        """Whether the last answer stands behind what serving renders, as text."""
        assert self.template is not None
        asked = self.template.render(turns[:-1], add_generation_prompt=True)
        return self.template.render(turns, add_generation_prompt=False).startswith(asked + turns[-1]["content"])

    def _alpaca(self, sample: Sample) -> tuple[list[int], list[bool]]:
        messages = sample.messages
        if [m["role"] for m in messages] != ["user", "assistant"]:
            raise FinetuneError(
                'template = "alpaca" takes one question and one answer, no system message and no earlier turns'
            )
        instruction = messages[0]["content"]
        if sample.input:
            instruction = instruction.removesuffix(f"\n{sample.input}")
        form = ALPACA_WITH_INPUT if sample.input else ALPACA
        prompt = self.tokenizer.encode(form.format(instruction=instruction, input=sample.input))
        bos = [self.tokenizer.bos_id] * (self.tokenizer.add_bos and self.tokenizer.bos_id is not None)
        front = [*(b for b in bos if b is not None), *prompt]
        answer = [*self.tokenizer.encode(messages[-1]["content"], first=False), min(self.tokenizer.eos_ids)]
        return [*front, *answer], [False] * len(front) + [True] * len(answer)

    def _text(self, sample: Sample) -> Iterator[Example]:
        bos = self.tokenizer.bos_id
        front = [bos] if self.tokenizer.add_bos and bos is not None else []
        ids = [*front, *self.tokenizer.encode(sample.text), min(self.tokenizer.eos_ids)]
        for start in range(0, len(ids) - 1, self.cutoff_len - 1):
            piece = ids[start : start + self.cutoff_len]
            yield Example(tuple(piece), (False, *(True for _ in piece[1:])), sample.group, sample.origin)
