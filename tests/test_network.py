"""A search connects to this machine alone: every connection of all its processes, as the system sees them."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import runs

_STRACE = shutil.which("strace")
# -yy names what a descriptor is; connections, and datagrams with an address of their own
_CALL = re.compile(r"\b(connect|sendto|sendmsg|sendmmsg)\(\d+<")
_PEER = re.compile(r"<UDP(?:v6)?:\[[^\]]*?->\[?([0-9a-f.:]+?)\]?:\d+\]")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


def own_addresses() -> set[str]:
    """Those of this machine: what is sent there doesn't leave it."""
    told = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True)
    return {*told.stdout.split(), "0.0.0.0", "::"}


def connected(trace: str) -> dict[str, list[str]]:
    """Addresses of the internet that were connected or sent to: address -> the calls."""
    found: dict[str, list[str]] = {}
    for line in trace.splitlines():
        if _CALL.search(line):
            peers = [four or six for four, six in _ADDRESS.findall(line)] + _PEER.findall(line)
            for address in peers:
                found.setdefault(address, []).append(line)
    return found


def outside(trace: str) -> dict[str, list[str]]:
    """Those that aren't this machine's, nor its cloud's metadata (link-local), which Ray's libraries look for, with the
    name server for its name. A datagram socket that is connected, and nothing sent through it, is how
    programs ask the system which address leads outside: no byte leaves, so it isn't among them.
    """
    servers = re.findall(r"^nameserver\s+(\S+)", Path("/etc/resolv.conf").read_text(), flags=re.MULTILINE)
    own, found = own_addresses() | set(servers), {}
    for address, calls in connected(trace).items():
        told = [call for call in calls if not re.search(r"connect\(\d+<UDP", call)]
        plain = ipaddress.ip_address(address.removeprefix("::ffff:"))
        if told and not (plain.is_loopback or plain.is_link_local or str(plain) in own):
            found[address] = told
    return found


def traced(command: list[str], trace: Path, **environment: str) -> str:
    """What a command and all processes that it starts connect to."""
    assert _STRACE is not None
    watched = [_STRACE, "--seccomp-bpf", "-f", "-qq", "-yy", "-s", "0", "-e", "signal=none"]
    watched += ["-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    done = subprocess.run(
        [*watched, *command], cwd=runs.ROOT, env=runs.environment(**environment), capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return trace.read_text()


@pytest.mark.skipif(_STRACE is None, reason="strace isn't here")
def test_connections_are_seen(tmp_path: Path) -> None:
    code = """
import socket
for family, address in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.connect_ex((address, 9))
"""
    trace = traced([sys.executable, "-c", code], tmp_path / "trace")
    assert set(connected(trace)) == {"198.51.100.1", "127.0.0.1", "::1"}
    assert outside(trace) == {}, "nothing was sent there"
    peer = "198.51.100.1"
    assert peer in outside(trace + f'7 sendto(3<UDP:[10.0.0.2:4->{peer}:9]>, ""..., 1, 0, NULL, 0) = 1\n')
    assert peer in outside(f'7 connect(3<TCP:[5]>, {{sa_family=AF_INET, sin_addr=inet_addr("{peer}")}}, 16) = 0\n')


@pytest.mark.slow
@pytest.mark.skipif(_STRACE is None, reason="strace isn't here")
def test_a_search_connects_to_this_machine_alone(tmp_path: Path) -> None:
    words = ["methods=[kd]", "seeds=1"]
    trace = traced(runs.command(tmp_path / "run", tmp_path / "store", *words), tmp_path / "trace")
    assert connected(trace), "Ray's own connections must be seen, or nothing was watched"
    assert outside(trace) == {}
    assert (tmp_path / "run" / "report.html").is_file()
