"""Writes docs/cli.md: the help text of every command, as `paddock COMMAND --help` prints it. Run by `make docs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Command line

Written by `make docs` from the commands themselves; a test keeps it up to date.
"""


def helps(command: click.Command, parents: tuple[click.Context, ...] = ()) -> Iterator[tuple[str, str]]:
    """(the words of the command, its help text) of a command and of everything below it, in the order of the help."""
    name = command.name if parents else "paddock"
    parent = parents[-1] if parents else None
    # Resilient: nothing is asked for, required or run. The width is ours, so that the page is the same everywhere.
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=100)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            each = command.get_command(context, below)
            if each is not None and not each.hidden:
                yield from helps(each, (*parents, context))


def page() -> str:
    """The whole of docs/cli.md."""
    from app.cli import main_group

    return HEAD + "".join(f"\n## {words}\n\n```text\n{text}\n```\n" for words, text in helps(main_group))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
