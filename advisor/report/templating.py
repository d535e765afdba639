"""Jinja, for the pages that are made from templates; imported when one of them is wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def fill(template: str, values: dict[str, Any], *, escape: Callable[[Any], Any] | None = None) -> str:
    """A template of templates/ with its values, each escaped: by `escape`, or for HTML where there is none.

    The filter "trusted" leaves a value as it is: for this package's own assets, never for text of a report.
    """
    page: str = _environment(escape).get_template(template).render(values)
    return page


@cache
def _environment(escape: Callable[[Any], Any] | None) -> Any:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=escape is None,
        finalize=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["trusted"] = Markup
    return environment
