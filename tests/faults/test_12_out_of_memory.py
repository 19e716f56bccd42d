"""A trial that the device's memory doesn't suffice for fails with the sizes; others go on, as they would have."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests import runs
from tests.faults.conftest import Score

ROW = 12
# names are of smskd.pipeline. 2^50 bytes are more than there are anywhere: the allocator's own error.
SHORT = """
def train_stage(student, *, stage, train_stage=training.train_stage, **settings):
    device = settings["data"].mean.device
    if stage.distils == ("rkd",):
        torch.empty(2**50, dtype=torch.uint8, device=device)
    if stage.distils == ("fitnets",):
        if device.type == "cpu":  # what CUDA's allocator says
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 15.77 GiB in all")
        torch.cuda.set_per_process_memory_fraction(1e-6)
        torch.cuda.empty_cache()
    return train_stage(student, stage=stage, **settings)

training.train_stage = train_stage
"""


@pytest.mark.slow
def test_fails_with_the_size(score: Score, tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    path = runs.sabotage(tmp_path / "sabotage", "smskd.pipeline", SHORT)
    words = ["methods=[kd,rkd,fitnets]", "max_stages=1", "seeds=1", "confirm=0"]
    ended = runs.search(out, store, *words, PYTHONPATH=path)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    rows = pd.read_parquet(out / "results.parquet").set_index("recipe")
    signs = {"rkd": "1125899906842624 bytes", "fitnets": "Tried to allocate 20.00 GiB"}
    for recipe, size in ({} if torch.cuda.is_available() else signs).items():
        assert size in rows.loc[recipe, "error"]
    for recipe in signs:
        with score.fault():
            assert rows.loc[recipe, "status"] == "failed"
            assert "allocate" in rows.loc[recipe, "error"]
            assert "(batch size 50, as the pair has it: it is never changed" in rows.loc[recipe, "error"]
    assert rows.loc["kd", "status"] == "complete"
    manifests = [json.loads(path.read_text()) for path in store.glob("entries/*/*/manifest.json")]
    assert {manifest["identity"]["schedule"]["batch_size"] for manifest in manifests} == {50}
