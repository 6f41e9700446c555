"""docs/cli.md holds the help of every command as it is now."""

from __future__ import annotations

import click
import pytest

from scripts.build_cli_docs import PAGE, helps, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/cli.md is out of date; run `make docs`"


def test_the_commands_of_the_contract_are_there() -> None:
    text = page()
    commands = ["serve", "ask", "ingest", "kb list", "kb status", "kb delete", "batch", "models pull", "doctor"]
    assert [name for name in commands if f"\n## paddock {name}\n" not in text] == []


def test_every_command_and_option_is_explained() -> None:
    from app.cli import main_group

    def walk(command: click.Command) -> list[click.Command]:
        below = list(command.commands.values()) if isinstance(command, click.Group) else []
        return [command, *(each for child in below for each in walk(child))]

    commands = walk(main_group)
    options = [(command.name, p) for command in commands for p in command.params if isinstance(p, click.Option)]
    assert [command.name for command in commands if not command.help] == []
    assert [(name, p.name) for name, p in options if not p.help and not p.hidden] == []


def test_the_walk_goes_down_and_leaves_out_what_is_hidden() -> None:
    @click.group()
    def top() -> None:
        """Top."""

    @top.group()
    def middle() -> None:
        """Middle."""

    @middle.command()
    @click.option("--far", help="How far.")
    def bottom(far: str) -> None:
        """Bottom."""

    @top.command(hidden=True)
    def secret() -> None:
        """Secret."""

    found = dict(helps(top))
    assert list(found) == ["paddock", "paddock middle", "paddock middle bottom"]
    assert "--far TEXT  How far." in found["paddock middle bottom"]


@pytest.mark.parametrize("width", ["40", "200"])
def test_the_page_does_not_depend_on_the_terminal(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = page()
    monkeypatch.setenv("COLUMNS", width)
    assert page() == before
