"""Bytes to text: byte-order marks, declared charsets, UTF-8, then the best guess."""

from __future__ import annotations

import codecs
import re
import unicodedata

from ingest.errors import IngestError

SAMPLE = 65536  # bytes that a guess is made on
# What people's files are in where they are not in Unicode; the guess is among these only.
CANDIDATES = ["gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254"]
MARKS = [  # the longer mark first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def decode(data: bytes, declared: str | None = None) -> str:
    """The text of a file, newlines as \\n. `declared` is the charset that the file itself names, if any.

    Raises IngestError if the bytes are no text.
    """
    for mark, name in MARKS:
        if data.startswith(mark):
            return _clean(data.decode(name, errors="replace"))
    text = _try(data, _utf16_without_mark(data) or "utf-8")
    if text is None and declared:
        text = _try(data, declared)
    if text is None and b"\x00" not in data[:SAMPLE]:
        text = _mostly_utf8(data) or data.decode(_guess(data), errors="replace")
    if text is None:
        raise IngestError("is not text (its bytes fit no known encoding)")
    return _clean(text)


def _try(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _utf16_without_mark(data: bytes) -> str | None:
    """UTF-16 shows by NULs at every second byte, as ASCII characters in it have them."""
    sample = data[:SAMPLE]
    if len(sample) < 4 or len(data) % 2:
        return None
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > 4 * even and odd > len(sample) // 8:
        return "utf-16-le"
    if even > 4 * odd and even > len(sample) // 8:
        return "utf-16-be"
    return None


def _mostly_utf8(data: bytes) -> str | None:
    """UTF-8 with a few damaged bytes, which would otherwise turn all of it to rubbish."""
    text = data.decode("utf-8", errors="replace")
    damaged = text.count("\ufffd")
    sound = sum(1 for letter in text[:SAMPLE] if letter > "\x7f") - text[:SAMPLE].count("\ufffd")
    return text if damaged * 20 < sound else None


def _guess(data: bytes) -> str:
    """The most plausible of CANDIDATES."""
    sample = data[:SAMPLE]
    if _looks_like_gb(sample):
        return "gb18030"
    high = sum(1 for byte in sample if byte >= 0x80)
    letters = len(re.findall(rb"[A-Za-z]", sample))
    # Accented letters stand among plain ones. Short texts give a statistical guess too little to go by.
    if letters >= high and high < 200:
        return "cp1252" if _try(data, "cp1252") is not None else "latin-1"
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=CANDIDATES).best()
    return best.encoding if best is not None else "cp1252"


def _looks_like_gb(sample: bytes) -> bool:
    """Whether the high bytes are pairs, nearly all of GB 2312's level 1: the 3,755 characters of daily Chinese."""
    runs = re.findall(rb"[\x80-\xff]+", sample[: SAMPLE - 1])
    odd = sum(len(run) % 2 for run in runs)
    pairs = [run[i] for run in runs for i in range(0, len(run) - 1, 2)]
    common = sum(1 for first in pairs if 0xB0 <= first <= 0xD7 or first in (0xA1, 0xA3))
    return bool(pairs) and odd * 20 <= len(runs) and common > 0.85 * len(pairs)


def _clean(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    odd = len(CONTROLS.findall(text)) + text.count("\ufffd")
    if odd > max(2, len(text) // 50):
        raise IngestError("is not text (it looks like binary data)")
    return tidy(text)


def tidy(text: str) -> str:
    """Text without control characters and lone surrogates, which stores and terminals choke on, in composed form."""
    text = CONTROLS.sub("", text).replace("\x0b", "\n").replace("\x0c", "\n").replace("\x1b", "")
    text = text.encode("utf-8", "replace").decode("utf-8")
    return unicodedata.normalize("NFC", text)
