"""Who may import whom."""

from __future__ import annotations

import ast
import graphlib
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
        ("spaces", {"torch", "ray", "search", "reports"}),
        ("reports", {"torch", "ray", "smskd", "search"}),
    ],
)
def test_forbidden_imports(package: str, forbidden: set[str]) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 0
    imported = {file.name: _imported(file) for file in files}
    assert set().union(*imported.values()), "no import was found at all: the check itself is broken"
    assert {name: found & forbidden for name, found in imported.items() if found & forbidden} == {}


def _uses(file: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of this project that a file imports, anywhere but for types alone."""
    tree = ast.parse(file.read_text())
    of_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in of_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in modules else node.module for one in inner}
    return found & modules.keys()


def test_no_circle_of_imports() -> None:
    """Not at start-up, and not by way of a function either. A package is the file __init__.py."""
    files = [file for package in ("search", "smskd", "spaces", "reports") for file in (ROOT / package).rglob("*.py")]
    names = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    modules = {".".join(parts[:-1] if parts[-1] == "__init__" else parts): file for file, parts in names.items()}
    graph = {name: _uses(file, modules) - {name} for name, file in modules.items()}
    assert sum(map(len, graph.values())) > len(graph), "hardly an import was found: the check itself is broken"
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("search.run", {"torch", "ray", "optuna", "pandas", "altair"}),
        ("search.session", {"torch", "ray", "altair"}),
        ("search.trainable", {"torch", "optuna", "altair", "reports"}),
        ("spaces", {"torch", "ray", "optuna"}),
        ("smskd.recipe", {"torch", "ray"}),
        ("smskd.experiment", {"torch", "ray", "torchvision"}),
        ("search.ranges", {"torch", "ray", "optuna"}),
        ("smskd.pairs", {"torch", "ray"}),
        ("smskd.train", {"torch", "ray"}),
    ],
)
def test_import_is_light(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
