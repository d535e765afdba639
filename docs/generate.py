"""Write what the documentation repeats from the program: README's example, docs/cli.md, docs/rules/.

python docs/generate.py          tests/test_docs.py fails while any of it is out of date
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ("--model", "meta-llama/Llama-3.1-8B-Instruct", "--gpu", "h100")
SHOWN_UNTIL = "Why each step"


def run_advise(*arguments: str) -> str:
    """What `advise` prints on stdout, 80 columns and no colour."""
    return _run("from advisor.cli import main; main()", *arguments)


def _run(code: str, *arguments: str) -> str:
    environment = os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT / "docs")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, cwd=ROOT, check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(done.stderr)
    return done.stdout


def readme(text: str) -> str:
    """README with its example as the program prints it now, up to the reasons."""
    shown = run_advise(*EXAMPLE).split(SHOWN_UNTIL)[0].rstrip()
    block = f"```console\n$ advise {' '.join(EXAMPLE)}\n{shown}\n…\n```"
    return re.sub(
        r"(<!-- generated: example -->\n).*?(<!-- /generated -->)", lambda m: f"{m[1]}{block}\n{m[2]}", text, flags=re.DOTALL
    )


def _commands(command: click.Command, name: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    settings = {"parent": parent, "terminal_width": 100, "max_content_width": 100, "resilient_parsing": True}
    with command.make_context(name, [], **settings) as context:
        yield context.command_path, command.get_help(context)
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                found = command.get_command(context, each)
                if found is not None:
                    yield from _commands(found, each, context)


def cli() -> str:
    """docs/cli.md: every command's help, from a process of its own: click keeps a help option as whoever asked first had it."""
    return _run("import generate; print(generate.cli_here(), end='')")


def cli_here() -> str:
    """docs/cli.md, by the commands as this process has them."""
    from advisor.cli.advise_command import command

    parts = ["# Commands\n\nGenerated from `--help` by docs/generate.py.\n"]
    for path, text in _commands(command, "advise", None):
        parts.append(f"## {path}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def documents() -> dict[Path, str]:
    """Every generated document -> its text."""
    from advisor.reasoner.explanation import rule_docs
    from advisor.reasoner.rulebook import load_rules

    made = {ROOT / "README.md": readme((ROOT / "README.md").read_text(encoding="utf-8")), ROOT / "docs" / "cli.md": cli()}
    for name, text in rule_docs(load_rules()).items():
        made[ROOT / "docs" / "rules" / name] = text
    return made


def main() -> None:
    """Write them, and remove pages of rules that are gone."""
    from advisor.library import write_whole

    made = documents()
    for path in (ROOT / "docs" / "rules").rglob("*.md"):
        if path not in made:
            path.unlink()
    for path, text in made.items():
        write_whole(path, text)


if __name__ == "__main__":
    main()
