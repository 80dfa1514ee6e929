"""The command-line reference: docs/cli.md, written from the help of every command.

The help is the one text; the page is what it prints at a width of 90 characters, so that options,
defaults and examples can be read and searched without installing anything.

    python dev/cli_reference.py            # writes docs/cli.md
    python dev/cli_reference.py --check    # fails if it is not what the help says
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from gemelo.cli import app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 90
HEAD = """# The command line

Written by `python dev/cli_reference.py` from the help of the commands, which `gemelo COMMAND
--help` shows as well. Exit codes: 0 done, 1 failed, 2 the input was wrong, 130 interrupted.
"""


def sections(command: Any, name: str, parent: typer.Context | None = None) -> Iterator[str]:
    """A command's help under its name, then those of the commands inside it."""
    settings = command.context_settings | {"terminal_width": WIDTH}
    context = typer.Context(command, info_name=name, parent=parent, **settings)
    title = context.command_path
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"## {title}\n\n```text\n{text.strip()}\n```\n"
    for inner, one in getattr(command, "commands", {}).items():
        yield from sections(one, inner, context)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *sections(get_command(app), "gemelo")])


def main(words: list[str]) -> int:
    """Write the page, or with --check say whether it is up to date."""
    if words == ["--check"]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print(f"{PAGE.name} is not what the help says: run python dev/cli_reference.py")
        return 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
