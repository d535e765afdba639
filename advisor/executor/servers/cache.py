"""Where this program keeps what may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """ADVISE_CACHE, else a folder of the user's cache."""
    own = os.environ.get("ADVISE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inference-advisor"
