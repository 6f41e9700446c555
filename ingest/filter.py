"""Which documents a question is asked of: what a filter is, and how the manifest is asked for its documents.

A filter speaks of documents, and the manifest knows those: names, dates and languages are looked up there when the
question is asked, so that nothing about them is stored a second time beside vectors or terms.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ingest.errors import IngestError
from ingest.loaders import LOADERS

LONGEST_PATTERN, MOST_STARS = 500, 8  # a pattern of many stars can take for ever


@dataclass(frozen=True)
class Filter:
    """Only documents of which all of this is true; of several sources, types or languages, one is enough."""

    source: tuple[str, ...] = ()  # patterns of the file's name, or of its path in the knowledge base: * ? [...]
    type: tuple[str, ...] = ()  # endings of file names: "pdf"
    after: datetime.date | None = None  # modified on this day or later, by the clock of this machine
    before: datetime.date | None = None  # modified before this day
    language: tuple[str, ...] = ()  # ISO 639-1: "en", "zh"; a document may be in several

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) for each in fields(self))

    def __str__(self) -> str:
        parts = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value:
                parts.append(f"{each.name} {' or '.join(value) if isinstance(value, tuple) else value}")
        return ", ".join(parts)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Filter:
        """A filter of plain values, as options and JSON have them: texts, or lists of texts; None and "" are nothing.

        Raises IngestError in one line for what cannot be meant.
        """
        known = [each.name for each in fields(cls)]
        for name in values:
            if name not in known:
                raise IngestError(f"a filter has no {name[:40]!r}; it has: {', '.join(known)}")
        made = cls(
            source=tuple(_pattern(each) for each in _texts("source", values.get("source"))),
            type=tuple(_type(each) for each in _texts("type", values.get("type"))),
            after=_day("after", values.get("after")),
            before=_day("before", values.get("before")),
            language=tuple(_language(each) for each in _texts("language", values.get("language"))),
        )
        if made.after and made.before and made.after >= made.before:
            raise IngestError(f"no day is after {made.after} and before {made.before}; swap them, or leave one away")
        return made

    def conditions(self) -> tuple[str, list[object]]:
        """For the manifest's table of files: conditions, each behind an AND, and the values of their parameters.

        The conditions call `folded`, which SQLite must have been told of.
        """
        sql, values = "", list[object]()
        if self.source:
            globs = [glob for each in self.source for glob in _globs(each)]
            matches = " OR ".join(["'/' || folded(source) GLOB ?"] * len(globs))
            sql += f" AND ({matches})"
            values += globs
        if self.type:
            sql += f" AND ({' OR '.join(['lower(source) GLOB ?'] * len(self.type))})"
            values += [f"*.{each}" for each in self.type]
        for day, sign in ((self.after, ">="), (self.before, "<")):
            if day is not None:
                sql += f" AND mtime_ns {sign} ?"
                values.append(_nanoseconds(day))
        if self.language:
            sql += f" AND ({' OR '.join(['instr(languages, ?)'] * len(self.language))})"
            values += [f" {each} " for each in self.language]
        return sql, values


def folded(name: str) -> str:
    """A file's name or a pattern of one, without what makes no difference: case, how accents are encoded (macOS splits
    letter and accent), the kind of slash.
    """
    name = name.replace("\\", "/").lower()
    return name if name.isascii() else unicodedata.normalize("NFC", name).replace("ς", "σ")


def _globs(pattern: str) -> list[str]:
    """What SQLite's GLOB compares with a slash and the folded source; one of them must match.

    A pattern that begins with / or ./ begins at the knowledge base's folder, any other at any folder. Brackets may also
    be those of a file's name.
    """
    name = folded(pattern)
    rooted = re.match(r"(?:\.?/)+", name)
    name = name[rooted.end() :] if rooted else name
    start = "/" if rooted and not name.startswith("**/") else "*/"
    name = start + name.removeprefix("**/")
    if name.endswith("/"):
        name += "*"  # a folder: all that is in it
    return list(dict.fromkeys((name.replace("[!", "[^"), name.replace("[", "[[]"))))


def _nanoseconds(day: datetime.date) -> int:
    """The beginning of a day, in ns since 1970, as far as SQLite has numbers."""
    start = datetime.datetime(day.year, day.month, day.day)
    try:
        seconds = start.timestamp()
    except (OverflowError, OSError, ValueError):  # a year that the platform's clock does not have
        seconds = (start - datetime.datetime(1970, 1, 1)).total_seconds()
    return max(-(1 << 63), min((1 << 63) - 1, int(seconds) * 10**9))


def _texts(name: str, value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
        raise IngestError(f"the filter's {name} is neither text nor a list of texts")
    return [each.strip() for each in found if each.strip()]


def _pattern(text: str) -> str:
    if len(text) > LONGEST_PATTERN or text.count("*") > MOST_STARS or "\x00" in text:
        limits = f"at most {LONGEST_PATTERN} characters and {MOST_STARS} stars"
        raise IngestError(f"{text[:40]!r} is no pattern of a file name ({limits})")
    return text


def _type(text: str) -> str:
    name = text.lower().removeprefix("*").removeprefix(".")
    known = sorted(suffix.lstrip(".") for suffix in LOADERS)
    if name not in known:
        raise IngestError(f"there are no documents of type {text[:40]!r}; the types are: {', '.join(known)}")
    return name


def _day(name: str, value: Any) -> datetime.date | None:
    if isinstance(value, datetime.datetime):
        return value.date()
    if value is None or value == "" or isinstance(value, datetime.date):
        return value or None
    try:
        return datetime.date.fromisoformat(value.strip())
    except (ValueError, AttributeError) as error:
        raise IngestError(
            f"the filter's {name} is {str(value)[:40]!r} and not a day; write it as 2026-12-31"
        ) from error


def _language(text: str) -> str:
    code = re.match(r"[a-z]{2,3}(?=$|[-_])", text.lower())  # zh of zh-CN and zh_Hant
    if code is None:
        raise IngestError(f"{text[:40]!r} is no code of a language; write en for English, zh for Chinese")
    return code[0]
