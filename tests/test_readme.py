"""The README's commands: all are words that the programs take, and the quick ones are run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from search import config, draws
from smskd import train
from tests.own import FILES, no_files  # noqa: F401 (a fixture)

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    (module, shlex.split(words, comments=True))
    for module, words in re.findall(r"^(?:    )?python -m (\S+) ?(.*)$", TEXT, flags=re.M)
]
# these take seconds, and need no files
QUICK = [command for command in COMMANDS if command[0] == "smskd.train"]
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S)


@pytest.mark.usefixtures("no_files")
def test_every_search_of_the_readme_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    searches = [words for module, words in COMMANDS if module in ("search.run", "search.plan")]
    assert len(searches) >= 3
    for words in searches:
        for one in config.parse_pairs(words):
            assert draws.look(one.search_space()).recipes


def test_every_training_of_the_readme_is_one() -> None:
    assert QUICK
    for _, words in QUICK:
        _, made, recipe = train._read(words)
        assert made.effective(recipe)


def test_every_module_of_the_readme_is_one() -> None:
    for module in {module for module, _ in COMMANDS}:
        file = ROOT / module.replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()


def test_quick_commands_and_the_notebook_run(tmp_path: Path) -> None:
    """In a folder of their own, one after another: they share its store."""
    assert BLOCKS
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    calls = [[sys.executable, "-m", module, *words] for module, words in QUICK]
    calls += [[sys.executable, "-c", f"import torch\ntorch.set_num_threads(1)\n{block}"] for block in BLOCKS]
    for call in calls:
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert (tmp_path / "runs" / "student.safetensors").is_file()
