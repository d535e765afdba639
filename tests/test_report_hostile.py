"""Untrusted text in every string of a report acts on nothing: not on HTML, Markdown, a terminal or a shell."""

from __future__ import annotations

import re
import shlex
import typing
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from advisor.report import commands
from advisor.report.comparison import compare, render_comparison
from advisor.report.html import script_json
from advisor.report.markdown import code, escape
from advisor.report.rendering import render
from advisor.report.sanitation import LONGEST, clean, sanitise, to_ascii
from advisor.types import Report, Value

STORED = Path(__file__).parent / "fixtures" / "reports"
ATTACKS = {
    "script": "<script>alert(1)</script>",
    "attribute": "\" autofocus onfocus=alert(1) x='",
    "image": "'><img src=x onerror=alert(1)>",
    "end of script": "</script><script>alert(1)</script><!--",
    "template": "{{7*7}}{% for x in y %}${7*7}",
    "table and fence": "| a | b |\n|---|---|\n```\n~~~\n---\n# title",
    "link": "[x](javascript:alert(1)) <https://evil.example> https://evil.example www.evil.example",
    "mention": "@everyone #1 !1 GH-1",
    "list": "- 1. + x",
    "emphasis": "**a** __b__ ~~c~~ $d$ `e` ``f``",
    "details": "</details></summary></table><details>",
    "colour": "\x1b[31mred\x1b[0m\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "one-character controls": "\x9b31m\x90x\x9c\x85\x00\x07\x08\x7f\r\n\v\f",
    "bidi": "\u202egnp.exe\u202c\u2066\u2069\u200f",
    "hidden": "a\u200bb\ufeffc\u00add\u2028e\u2029f",
    "shell": "$(touch owned) `touch owned`; touch owned | x & y > z '\" \\",
    "option": "--out=/etc/passwd",
    "blank": " \t\n ",
    "long": "x" * 9000,
}
DANGEROUS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\u00ad]")


def load(name: str) -> Report:
    return Report.model_validate_json((STORED / f"{name}.json").read_text(encoding="utf-8"))


def takes_text(annotation: Any) -> bool:
    """Whether a field of this type may hold free text."""
    if typing.get_origin(annotation) is Literal:
        return False
    return annotation in (str, object) or any(takes_text(part) for part in typing.get_args(annotation))


def poison(value: Any, attack: str, annotation: Any = str, numbers: Iterator[int] | None = None) -> Any:
    """`value` with `attack` in place of every free text in it; keys of mappings get a number, to stay apart."""
    numbers = numbers or count()
    if isinstance(value, str):
        return attack if takes_text(annotation) else value
    if isinstance(value, Value):
        fields = type(value).model_fields
        changed = {name: poison(item, attack, fields[name].annotation, numbers) for name, item in value}
        return type(value).model_validate({fields[n].alias or n: _plain(item) for n, item in changed.items()})
    if isinstance(value, tuple):
        return tuple(poison(item, attack, annotation, numbers) for item in value)
    if isinstance(value, dict):
        kept = typing.get_args(annotation)[-1] if typing.get_origin(annotation) is dict else annotation
        return {f"{attack}{next(numbers)}": poison(item, attack, kept, numbers) for key, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.model_dump(by_alias=True)
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value


class Skeleton(HTMLParser):
    """The elements of a page with their attributes' names, without its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # a command is cut into as many pieces as it has words
        if tag != "span":
            self.found.append((tag, tuple(name for name, _ in attrs)))


@pytest.fixture(scope="module", params=ATTACKS, ids=lambda name: name.replace(" ", "-"))
def hostile(request: pytest.FixtureRequest) -> Report:
    return poison(load("applied"), ATTACKS[request.param])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def harmless(hostile: Report) -> Report:
    """The same report with a plain word in place of the attack, or with nothing where nothing is left of it."""
    return poison(load("applied"), "harmless" if clean(hostile.plan.verdict) else "")  # type: ignore[no-any-return]


def test_the_attack_reaches_every_free_text() -> None:
    report = poison(load("applied"), "ATTACK")
    assert report.profile.model.name == report.plan.verdict == report.changes[0].detail == "ATTACK"
    assert report.findings[0].evidence[0].condition == report.overrides[0].source == "ATTACK"
    assert all(key.startswith("ATTACK") for key in (*report.versions, *report.profile.sources))
    assert report.findings[0].verdict == "fires"
    assert report.model_dump_json().count("ATTACK") > 150


# ---------------------------------------------------------------- HTML


def test_html_has_the_same_elements_whatever_the_text(harmless: Report, hostile: Report) -> None:
    page = render(hostile, "html")
    assert Skeleton(page).found == Skeleton(render(harmless, "html")).found
    assert not DANGEROUS.search(page[: page.index("<script")])


def test_html_runs_only_its_own_scripts(hostile: Report) -> None:
    page = render(hostile, "html")
    assert page.count("<script") == page.count("</script") == 3
    policy = re.search(r"script-src ([^\"]+?); base-uri", unescape(page))
    assert policy
    assert len(policy[1].split()) == 2
    assert "unsafe-inline" not in policy[1]
    names = {name for _, names in Skeleton(page).found for name in names}
    assert not any(name.startswith("on") for name in names)


def test_reference_is_a_link_only_where_it_is_one() -> None:
    for source, linked in (
        ('https://a.example/b?c=1&d="2"', True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
    ):
        report = load("plan-only")
        finding = report.findings[0]
        reference = finding.references[0].model_copy(update={"source": source})
        report = report.model_copy(update={"findings": (finding.model_copy(update={"references": (reference,)}),)})
        page = render(report, "html")
        assert ('<a href="https://a.example/b?c=1&amp;d=&#34;2&#34;"' in page) == linked
        assert 'href="javascript' not in page
        assert 'href="data' not in page


@given(st.recursive(st.text() | st.none() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_in_a_script_element_ends_nothing(value: Any) -> None:
    import json

    text = script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert text.isascii()
    assert json.loads(text) == value


# ---------------------------------------------------------------- Markdown


def github(page: str) -> str:
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(page)


def test_markdown_has_the_same_elements_whatever_the_text(harmless: Report, hostile: Report) -> None:
    page = render(hostile, "markdown")
    assert not DANGEROUS.search(page)

    def shape(report: Report) -> list[str]:
        # a code span and an escaped <code> element are the same thing
        return [tag for tag, _ in Skeleton(github(render(report, "markdown"))).found]

    assert shape(hostile) == shape(harmless)


def test_markdown_makes_no_link_and_no_mention() -> None:
    page = render(poison(load("applied"), ATTACKS["link"]), "markdown")
    html = MarkdownIt("gfm-like", {"html": True}).render(page)
    assert "<a " not in html
    mention = render(poison(load("applied"), ATTACKS["mention"]), "markdown")
    visible = re.sub(r"(?s)```.*?```", "", mention)
    assert not re.search(r"@\w|#\d", visible)


@given(st.text(max_size=60))
def test_escaped_markdown_reads_as_the_text(text: str) -> None:
    text = clean(text).strip()
    html = MarkdownIt("gfm-like", {"html": True}).render(f"x {escape(text)}")
    shown = "".join(_Text(html).parts)
    assert shown.strip() == f"x {text}".strip()


@given(st.text(max_size=60))
def test_code_in_a_table_cell_reads_as_the_text(text: str) -> None:
    text = clean(text).strip()
    html = MarkdownIt("gfm-like", {"html": True}).render(f"| a | b |\n|---|---|\n| {code(text)} | z |\n")
    shown = "".join(_Text(html).parts).split()
    assert shown == ["a", "b", *text.split(), "z"]


class _Text(HTMLParser):
    """The visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(page)
        self.close()

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


# ---------------------------------------------------------------- terminal


def test_text_is_printable_and_as_narrow(hostile: Report) -> None:
    page = render(hostile, "text")
    assert all(line.isprintable() for line in page.split("\n"))
    # a word of a command is never broken: it would not be the same word when pasted
    told, *asked = page.rsplit("\nNext\n" if "\nNext\n" in page else "\nTo get this again\n", 1)
    assert max(map(len, told.split("\n"))) <= 80
    pieces = {piece for line in (commands.repeat(sanitise(hostile)),) for piece in commands.pieces(line)}
    assert all(len(line) <= 80 or line.strip().removesuffix(" \\") in pieces for line in "".join(asked).split("\n"))
    assert render(hostile, "text", ascii=True).isascii()


def test_coloured_text_has_no_sequences_but_its_own(hostile: Report) -> None:
    page = render(hostile, "text", color=True)
    assert set(re.findall(r"\x1b[^m]*m?", page)) <= {f"\x1b[{n}m" for n in (0, 1, 2, 31, 32, 33, 34, 35, 36)}


def test_json_is_ascii_and_faithful(hostile: Report) -> None:
    page = render(hostile, "json")
    assert page.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", page)
    assert Report.model_validate_json(page) == hostile


def test_comparison_is_as_harmless(harmless: Report, hostile: Report) -> None:
    for a, b in ((harmless, hostile), (hostile, harmless)):
        page = render_comparison(compare(a, b))
        assert all(line.isprintable() for line in page.split("\n"))
        assert max(map(len, page.split("\n"))) <= 80
        assert render_comparison(compare(a, b), "json").isascii()


# ---------------------------------------------------------------- shell


def test_commands_are_the_words_they_came_from(hostile: Report) -> None:
    shown = sanitise(hostile)
    line = commands.repeat(shown)
    assert shlex.split(line) == ["advise", *shown.command]
    assert shlex.split(" ".join(commands.split_lines(line, 60)).replace(" \\ ", " ")) == ["advise", *shown.command]
    made = commands.repeat(shown.model_copy(update={"command": ()}))
    words = shlex.split(made)
    assert words[1] == f"--model={shown.profile.model.folder or shown.profile.model.name}"
    assert not any(word.startswith("--out") for word in words)


# ---------------------------------------------------------------- the one place


@given(st.text())
def test_clean_text_is_one_printable_line(text: str) -> None:
    made = clean(text)
    assert made.isprintable()
    assert len(made) <= LONGEST
    assert clean(made) == made


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126)))
def test_clean_keeps_plain_text(text: str) -> None:
    assert clean(text) == text[:LONGEST]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;https://e.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\r\nb\tc", "a b c"),
        ("\u202eabc", "abc"),
        ("\x9b31mred", "red"),
        ("naïve – 語", "naïve – 語"),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@given(st.text())
def test_ascii_text_is_ascii(text: str) -> None:
    assert to_ascii(text).isascii()


def test_untouched_values_stay_the_same_objects() -> None:
    report = load("moe")
    assert sanitise(report).plan is report.plan
