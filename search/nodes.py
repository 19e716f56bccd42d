"""The nodes of a cluster: whether it asks for a token, and which of them run the trials of a search.

These are of one kind, since what a training costs and the bits of its result depend on the device and on versions; and
they see the store's folder. Where a search runs on this machine alone, there is nothing to ask.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import secrets
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.config import cpu

# A file in the store's folder that says which store it is: two machines may have a folder at the same path.
_NAME_OF_STORE = ".store"
_PACKAGES = ("torch", "torchvision", "ray")
_ANSWER_S, _ANSWER_TO_TOKEN_S = 180.0, 20.0
_ENFORCED, _NO_CLUSTER = 3, 4  # 0: it answered
# In a process of its own, since Ray's libraries keep the token that a process began with. ray.init would try for 20 s,
# and then say nothing of tokens.
_ASK_FOR_TOKEN = f"""
import sys
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=canonicalize_bootstrap_address_or_die(sys.argv[1])).check_alive([], 5)
except AuthenticationError:
    sys.exit({_ENFORCED})
except Exception:
    sys.exit({_NO_CLUSTER})
"""


def check_token(address: str, *, insecure: bool) -> None:
    """Refuse a cluster that lets anyone in, unless insecure, and one that doesn't let this process in.

    Raises:
        ValueError: it does; or there is none; or the token of this process isn't the cluster's.
    """
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    told = _ask_for_token(address, wrong)
    if told == 0 and not insecure:
        raise ValueError(
            f"address={address}: this cluster asks for no token, so whoever reaches it can run anything on its nodes; "
            "start all of its nodes with RAY_AUTH_MODE=token and one secret RAY_AUTH_TOKEN, or give insecure=true"
        )
    if told == _ENFORCED:
        if _ask_for_token(address, {"RAY_AUTH_MODE": "token"}) != 0:  # without a token it aborts
            raise ValueError(
                f"address={address}: the cluster's token isn't that of this process, or it has none: set "
                "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file that has it, as on the cluster's nodes"
            )
        os.environ["RAY_AUTH_MODE"] = "token"
        ray._raylet.Config.initialize("")  # type: ignore[attr-defined]  # it was read when ray was imported
    if told == _NO_CLUSTER:
        raise ValueError(f"address={address}: no Ray cluster answers there; start one, or leave address= out")


def _ask_for_token(address: str, variables: Mapping[str, str]) -> int:
    command = [sys.executable, "-c", _ASK_FOR_TOKEN, address]
    try:
        return subprocess.run(
            command, env=os.environ | variables, capture_output=True, timeout=_ANSWER_TO_TOKEN_S
        ).returncode
    except subprocess.TimeoutExpired:
        return _NO_CLUSTER


def describe(store: str | None, *, gpus: bool) -> dict[str, Any]:
    """What this node is to a search: the device of a trial, with or without GPUs, versions, the name of the store."""
    import torch

    cuda = gpus and torch.cuda.is_available()
    return {
        "device type": "cuda" if cuda else "cpu",
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "python": platform.python_version(),
        **_versions(),
        "store": store and _name_of_store(Path(store)),
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@functools.cache
def _processor() -> str:
    import torch

    return f"{cpu()} {torch.backends.cpu.get_cpu_capability()}"


def _name_of_store(store: Path) -> str:
    """What the file in the store's folder says; why it can't be used, where it can't."""
    try:
        name = (store / _NAME_OF_STORE).read_text(encoding="ascii")
        probe = store / f"{_NAME_OF_STORE}-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return name


def unlike(told: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """In what a node differs from the kind that is wanted; None if it doesn't."""
    for key, value in wanted.items():
        if told.get(key) != value:
            return f"{key}: {told.get(key)} there, {value} wanted"
    return None


def here(wanted: Mapping[str, Any]) -> str | None:
    """In what the node of this process differs from the kind that is wanted, on a worker; None if it doesn't."""
    seen = describe(wanted["sees"], gpus=wanted["gpus"])
    return unlike(seen, {key: value for key, value in wanted.items() if key not in ("sees", "gpus")})


def here_id() -> str:
    """Ray's id of the node of this process."""
    return str(ray.get_runtime_context().get_node_id())


class Nodes:
    """Which nodes run the trials of a search; on the driver.

    wanted: the kind of these nodes, for `here`; None where the search runs on this machine alone. left_out: ids of
    nodes that no trial runs on. A node that comes later is looked at by the first trial there, before it trains.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """say: prints a line on the terminal."""
        self._say = say
        self.wanted: dict[str, Any] | None = None
        self.left_out: set[str] = set()
        self._names: dict[str, str] = {}

    def survey(self, *, store: str, cpus: float, gpus: float, known: str | None) -> None:
        """Ask each node that has room for a trial; choose the kind with most room for them, leave out the others.

        store: folder or URL. known: of a run that goes on, the device it began with, which is chosen if it is there.

        Raises:
            ValueError: no node has room for a trial; or one has other versions, or doesn't see the store.
        """
        folder = None if "://" in store else str(Path(store).absolute())
        if folder is not None and not (name := Path(folder) / _NAME_OF_STORE).is_file():
            name.write_text(uuid.uuid4().hex, encoding="ascii")
        mine = {"python": platform.python_version(), **_versions(), "store": folder and _name_of_store(Path(folder))}
        room = {n["NodeID"]: _room(n, cpus, gpus) for n in ray.nodes() if n["Alive"]}  # type: ignore[no-untyped-call]
        found = self._ask([node for node, trials in room.items() if trials], folder, gpus > 0)
        for node, told in found.items():
            if (why := unlike(told, mine)) is not None:
                mend = (
                    f"mount the folder of store={store} at the same path on every node, or give a URL"
                    if why.startswith("store:")
                    else "give all nodes the same image"
                )
                raise ValueError(f"node {self.name(node)} can't run trials of this search ({why}): {mend}")
        if not found:
            raise ValueError(f"no node of the cluster has room for a trial of cpus={cpus:g}, gpus={gpus:g}")
        devices = Counter[str]()
        for node, told in found.items():
            devices[told["device"]] += room[node]
        chosen = next((d for d in sorted(devices) if known is not None and _same(d, known)), None)
        chosen = chosen or max(sorted(devices), key=devices.__getitem__)
        like = next(told for told in found.values() if told["device"] == chosen)
        self.wanted = {**like, "sees": folder, "gpus": gpus > 0}
        for node, told in found.items():
            if (why := unlike(told, like)) is not None:
                self.leave_out(node, why)

    @property
    def device_type(self) -> str:
        """What trials use there: `cuda`, or `cpu`, also where nodes declare GPUs that torch doesn't find."""
        assert self.wanted is not None, "a search on a cluster begins with a survey of it"
        return str(self.wanted["device type"])

    def leave_out(self, node: str, why: str) -> None:
        """Let no further trial run on a node, and say so once."""
        if node not in self.left_out:
            self.left_out.add(node)
            self._say(f"node {self.name(node)} is left out ({why}): a search runs on nodes of one kind")

    def lost(self) -> int:
        """How many nodes the cluster has lost so far."""
        if self.wanted is None:
            return 0
        return sum(not node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]

    def name(self, node: str) -> str:
        """What people call a node: its host and the beginning of Ray's id."""
        if node not in self._names:
            for one in ray.nodes():  # type: ignore[no-untyped-call]
                self._names[one["NodeID"]] = f"{one['NodeManagerHostname']}/{one['NodeID'][:8]}"
        return self._names.get(node, node[:8])

    def _ask(self, nodes: list[str], store: str | None, gpus: bool) -> dict[str, dict[str, Any]]:
        """What each node says of itself; those that don't answer are left out."""
        ask: Any = ray.remote(describe)  # type: ignore[arg-type]
        # they take no resource: nodes that are full with others' work answer too
        told = {
            node: ask.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(store, gpus=gpus)
            for node in nodes
        }
        ray.wait(list(told.values()), num_returns=len(told), timeout=_ANSWER_S)
        found = {}
        for node, answer in told.items():
            try:
                found[node] = ray.get(answer, timeout=0)
            except ray.exceptions.RayError as error:
                self.leave_out(node, f"no answer, {type(error).__name__}")
        return found


def resources(cpus: float, gpus: float, left_out: list[str]) -> PlacementGroupFactory:
    """What Tune asks Ray for, for one trial: cores and GPUs, on a node that isn't left out."""
    bundle = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    if not left_out:
        return PlacementGroupFactory([bundle])
    return PlacementGroupFactory([bundle], bundle_label_selector=[{"ray.io/node-id": f"!in({','.join(left_out)})"}])


def _room(node: Mapping[str, Any], cpus: float, gpus: float) -> int:
    """How many trials fit on a node at once."""
    there = node["Resources"]
    return int(min(there.get("CPU", 0) / cpus, there.get("GPU", 0) / gpus if gpus else float("inf")))


def _same(device: str, known: str) -> bool:
    """Whether a device is that of a bench's environment, which for processors is their architecture and capability."""
    machine, _, capability = known.partition(" ")
    return device == known or (machine == platform.machine() and device.endswith(f" {capability}"))
