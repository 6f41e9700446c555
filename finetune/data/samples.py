"""What readers give, and what the trainer takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetune.errors import FinetuneError
from llama.chat import Message


@dataclass(frozen=True)
class Sample:
    """A conversation, or a plain text. `group` is the document that it is about: validation is split by it.

    aside: its document is to be validated on, whatever else is drawn for that. input: what of the question's end,
    behind a line feed, Alpaca's prompt has under a heading of its own. unlearned: places of answers not to be learned.
    exact: a space before an answer is meant; else it is dropped.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    group: str = ""
    origin: str = ""
    aside: bool = False
    input: str = ""
    unlearned: tuple[int, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class Example:
    """Token ids, and which of them the loss counts. An id is counted as the prediction of the one before it."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    group: str
    origin: str

    @property
    def supervised(self) -> int:
        return sum(self.learned[1:])


@dataclass
class Faults:
    """What is wrong with single samples, a line each; they are left out and the rest is used.

    count: of those left out, `empty` of them as nothing is asked or answered; other lines are about what is used.
    """

    lines: list[str] = field(default_factory=list)
    count: int = 0
    empty: int = 0

    def add(self, origin: str, what: str, empty: bool = False) -> None:
        self.left_out(f"{origin}: {what}; it is left out", empty)

    def left_out(self, line: str, empty: bool = False) -> None:
        """A sample that is not used, in the words of whoever found it."""
        self.note(line)
        self.count += 1
        self.empty += empty

    def note(self, line: str) -> None:
        """Something about a sample that is used all the same."""
        self.lines.append(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)


class EmptyFile(FinetuneError):
    """A file without a word."""


def text_of(path: Path) -> str:
    """A data file's text. Raises FinetuneError for one that is absent, empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FinetuneError(
            f"there is no data file {path}; paths count from where you are, and --set 'data.0.file=\"FILE\"' gives "
            "another to the first [[data]]"
        ) from error
    except UnicodeDecodeError as error:
        raise FinetuneError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise FinetuneError(f"{path} cannot be read ({error.strerror})") from error
    if not text.strip():
        raise EmptyFile(f"{path} is empty; give a file with samples")
    return text
