"""What an entry of the store is: weights, what the stage's methods learned for themselves, and a manifest.

An entry is a folder named by the SHA-256 of what its content is a function of. What is read may have been written by
others: it is bounded in size, and with a secret only what somebody who has it has signed is taken. Where files lie is
not told here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import msgspec
import safetensors

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"
METHODS = "methods.safetensors"
MANIFEST = "manifest.json"
MANIFEST_BYTES, WEIGHTS_BYTES = 16 * 2**20, 4 * 2**30  # larger files are not read
KEY = re.compile(r"[0-9a-f]{64}")
# What reading an entry raises that isn't as it was written; msgspec's errors are of ValueError.
DAMAGE = (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A finished stage as it stands in the store.

    weights: state of the network. digest: SHA-256 of the weights' file. facts: metrics and costs, as they were put.
    """

    key: str
    weights: Mapping[str, Tensor]
    digest: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An entry as `Store.entries` tells of it.

    used: when it was last written or read, in seconds since 1970. needed_by: folders of runs that have it in their
    results, directly or as the parent or the teacher of a stage that they have; user@machine: before those of other
    machines.
    """

    key: str
    network: str
    methods: str
    bytes: int
    used: float
    needed_by: tuple[str, ...]


class Manifest(TypedDict):
    """What a manifest's file holds.

    identity: what the key is the address of. weights, methods: SHA-256 of the two files. written: in seconds since
    1970. check: SHA-256 of the canonical form of all these. signature: their HMAC, where there is a secret.
    """

    key: str
    identity: dict[str, Any]
    weights: str
    methods: str
    facts: dict[str, Any]
    written: float
    check: str
    signature: NotRequired[Any]


# What a manifest's file says, unverified.
parse: Callable[[bytes], Any] = msgspec.json.Decoder(Manifest).decode


class Note(msgspec.Struct):
    """Which entries a run has in its results. owner: its folder or URL."""

    owner: str
    user: str
    machine: str
    keys: list[str]


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def address(identity: Mapping[str, Any]) -> str:
    """The key of a stage: SHA-256 of everything its result is a function of."""
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def folder(key: str) -> str:
    """Folder of an entry, relative to the store's root.

    Raises:
        ValueError: it is no key, and could name a file outside of the store.
    """
    if not KEY.fullmatch(key):
        raise ValueError(f"a key must be 64 hexadecimal digits, but is {key[:100]!r}")
    return f"entries/{key[:2]}/{key}"


def pack(
    key: str, identity: Mapping[str, Any], facts: Mapping[str, Any], files: Mapping[str, bytes], secret: bytes | None
) -> tuple[str, dict[str, bytes]]:
    """The digest of an entry's weights, and its files with the manifest, which is the last: where it is all are."""
    weights, methods = (hashlib.sha256(files[name]).hexdigest() for name in (WEIGHTS, METHODS))
    told = {"key": key, "identity": identity, "facts": facts, "written": time.time()}
    told |= {"weights": weights, "methods": methods}
    content = json.dumps(told | _seals(told, secret), indent=1, sort_keys=True, allow_nan=False)
    return weights, {**files, MANIFEST: content.encode()}


def verify(
    read: Callable[[str, int], bytes], key: str, secret: bytes | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An entry's manifest, without its seals, and files, the manifest last.

    Args:
        read: content of a file of the entry, by name and bytes that it may have.

    Raises:
        any of DAMAGE: it isn't as it was written, is another stage's, or isn't signed by this secret.
    """
    content, files = read(MANIFEST, MANIFEST_BYTES), {}
    told = parse(content)
    check, signature = told.pop("check"), told.pop("signature", None)
    seals = _seals(told, secret)
    if check != seals["check"]:
        raise ValueError(f"{key}: the manifest was changed after it was written")
    if secret is not None and not hmac.compare_digest(seals["signature"], str(signature)):
        raise ValueError(f"{key}: the manifest must be signed with store_key=, but isn't")
    if told["key"] != key or address(told["identity"]) != key:
        raise ValueError(f"{key}: the manifest is that of {told['key']}")
    for name, digest in ((METHODS, told["methods"]), (WEIGHTS, told["weights"])):
        files[name] = read(name, WEIGHTS_BYTES)
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise ValueError(f"{name} of {key} was changed after it was written")
        # its header; the digest holds, so what is wrong here was written so
        safetensors.deserialize(files[name])  # type: ignore[no-untyped-call]
    return told, files | {MANIFEST: content}


def _seals(told: Mapping[str, Any], secret: bytes | None) -> dict[str, str]:
    """Checksum of a manifest, and with a secret its signature."""
    content = canonical(told).encode()
    seals = {"check": hashlib.sha256(content).hexdigest()}
    if secret is not None:
        seals["signature"] = hmac.new(secret, content, "sha256").hexdigest()
    return seals
