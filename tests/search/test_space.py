"""Spaces times ranges, as a search draws from them: counted, without what is idle; and spaces that misbehave."""

from __future__ import annotations

import importlib
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import spaces
from search import config, draws, interrupts, run
from search.draws import Scope
from search.study import Asked, Design, Goal, Study
from smskd.recipe import Recipe
from smskd.settings import Value
from tests import runs
from tests.search.made_up import result

NAMES = list(spaces.available())


def look(*words: str) -> Scope:
    return draws.look(config.parse(list(words)).search_space())


def count(*words: str) -> int:
    points = look(*words).points
    assert points is not None
    return len(points)


# --- a space's recipes times the ranges


@pytest.mark.parametrize(
    ("words", "recipes"),
    [
        (["methods=[kd]", "max_stages=1", "kd.temperature=choice(1,2,4,8)"], 4),
        (["methods=[kd]", "max_stages=1", "kd.temperature=choice(1,2,4,8)", "learning_rate=choice(0.1,0.3)"], 8),
        # kd alone, rkd alone, both orders: kd's temperature is in three of these four
        (["methods=[kd,rkd]", "max_stages=2", "kd.temperature=choice(1,2)"], 3 * 2 + 1),
        # the second stage's epochs are in two of them
        (["methods=[kd,rkd]", "max_stages=2", "stage_2.epochs=range(5,20,5)"], 2 * 3 + 2),
        (["methods=[kd,rkd]", "max_stages=2", "epochs=range(5,20,5)"], 4 * 3),
        # an anchor has effect in two of them; ewc has no temperature, and without an anchor there is nothing to weigh
        (["methods=[kd,rkd]", "max_stages=2", "anchor=choice(reference,ewc,none)"], 2 + 2 * 3),
        (["methods=[kd,rkd]", "max_stages=2", "lambda_base=choice(0,0.5,1)"], 2 + 2 * 3),
        (
            ["methods=[kd,rkd]", "max_stages=2", "anchor=choice(reference,ewc,none)", "anchor_temperature=choice(2,4)"],
            2 + 2 * (2 + 1 + 1),
        ),
        (["methods=[kd,rkd]", "max_stages=2", "lambda_base=choice(0,1)", "weighting=choice(fixed,tcp)"], 2 + 2 * 3),
        (["methods=[kd]", "max_stages=1", "schedule=choice(step,cosine)", "milestones=choice([0.5],[0.9])"], 2 + 1),
        (["methods=[kd]", "max_stages=1", "optimizer=choice(sgd,adamw)", "momentum=choice(0.1,0.5)"], 2 + 1),
        (["methods=[ce,kd]", "max_stages=1", "teachers=range(1,4)"], 1 + 3),
        (["methods=[kd,rkd]", "max_stages=2", "epochs_total=choice(10,20)"], 4 * 2),
        # a split counts where there are two stages, and there is a total
        (["methods=[kd,rkd]", "max_stages=2", "epochs_total=12", "split=choice([1,1],[1,2])"], 2 + 2 * 2),
        # a value at the default is one recipe with it
        (["methods=[kd]", "max_stages=1", "kd.temperature=choice(2,4)", "learning_rate=choice(0.2,0.3)"], 4),
    ],
)
def test_a_finite_product_is_counted(words: list[str], recipes: int) -> None:
    assert count("space=stage_order", *words) == recipes


@pytest.mark.parametrize("name", NAMES)
def test_every_space_takes_a_range(name: str) -> None:
    """Of a setting that it doesn't choose itself: the batch size of all stages."""
    plain, times = look(f"space={name}"), look(f"space={name}", "batch_size=choice(20,30,50)")
    assert (plain.points is None) == (times.points is None)
    if plain.points is not None and times.points is not None:
        assert len(times.points) == 3 * len(plain.points)
    sizes = {stage.training(times.defaults).batch_size for recipe in times.recipes for stage in recipe.stages}
    assert sizes == {20, 30, 50}
    several = look(f"space={name}", "batch_size=interval(20,10000)", "label_smoothing=interval(0,0.5)")
    assert several.points is None and len({recipe.id for recipe in several.recipes}) == len(several.recipes)


def test_an_interval_makes_a_space_infinite_and_is_sampled() -> None:
    scope = look("methods=[kd]", "max_stages=1", "learning_rate=tag(log,interval(0.02,0.6))")
    assert scope.points is None
    rates = sorted(recipe.stages[0].training(scope.defaults).learning_rate for recipe in scope.recipes)
    assert 0.02 <= rates[0] < 0.03 and 0.4 < rates[-1] <= 0.6
    median = rates[len(rates) // 2]
    assert 0.07 < median < 0.17  # of the logarithm: about 0.11, not 0.31
    with pytest.raises(ValueError, match="sampler=exhaustive needs a finite space"):
        open_study(scope, sampler="exhaustive")


def test_numbers_that_are_drawn_are_short() -> None:
    scope = look("space=weights", "methods=[kd,rkd]", "max_stages=2", "weight_decay=tag(log,interval(1e-5,1e-2))")
    for recipe in scope.recipes:
        for number in re.findall(r"=(\d[\w.-]*)", str(recipe)):
            assert len(re.sub(r"e-\d+|^0\.0*|\.", "", number)) <= 6, recipe


def test_a_fixed_setting_is_in_every_recipe_that_feels_it() -> None:
    scope = look("methods=[kd,rkd]", "max_stages=2", "kd.temperature=2", "stage_2.epochs=3", "weighting=tcp")
    assert {str(recipe) for recipe in scope.recipes} == {
        "kd(temperature=2)", "rkd", "kd(temperature=2)>rkd@epochs=3 weighting=tcp",
        "rkd>kd(temperature=2)@epochs=3 weighting=tcp",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["max_stages=1", "lambda_base=choice(0.1,0.2)"], "lambda_base"),
        (["max_stages=1", "lambda_base=0.1"], "lambda_base"),
        (["max_stages=2", "anchor=none", "weighting=choice(fixed,tcp)"], "weighting"),
        (["max_stages=2", "anchor=ewc", "anchor_temperature=choice(1,2)"], "anchor_temperature"),
        (["max_stages=2", "stage_3.epochs=choice(1,2)"], "stage_3.epochs"),
        (["schedule=cosine", "milestones=choice([0.5],[0.9])"], "milestones"),
        (["milestones=[0.5]"], "milestones"),  # tiny's schedule is one_cycle
        (["optimizer=adamw", "momentum=0.5"], "momentum"),
        (["methods=[ce]", "max_stages=1", "teachers=2"], "teachers"),
    ],
)
def test_what_has_no_effect_is_refused(words: list[str], key: str) -> None:
    words = words if any(word.startswith("methods=") for word in words) else ["methods=[kd,rkd]", "max_stages=2"] + [
        word for word in words if not word.startswith("max_stages=2")
    ]  # fmt: skip
    given = {word.partition("=")[0]: word for word in words}
    with pytest.raises(ValueError, match=re.escape(f"{key}= has no effect in any recipe of this search")):
        look(*given.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["space=weights", "kd.weight=choice(1,2)", "learning_rate=0.1"], ""),  # taken: the space leaves them alone
        (["space=weighting", "weighting=choice(fixed,tcp)"], "weighting= is chosen by the space itself"),
        (["space=everything", "lambda_base=0.5"], "lambda_base= is chosen by the space itself"),
        (["space=systems", "teachers=2"], "teachers= is chosen by the space itself"),
        (["space=budget", "epochs=3"], "epochs= is chosen by space=budget itself: leave it out"),
        (["space=budget", "stage_2.epochs=choice(3,4)"], "stage_2.epochs= is chosen by space=budget itself"),
        (["space=budget", "epochs_total=choice(30,40)"], "epochs_total= is chosen by space=budget itself"),
        (["space=budget", "epochs_total=30"], ""),
        (["methods=[kd(temperature=2),rkd]", "kd.temperature=4"], "both say kd.temperature: leave one out"),
        (["methods=[kd(temperature=2),rkd]", "kd.temperature=choice(1,4)"], "both say kd.temperature: leave one out"),
        (["methods=[kd@epochs=3,rkd]", "epochs=choice(1,4)"], "both say epochs: leave one out"),
    ],
)
def test_what_is_chosen_elsewhere_is_refused(words: list[str], said: str) -> None:
    words = [*words, *(["max_stages=2"] if words[0].startswith("methods=") else [])]
    if said:
        with pytest.raises(ValueError, match=re.escape(said)):
            look(*words)
    else:
        assert look(*words).recipes


def test_what_is_of_one_stage_goes_over_what_is_of_all() -> None:
    scope = look("methods=[kd,rkd]", "epochs=4", "stage_2.epochs=range(2,8,2)")
    told = {str(recipe) for recipe in scope.recipes}
    assert told >= {"kd epochs=4", "kd@epochs=4>rkd@epochs=2", "kd>rkd epochs=4", "rkd@epochs=4>kd@epochs=6"}
    assert len(told) == 2 + 2 * 3


def test_settings_that_do_not_go_together_in_a_recipe_name_it() -> None:
    words = ["methods=[kd]", "max_stages=1", "schedule=cosine", "warmup_epochs=range(0,3)", "epochs=choice(2,3)"]
    with pytest.raises(ValueError, match=r"stage 1 of kd epochs=2 .*warmup_epochs < epochs must hold"):
        look(*words)


def test_too_many_points_are_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "ENUMERATION_LIMIT", 100)
    with pytest.raises(ValueError, match=r"over 100 points: ask for fewer methods, max_stages or values"):
        look("methods=[kd,rkd]", "max_stages=2", "epochs=range(1,100)")


# --- in the study


def open_study(
    scope: Scope,
    storage: str | None = None,
    *,
    sampler: str | None = None,
    trials: int = 30,
    sources: dict[str, str] | None = None,
    identity: dict[str, Value] | None = None,
) -> Study:
    return Study(
        scope,
        optuna.storages.InMemoryStorage() if storage is None else storage,
        identity={"pair": "tiny", "data": "digits", "cost": "flops"} | (identity or {}),
        goal=Goal(values=lambda record: (1 - record.val_accuracy, record.train_flops)),
        design=Design(seeds=(0,), sampler=sampler, trials=trials, seed=1),
        sources=sources or {},
    )


def drain(study: Study, most: int = 10_000) -> list[str]:
    ran: list[str] = []
    while len(ran) < most and (asked := study.ask()) is not None:
        ran.append(str(asked.recipe))
        finish(study, asked)
    return ran


def finish(study: Study, asked: Asked) -> None:
    accuracy = int(asked.recipe.id[:6], 16) / 16**6
    study.tell(asked, result(asked.recipe, 0, accuracy))


def parameters(study: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study._study.get_trials() if trial.state.name == "COMPLETE"]


@pytest.mark.parametrize("sampler", ["exhaustive", "tpe", "nsga2"])
def test_optunas_parameters_have_no_idle_ones(sampler: str) -> None:
    scope = look("methods=[kd,rkd]", "max_stages=2", "kd.temperature=choice(1,2)", "lambda_base=choice(0,0.5,1)")
    study = open_study(scope, sampler=sampler)
    drain(study)
    assert study.complete()
    found = parameters(study)
    assert len(found) == 2 + 1 + 2 * 2 * 3
    for params in found:
        stages = [value for name, value in params.items() if name.startswith("stage_")]
        assert len(stages) == params["n_stages"]
        assert ("kd.temperature" in params) == ("kd" in stages)
        assert ("lambda_base" in params) == (len(stages) == 2)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_choices_that_hang_on_earlier_ones_outlast_the_driver(tmp_path: Path, sampler: str) -> None:
    """Which choices a name stands for is what the study says, whichever was drawn first in this process."""
    words = ["methods=[kd,rkd,at]", "max_stages=3", "learning_rate=interval(0.05,0.3)"]
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    first = open_study(look(*words), storage, sampler=sampler, trials=24)
    ran = drain(first, most=8)
    lost = first.ask()  # its driver dies
    assert lost is not None
    other = draws.look(config.parse(words).search_space())
    for seed in range(5):  # other names come first here
        other.space(draws.Random(random.Random(seed)))
    again = open_study(other, storage, sampler=sampler, trials=24)
    assert list(again.settled) == list(first.settled)
    ran += drain(again)
    assert len(set(ran)) == len(ran) and again.complete() and len(again.settled) == 24
    assert lost.recipe.id in again.settled
    names = {name for params in parameters(again) for name in params}
    assert any(re.fullmatch(r"stage_2 of .*\|.*", name) for name in names)


def test_a_killed_search_goes_on_with_its_settings(tmp_path: Path) -> None:
    words = ["methods=[kd,rkd]", "max_stages=2", "kd.temperature=choice(1,2)", "stage_2.epochs=choice(2,3)"]
    (tmp_path / "whole").mkdir()
    whole = open_study(look(*words), f"sqlite:///{tmp_path / 'whole' / 'study.db'}")
    drain(whole)
    killed = open_study(look(*words), f"sqlite:///{tmp_path / 'study.db'}")
    drain(killed, most=4)
    assert killed.ask() is not None
    after = open_study(look(*words), f"sqlite:///{tmp_path / 'study.db'}")
    drain(after)
    assert after.settled == whole.settled and len(after.settled) == 1 + 2 + 2 * 2 * 2


# --- learning from other runs


def finished(folder: Path, words: list[str], trials: int = 40) -> dict[str, str]:
    folder.mkdir()
    made = config.parse(words)
    url = f"sqlite:///{folder / 'study.db'}"
    study = open_study(look(*words), url, trials=trials, identity=made.identity)
    drain(study)
    return {"other": url}


@pytest.mark.parametrize(
    ("there", "here", "known"),
    [
        # the same ranges, in a finite and an infinite space
        (["kd.temperature=choice(1,2)"], ["kd.temperature=choice(1,2,4)"], 7),
        (["kd.temperature=choice(1,2)"], ["kd.temperature=interval(1,4)"], 7),
        (["learning_rate=choice(0.1,0.3)"], ["learning_rate=tag(log,interval(0.05,0.4))"], 8),
        # rates that aren't here
        (["learning_rate=choice(0.1,0.3)"], ["learning_rate=choice(0.1,0.4)"], 4),
        (["learning_rate=choice(0.1,0.3)"], ["learning_rate=interval(0.2,0.4)"], 4),
        # what is fixed may differ: epochs, say
        (["epochs=1"], [], 4),
        ([], ["epochs=1"], 4),
        (["epochs=1", "kd.temperature=2", "weighting=tcp"], ["epochs_total=9", "kd.temperature=1"], 4),
        (["weighting=tcp"], ["weighting=fixed"], 4),
        (["epochs_total=2"], ["epochs=5"], 4),
        (["epochs=1", "learning_rate=choice(0.1,0.3)"], ["epochs=2", "learning_rate=interval(0.05,0.4)"], 8),
        (["epochs_total=12", "split=[1,2]"], [], 4),
        # what was searched there and is fixed here
        (["lambda_base=choice(0.5,1)"], ["lambda_base=1"], 4),
        (["lambda_base=choice(0.5,1)"], [], 4),
        # what wasn't set there, and is another here
        ([], ["lambda_base=1"], 2),
    ],
)  # fmt: skip
def test_another_runs_recipes_are_known_where_they_are_of_this_space(
    tmp_path: Path, there: list[str], here: list[str], known: int
) -> None:
    common = ["methods=[kd,rkd]", "max_stages=2"]
    sources = finished(tmp_path / "other", [*common, *there])
    made = config.parse([*common, *here])
    study = open_study(look(*common, *here), sampler="tpe", trials=3, sources=sources, identity=made.identity)
    assert study.attributes["learnt"] == {"other": known}
    assert study.settled == {}
    assert len(drain(study)) <= 3 and study.complete()


# --- spaces that misbehave

HEAD = '"""Broken."""\nfrom spaces import Menu, Trial\n\n\ndef suggest(trial: Trial, menu: Menu):\n'


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Makes space=broken of the body of its suggest(), or of a whole file."""
    folder = tmp_path / "spaces"
    folder.mkdir()
    file = folder / "broken.py"

    def make(body: str) -> Path:
        whole = body.startswith('"""')
        file.write_text(body if whole else HEAD + "".join(f"    {line}\n" for line in body.split("\n")))
        importlib.invalidate_caches()
        return file

    monkeypatch.setattr(spaces, "__path__", [*spaces.__path__, str(folder)])
    handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    yield make
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.modules.pop("spaces.broken", None)
    vars(spaces).pop("broken", None)


def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said of a search that ends with bad input, in one line; nothing may be trained."""
    from search.several import Search

    monkeypatch.setattr(Search, "work", lambda self: pytest.fail("Ray must not start"))
    out, store = tmp_path / "run", tmp_path / "store"
    assert run.main(["space=broken", f"out={out}", f"store={store}", *words]) == run.BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "Traceback" not in told
    return told


INFINITE = 'x = trial.suggest_float("learning_rate", 0.1, 0.2)'
COUNT = 'n = trial.suggest_int("n_stages", 1, 2)'
BAD: dict[str, tuple[str, int, str]] = {
    "a typo": ("return menu.recipee('kd')", 6, "AttributeError: 'Menu' object has no attribute 'recipee'"),
    "a typo in a branch": (f"{COUNT}\nif n == 2:\n    return undefined\nreturn menu.recipe('kd')", 8, "NameError"),
    "a typo in an infinite one": (f"{INFINITE}\nreturn menu.recipe('kd').with_setings(x)", 7, "AttributeError"),
    "in a branch of an infinite one": (
        f"{INFINITE}\nif x > 0.19:\n    raise KeyError('x')\nreturn menu.recipe('kd')",
        8,
        "KeyError: 'x'",
    ),
    "a division": ("return menu.recipe('kd', lambda_base=1 / 0)", 6, "ZeroDivisionError"),
    "its own words": ("raise ValueError('at least 7 methods')", 6, "at least 7 methods"),
    "an unknown method": ("return menu.recipe('kdd')", 6, "Did you mean 'kd'"),
    "an unknown setting": ("return menu.recipe('kd', lambda_bas=1)", 6, "Did you mean 'lambda_base'"),
    "out of bounds": ("return menu.recipe('kd>rkd', lambda_base=-1)", 6, "lambda_base >= 0 must hold"),
    "no choices": ("return menu.recipe(trial.suggest_categorical('a', []))", 6, ""),
    "low above high": ("trial.suggest_float('a', 2, 1)\nreturn menu.recipe('kd')", 6, "low"),
    "step and log": ("trial.suggest_float('a', 1, 2, step=0.1, log=True)\nreturn menu.recipe('kd')", 6, "step"),
    "two kinds": (
        "trial.suggest_int('a', 1, 2)\nreturn menu.recipe(trial.suggest_categorical('a', ['kd']))",
        7,
        "",
    ),
    "a report": ("trial.report(0.5, 1)\nreturn menu.recipe('kd')", 6, "NotImplementedError"),
    "no end": ("return suggest(trial, menu)", 6, "RecursionError"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_a_space_raises_is_told_as_its_fault(
    broken: Callable[[str], Path],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body, line, said = BAD[what]
    broken(body)
    told = refused(tmp_path, monkeypatch, capsys)
    assert "spaces/broken.py, line " + str(line) in told and said in told
    kept = (tmp_path / "run" / "errors" / "space.txt").read_text()
    assert str(tmp_path / "run" / "errors" / "space.txt") in told
    assert kept.startswith("Traceback") and f'broken.py", line {line}' in kept


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "space=broken must return a Recipe, made by menu.recipe(...), but returned None"),
        ("pass", "but returned None"),
        ("return 'kd>rkd'", "but returned 'kd>rkd'"),
        (f"{COUNT}\nif n == 1:\n    return menu.recipe('kd')", "but returned None"),
        (f"{INFINITE}\nif x < 0.19:\n    return menu.recipe('kd')", "but returned None"),
        ('"""Broken."""\ndef sugest(trial, menu): ...', "spaces/broken.py must define suggest(trial, menu)"),
        ('"""Broken."""\nsuggest = 3', "spaces/broken.py must define suggest(trial, menu)"),
        ('"""Broken."""\nimport nowhere', "spaces/broken.py can't be imported: ModuleNotFoundError"),
        ('"""Broken."""\ndef suggest(trial, menu:', "spaces/broken.py can't be imported: SyntaxError"),
        ('"""Broken."""\ndef suggest(trial): ...', "TypeError"),
    ],
)
def test_what_is_no_space_is_named(
    broken: Callable[[str], Path],
    body: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken(body)
    told = refused(tmp_path, monkeypatch, capsys)
    assert said in told and "broken.py" in told


def test_a_mistake_is_seen_where_only_the_words_are_read(
    broken: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken("return menu.recipee(menu.methods[0])")
    assert "spaces/broken.py, line 6" in refused(tmp_path, monkeypatch, capsys, "methods=[kd]")


def test_it_is_told_before_ray_is_imported(broken: Callable[[str], Path], tmp_path: Path) -> None:
    file = broken(f"{COUNT}\nif n == 2:\n    return undefined\nreturn menu.recipe('kd')")
    words = ["space=broken", f"out={tmp_path / 'run'}", f"store={tmp_path / 'store'}"]
    code = (
        f"import sys, spaces; spaces.__path__.append({str(file.parent)!r}); from search import run; "
        f"code = run.main({words!r}); print(sorted({{'ray', 'torch'}} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (2, "[]"), done.stderr
    assert "NameError: name 'undefined' is not defined" in done.stderr and "line 8" in done.stderr


# --- all of suggest_*


@pytest.mark.parametrize(
    ("body", "recipes"),
    [
        ("e = trial.suggest_int('e', 2, 10, step=4)", 3),
        ("e = trial.suggest_int('e', 2, 4, log=True)", 3),
        ("e = int(10 * trial.suggest_float('e', 0.1, 0.5, step=0.1))", 5),
        ("e = int(trial.suggest_discrete_uniform('e', 1, 3, 1))", 3),
        ("e = trial.suggest_categorical('e', [1, 5, 9])", 3),
        ("e = trial.suggest_categorical('e', (None, 3)) or 1", 2),
        ("e = 2 if trial.suggest_categorical('e', [True, False]) else 3", 2),
        ("e = trial.suggest_int('e', 1, 3)\ne = trial.suggest_int('e', 1, 3)", 3),
        ("e = trial.suggest_int('e', 1, 3)\ne += trial.suggest_int('f', e, 3) if e > 1 else 0", 1 + 2 + 1),
        ("trial.set_user_attr('a', 1)\nnumber, attributes = trial.number, trial.user_attrs\ne = 3", 1),
        ("e = trial.suggest_int('e', 1, 3)\nassert trial.params['e'] == e and 'e' in trial.distributions", 3),
        ("e = 1 + int(10 * trial.suggest_float('e', 0.1, 2, log=True))", None),
        ("e = 1 + int(10 * trial.suggest_uniform('e', 0.1, 2))", None),
        ("e = 1 + int(10 * trial.suggest_loguniform('e', 0.1, 2))", None),
    ],
)
@pytest.mark.filterwarnings("ignore:suggest_:FutureWarning")
def test_all_that_optuna_can_suggest(broken: Callable[[str], Path], body: str, recipes: int | None) -> None:
    broken(f"{body}\nreturn menu.recipe(f'kd@epochs={{e}}')")
    scope = look("space=broken")
    assert (None if scope.points is None else len(scope.points)) == recipes
    study = open_study(scope, sampler="tpe", trials=6)
    assert set(drain(study)) and (recipes is None or set(study.settled) <= {recipe.id for recipe in scope.recipes})


def test_a_recipe_in_full_is_a_spaces_right(broken: Callable[[str], Path]) -> None:
    """Stages of unequal settings, chosen by the space."""
    body = "t = trial.suggest_float('t', 1, 4, step=1.5)\nr = trial.suggest_categorical('r', [0.05, 0.1])\n"
    broken(f"{body}return menu.recipe(f'kd(temperature={{t}})@epochs=3>rkd@learning_rate={{r}}', weighting='tcp')")
    scope = look("space=broken")
    assert {str(recipe) for recipe in scope.recipes} >= {
        "kd(temperature=1)@epochs=3>rkd@learning_rate=0.05 weighting=tcp",
        "kd@epochs=3>rkd@learning_rate=0.1 weighting=tcp",
    }
    assert len(scope.recipes) == 6
    assert all(isinstance(recipe, Recipe) for recipe in scope.recipes)
