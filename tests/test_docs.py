"""The documentation says what the program says: generated pages are up to date, links and commands in it exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert _SPEC is not None and _SPEC.loader is not None
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)


def test_generated_documents_are_up_to_date() -> None:
    stale = [
        str(path.relative_to(ROOT))
        for path, text in generate.documents().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run python docs/generate.py"


def test_no_page_of_a_rule_that_is_gone() -> None:
    assert set((ROOT / "docs" / "rules").rglob("*.md")) <= set(generate.documents())


def _pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def test_every_option_that_the_readme_names_exists() -> None:
    from advisor.cli.advise_command import command

    context = click.Context(command)
    known = {name for each in [command] for option in each.params for name in option.opts}
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        known |= {option_name for option in found.params for option_name in option.opts}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"`(advise[^`]*|--[^`]*)`", text)
    for code in lines:
        for word in shlex.split(code.replace("…", "X")):
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{word} in {code}"


def test_ci_runs_the_command_of_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"```console\n(python3 -m venv[^\n]*)\n```", text)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
