"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _imported(file: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it; relative imports count as its own package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(file.relative_to(ROOT).parts[0] if node.level else (node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("smskd", {"optuna", "ray", "search", "reports", "spaces"}),
        ("spaces", {"torch", "ray"}),
        ("reports", {"torch", "ray", "smskd", "search"}),
    ],
)
def test_forbidden_imports(package: str, forbidden: set[str]) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 0
    imported = {file.name: _imported(file) for file in files}
    assert set().union(*imported.values()), "no import was found at all: the check itself is broken"
    assert {name: found & forbidden for name, found in imported.items() if found & forbidden} == {}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("search.run", {"torch", "ray", "optuna", "pandas", "altair"}),
        ("search.session", {"torch", "ray", "altair"}),
        ("search.trainable", {"torch", "optuna", "altair", "reports"}),
        ("spaces", {"torch", "ray"}),
        ("smskd.recipe", {"torch", "ray"}),
        ("smskd.pairs", {"torch", "ray"}),
        ("smskd.train", {"torch", "ray"}),
    ],
)
def test_import_is_light(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
