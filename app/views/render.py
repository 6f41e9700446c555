"""Text that came from a document, a file name or the model, made safe to show."""

from __future__ import annotations

import html
import re

# Streamlit escapes HTML in Markdown by itself, but would load an image that a document or the model names.
IMAGE = re.compile(r"!(?=\[)")
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:^=&])")


def prose(text: str) -> str:
    """Markdown of the model: formatting stays, images and formulas become text; nothing is fetched."""
    return IMAGE.sub(r"\\!", text).replace("$", r"\$").replace(":", r"\:")


def plain(text: str) -> str:
    """Any text as Markdown that shows exactly this text: for file names and error messages."""
    return SPECIAL.sub(r"\\\1", text)


def marked(text: str, quote: str) -> str:
    """HTML of a passage in which the quote is marked. All of it is escaped."""
    at = text.find(quote) if quote else -1
    if at < 0:
        body = html.escape(text)
    else:
        before, after = text[:at], text[at + len(quote) :]
        body = f"{html.escape(before)}<mark>{html.escape(quote)}</mark>{html.escape(after)}"
    return f'<div class="passage">{body}</div>'


STYLE = """<style>
.passage {
  white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.55; font-size: 0.92rem; margin: 0;
}
.passage mark { background: #ffe08a; color: #221b00; border-radius: 3px; padding: 1px 2px; }
.st-key-welcome { padding-top: 12vh; text-align: center; }
[data-testid="stChatMessage"] { overflow-wrap: anywhere; }
</style>"""
