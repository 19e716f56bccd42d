"""Files of one's own in tests: each test begins and ends without any in use."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from smskd import code
from tests import runs

PAGE = (runs.ROOT / "docs" / "your-own.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, flags=re.M | re.S))  # by name, as the page has them


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None is in use, now and afterwards."""
    monkeypatch.setattr(code, "_FILES", code.Files())
    yield
    for finder in [finder for finder in sys.meta_path if isinstance(finder, code.Files)]:
        for name in finder.modules:
            sys.modules.pop(name, None)
        sys.meta_path.remove(finder)
