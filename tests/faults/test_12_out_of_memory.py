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
# names are of smskd.stage. 2^50 bytes are more than there are anywhere: the allocator's own error.
SHORT = """
def train_stage(student, work, data, train_stage=train_stage, **more):
    device = data.mean.device
    if set(work.methods) == {"rkd"}:
        torch.empty(2**50, dtype=torch.uint8, device=device)
    if set(work.methods) == {"fitnets"}:
        if device.type == "cpu":  # what CUDA's allocator says
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 15.77 GiB in all")
        torch.cuda.set_per_process_memory_fraction(1e-6)
        torch.cuda.empty_cache()
    return train_stage(student, work, data, **more)
"""


@pytest.mark.slow
def test_fails_with_the_size(score: Score, tmp_path: Path) -> None:
    out, store = tmp_path / "run", tmp_path / "store"
    path = runs.sabotage(tmp_path / "sabotage", "smskd.stage", SHORT)
    words = ["methods=[kd,rkd,fitnets]", "max_stages=1", "seeds=1", "confirm=0"]
    ended = runs.search(out, store, *words, PYTHONPATH=path)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    rows = pd.read_parquet(out / "results.parquet").set_index("methods")
    signs = {"rkd": "1125899906842624 bytes", "fitnets": "Tried to allocate 20.00 GiB"}
    for method, size in ({} if torch.cuda.is_available() else signs).items():
        assert size in rows.loc[method, "error"]
    for method in signs:
        with score.fault():
            assert rows.loc[method, "status"] == "failed"
            assert "allocate" in rows.loc[method, "error"]
            assert "(batch size 50: it is never changed" in rows.loc[method, "error"]
    assert rows.loc["kd", "status"] == "complete"
    manifests = [json.loads(path.read_text()) for path in store.glob("entries/*/*/manifest.json")]
    assert {manifest["identity"]["training"]["batch_size"] for manifest in manifests} == {50}
