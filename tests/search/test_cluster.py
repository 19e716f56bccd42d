"""Searches on a Ray cluster of several nodes, all of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from search import config, nodes
from search.nodes import Nodes
from tests import runs
from tests.search.ray_nodes import RayNodes

# --- words


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head.example:1"])
def test_addresses(address: str) -> None:
    assert config.parse([f"address={address}"]).address == address


@pytest.mark.parametrize("address", ["head", ":6379", "head:0", "head:99999", "http://head:6379", "local"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"address= is auto, or host:port"):
        config.parse([f"address={address}"])


def test_rays_client_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"doesn't keep a search through a lost connection.*address=auto"):
        config.parse(["address=ray://head:10001"])


def test_insecure_is_of_a_cluster() -> None:
    with pytest.raises(ValueError, match="insecure=true is of a cluster"):
        config.parse(["insecure=true"])


# --- which nodes

SEEN = {"device type": "cpu", "device": "cpu AVX512", "python": "3.11", "torch": "2", "store": "s"}


class FakeRay:
    """Nodes as Ray lists them, and what each says of itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, told: dict[str, dict[str, Any]]) -> None:
        self.alive = dict.fromkeys(told, True)
        self.resources = {name: {"CPU": 2.0} for name in told}
        monkeypatch.setattr(nodes.ray, "nodes", self._nodes)
        monkeypatch.setattr(Nodes, "_ask", lambda this, ids, store, gpus: {i: SEEN | told[i] for i in ids})
        monkeypatch.setattr(nodes, "_versions", lambda: {"torch": "2"})
        monkeypatch.setattr(nodes.platform, "python_version", lambda: "3.11")
        monkeypatch.setattr(nodes, "_name_of_store", lambda folder: "s")

    def _nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "Alive": alive, "Resources": self.resources[name], "NodeManagerHostname": f"host-{name}"}
            for name, alive in self.alive.items()
        ]


def surveyed(tmp_path: Path, known: str | None = None, gpus: float = 0.0) -> tuple[Nodes, list[str]]:
    said: list[str] = []
    found = Nodes(said.append)
    found.survey(store=str(tmp_path), cpus=1, gpus=gpus, known=known)
    return found, said


def test_the_kind_with_most_room_is_chosen_and_the_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRay(monkeypatch, {"a": {"device": "old"}, "b": {"device": "old"}, "c": {}, "d": {}})
    fake.resources["d"] = {"CPU": 64.0}
    found, said = surveyed(tmp_path)
    assert found.left_out == {"a", "b"}
    assert found.wanted is not None and found.wanted["device"] == "cpu AVX512"
    why = "is left out (device: old there, cpu AVX512 wanted): a search runs on nodes of one kind"
    assert said == [f"node host-{name}/{name} {why}" for name in ("a", "b")]
    found.leave_out("a", "again")
    assert len(said) == 2


def test_a_run_that_goes_on_stays_with_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, {"a": {"device": "H100"}, "b": {}, "c": {}})
    assert surveyed(tmp_path)[0].left_out == {"a"}
    assert surveyed(tmp_path, known="H100")[0].left_out == {"b", "c"}
    machine = nodes.platform.machine()
    assert surveyed(tmp_path, known=f"{machine} AVX512")[0].left_out == {"a"}
    assert surveyed(tmp_path, known="A100")[0].left_out == {"a"}  # gone: the run goes on with what there is


@pytest.mark.parametrize(
    ("told", "mend"),
    [
        ({"torch": "1"}, r"node host-b/b can't run.*torch: 1 there, 2 wanted.*same image"),
        ({"python": "3.12"}, r"python: 3.12 there.*same image"),
        ({"store": "FileNotFoundError: .store"}, r"store: FileNotFoundError.*mount the folder of store="),
        ({"store": "of its own"}, r"store: of its own there, s wanted"),
    ],
)
def test_a_node_that_would_spoil_the_search_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], mend: str
) -> None:
    FakeRay(monkeypatch, {"a": {}, "b": told})
    with pytest.raises(ValueError, match=mend):
        surveyed(tmp_path)


def test_only_nodes_with_room_for_a_trial_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(monkeypatch, {"head": {"torch": "1"}, "full": {"torch": "1"}, "dead": {"torch": "1"}, "a": {}})
    fake.resources |= {"head": {}, "full": {"CPU": 0.5}, "a": {"CPU": 1.0, "GPU": 1.0}}
    fake.alive["dead"] = False
    found, said = surveyed(tmp_path)
    assert not said and not found.left_out and found.lost() == 1
    assert surveyed(tmp_path, gpus=0.5)[0].wanted is not None
    with pytest.raises(ValueError, match="no node of the cluster has room for a trial of cpus=1, gpus=2"):
        surveyed(tmp_path, gpus=2.0)


def test_a_store_names_itself_once(tmp_path: Path) -> None:
    assert "FileNotFoundError" in nodes._name_of_store(tmp_path)
    (tmp_path / ".store").write_text("name")
    assert nodes._name_of_store(tmp_path) == "name"
    assert [path.name for path in tmp_path.iterdir()] == [".store"]


def test_trials_go_where_no_node_is_left_out() -> None:
    assert nodes.resources(1, 0, []) == nodes.resources(1, 0, [])
    bundle = nodes.resources(0.5, 0.25, ["a", "b"])
    assert bundle.bundles == [{"CPU": 0.5, "GPU": 0.25}]
    assert bundle.to_placement_group.__self__._bound.kwargs["bundle_label_selector"] == [{"ray.io/node-id": "!in(a,b)"}]


# --- whole searches


@pytest.mark.slow
def test_a_cluster_asks_for_its_token_and_fractions_of_gpus_are_shared(tmp_path: Path) -> None:
    with RayNodes() as cluster:
        cluster.start("head", cpus=4, gpus=1)  # declared, not there: trials run on its processor
        words = tmp_path / "run", tmp_path / "store", f"address={cluster.address}", "seeds=1", "confirm=0"
        wrong = runs.search(*words, **cluster.variables | {"RAY_AUTH_TOKEN": "f" * 32})
        assert wrong.returncode == 2 and "the cluster's token isn't that of this process" in wrong.stderr
        too_much = runs.search(*words, "gpus=2", **cluster.variables)
        assert too_much.returncode == 2 and "gpus <= 1, what there is, must hold" in too_much.stderr
        done = runs.search(*words, "gpus=0.5", **cluster.variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "\n[4/4]" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_that_asks_for_no_token_is_refused_unless_insecure(tmp_path: Path) -> None:
    with RayNodes(token=None) as cluster:
        cluster.start("head", cpus=1)
        words = tmp_path / "run", tmp_path / "store", f"address={cluster.address}", "seeds=1"
        refused = runs.search(*words, **cluster.variables)
        assert refused.returncode == 2 and "this cluster asks for no token" in refused.stderr
        done = runs.search(*words, "insecure=true", **cluster.variables)
        assert done.returncode == 0, done.stdout + done.stderr
    gone = runs.search(tmp_path / "other", *words[1:], **cluster.variables)
    assert gone.returncode == 2 and "no Ray cluster answers there" in gone.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_of_another_kind_are_left_out_and_one_that_comes_later_is_used(tmp_path: Path) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    words = "epochs=60", "seeds=2", "confirm=0"
    with RayNodes() as cluster:
        cluster.start("head", cpus=0)
        cluster.start("first", cpus=1)
        running = runs.start(run, store, *words, f"address={cluster.address}", **cluster.variables)
        runs.wait_for_stages(store, 2, running)
        cluster.kill("first")
        # PyTorch takes other instructions there, and the bits of its results are others
        cluster.start("other kind", cpus=1, ATEN_CPU_CAPABILITY="default")
        assert running.stdout is not None
        said = ""
        while "is left out" not in said and running.poll() is None:  # the first trial that comes there says so
            said += running.stdout.readline()
        cluster.start("second", cpus=1)  # what is trained from here on, it trains
        told = said + running.communicate(timeout=240)[0]
        assert running.returncode == 0, told
    assert len(re.findall(r"node \S+ is left out \(device: .* DEFAULT there, .* wanted\)", told)) == 1, told
    alone = runs.search(tmp_path / "alone", tmp_path / "store2", *words)
    assert alone.returncode == 0
    assert runs.table(run).equals(runs.table(tmp_path / "alone"))
    # the same stages, by keys that the kind of device is part of
    assert set(runs.finished(store)) == set(runs.finished(tmp_path / "store2"))
