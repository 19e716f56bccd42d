"""Several pairs in one search: each has its run, and what stands above them follows from these alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from search import config, several

ROOT = Path(__file__).parents[2]
PAIRS = ["tiny", "resnet56_resnet20"]
SMALL = ["methods=[kd,rkd]", "max_stages=2", "train_size=100", "epochs=1", "seeds=1", "confirm=2", "teacher_epochs=1"]


def search(pair: str, out: Path, store: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "search.run", f"pair={pair}", *SMALL, f"out={out}", f"store={store}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=500)


def both(folder: Path) -> subprocess.CompletedProcess[str]:
    return search(f"[{','.join(PAIRS)}]", folder / "run", folder / "store")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished search of two pairs: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("several")
    result = both(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "run", result.stdout


def info(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "run.json").read_text()))


@pytest.mark.slow
def test_each_pair_has_a_run_of_its_own_and_the_whole_is_their_sum(done: tuple[Path, str]) -> None:
    out, _ = done
    for pair in PAIRS:
        for name in ("best.yaml", "report.html", "student.safetensors", "study.db", "results.csv", "front.csv"):
            assert (out / pair / name).stat().st_size > 0
    runs = [info(out / pair) for pair in PAIRS]
    whole = info(out)
    for key in ("recipes", "stage_runs", "stage_runs_unshared", "failed"):
        assert whole[key] == sum(run[key] for run in runs)  # type: ignore[misc]
    assert (whole["recipes"], whole["stage_runs"], whole["stage_runs_unshared"]) == (8, 8, 12)
    assert whole["experiment"]["pair"] == PAIRS and whole["finished"]  # type: ignore[index]
    rows = pd.concat([pd.read_parquet(out / pair / "results.parquet") for pair in sorted(PAIRS)], ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "results.parquet"), rows)
    assert (rows["phase"] == "search").sum() == 8


@pytest.mark.slow
def test_the_table_of_pairs_follows_from_the_results(done: tuple[Path, str]) -> None:
    out, told = done
    results = pd.read_parquet(out / "results.parquet")
    table = pd.read_csv(out / "pairs.csv")
    assert table["pair"].tolist() == [*PAIRS, "mean over pairs"]
    best: dict[str, tuple[str, str]] = {}
    for pair in PAIRS:
        rows = results[(results["pair"] == pair) & (results["phase"] == "search")]
        ranked = rows.sort_values(["val_accuracy", "train_flops", "recipe_id"], ascending=[False, True, True])
        base = ranked[ranked["n_stages"] == 1]["recipe_id"].iloc[0]
        best[pair] = (ranked["recipe_id"].iloc[0], base)
    fresh = (
        results[results["phase"] == "confirm"].set_index(["pair", "recipe_id", "seed"])["test_accuracy"].sort_index()
    )
    tested = all((pair, one) in fresh.index for pair, ids in best.items() for one in ids)
    column = results[results["phase"] == "search"].set_index(["pair", "recipe_id", "seed"])["val_accuracy"].sort_index()
    gains = []
    for row in table[:-1].to_dict("records"):
        ours, base = best[row["pair"]]
        assert (row["recipe_id"], row["baseline_id"]) == (ours, base)
        assert row["split"] == ("test" if tested else "validation")
        assert row["test_accuracy"] == pytest.approx(fresh[row["pair"], ours].mean())
        of = fresh if tested else column
        differences = (of[row["pair"], ours] - of[row["pair"], base]).dropna()
        assert row["gain"] == pytest.approx(differences.mean())
        if ours != base and len(differences) > 1:
            half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
            assert row["gain_half_width"] == pytest.approx(half)
        else:
            assert pd.isna(row["gain_half_width"])
        gains.append(differences.mean())
        assert f"{row['pair']}: best on validation {row['recipe']}, " in told.replace("\n", " ")
    mean = table.iloc[-1]
    assert mean["gain"] == pytest.approx(sum(gains) / 2) and mean["differences"] == 2
    if any(gains):
        assert mean["gain_half_width"] == pytest.approx(stats.sem(gains) * stats.t.ppf(0.975, 1))
    assert "mean over pairs: " in told and "[1/8] " in told


@pytest.mark.slow
def test_the_index_is_made_again_from_the_files(done: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = done
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("results.parquet", "run.json"):
        shutil.copy(out / name, copy)
    result = subprocess.run(
        [sys.executable, "-m", "reports.build", f"run={copy}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    page = (copy / "report.html").read_text()
    assert page == (out / "report.html").read_text()
    for pair in PAIRS:
        assert f'href="./{pair}/report.html"' in page


@pytest.mark.slow
def test_again_trains_nothing_together_and_alone(done: tuple[Path, str]) -> None:
    out, _ = done
    before = pd.read_parquet(out / "results.parquet")
    result = both(out.parent)
    assert result.returncode == 0, result.stderr
    assert info(out)["stage_runs"] == 0 and "0 stages trained now" in result.stdout
    pd.testing.assert_frame_equal(pd.read_parquet(out / "results.parquet"), before)
    alone = search("[tiny]", out / "tiny", out.parent / "store")
    assert alone.returncode == 0 and info(out / "tiny")["stage_runs"] == 0, alone.stderr


def test_a_pair_that_does_not_fit_the_images_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for number in range(40):  # images of 4 x 4 pixels
        file = tmp_path / "images" / ("train" if number < 30 else "test") / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    data = ["data=folder", f"data_dir={tmp_path / 'images'}", "image_size=4"]
    words = ["pair=[tiny,vgg19_resnet18]", *data, f"out={tmp_path / 'run'}", f"store={tmp_path / 'store'}"]
    pairs = config.parse_pairs(words)
    with several.held(pairs):
        search = several.Search(pairs, Console(quiet=True), "again")
        with pytest.raises(ValueError, match="pair=vgg19_resnet18 needs images of at least 8 x 8"):
            search.check_inputs()


@pytest.mark.parametrize("held", ["", "tiny"])
def test_one_driver_for_all_folders(tmp_path: Path, held: str) -> None:
    import filelock

    words = [f"out={tmp_path / 'run'}", f"store={tmp_path / 'store'}"]
    (tmp_path / "run" / held).mkdir(parents=True)
    with (
        filelock.FileLock(tmp_path / "run" / held / ".lock"),
        pytest.raises(ValueError, match="another search is at work"),
        several.held(config.parse_pairs(["pair=[tiny,resnet56_resnet20]", *words])),
    ):
        pass


@pytest.mark.parametrize(("there", "asked"), [("tiny", "[tiny,resnet56_resnet20]"), (["tiny", "x"], "tiny")])
def test_a_folder_holds_one_kind_of_search(tmp_path: Path, there: object, asked: str) -> None:
    pairs = {"pairs": {name: {} for name in there}} if isinstance(there, list) else {}
    (tmp_path / "run.json").write_text(json.dumps({"experiment": {"pair": there}, **pairs}))
    words = [f"pair={asked}", f"out={tmp_path}", f"store={tmp_path / 'store'}"]
    with pytest.raises(ValueError, match="choose another folder"), several.held(config.parse_pairs(words)):
        pass
