"""The JSON Schema of a value, with the docstring under each field as its description."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from typing import Any

from pydantic import BaseModel


def describe(value: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a value as it is written (aliases, not Python names)."""
    schema = value.model_json_schema(by_alias=True, mode="serialization")
    texts = _docstrings(inspect.getmodule(value).__file__ or "")  # type: ignore[union-attr]
    for name, part in [(value.__name__, schema), *schema.get("$defs", {}).items()]:
        for field, wanted in part.get("properties", {}).items():
            text = texts.get((name, field)) or texts.get((name, f"{field}_"))
            if text:
                wanted["description"] = text
    return schema


@cache
def _docstrings(file: str) -> dict[tuple[str, str], str]:
    """(class, field) -> the string literal under the field."""
    from pathlib import Path

    found = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for before, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
                text = getattr(after.value, "value", None)
                if isinstance(text, str):
                    found[node.name, before.target.id] = inspect.cleandoc(text).strip()
    return found
