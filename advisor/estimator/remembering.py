"""Results remembered by the identity of what they are of."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


def by_identity(most: int, *, values: int = 0) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Keep at most `most` results of a function of positional arguments, found again for the very same arguments.

    Models are read once and passed around, and take longer to hash than most questions about them to answer. An entry keeps its
    arguments alive, so their identities cannot be taken by others. values: of the last so many arguments equal ones are the
    same, as of deployments, which a search makes anew each time.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        known: dict[tuple[object, ...], tuple[object, Result]] = {}

        @wraps(function)
        def remembered(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            key = (*map(id, args[:-values]), *args[-values:]) if values else tuple(map(id, args))
            entry = known.get(key)
            if entry is None:
                if len(known) >= most:
                    known.clear()
                entry = known[key] = args, function(*args, **kwargs)
            return entry[1]

        return remembered

    return decorate
