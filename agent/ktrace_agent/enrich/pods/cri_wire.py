# SPDX-License-Identifier: Apache-2.0
"""Decodes answers of CRI item by item, so that an invalid item does not affect the others.

Field numbers: runtime/v1/api.proto of k8s.io/cri-api; v1alpha2 has the same. The wire format
(https://protobuf.dev/programming-guides/encoding) is decoded here, because the protobuf library
takes 6 MiB of memory during a capture and only seven fields are needed.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ktrace_api.names import UNKNOWN

MAX_ITEMS = 10_000
"""Maximum number of sandboxes, and of containers, read from one answer."""

_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod as the runtime reports it; `-` = not reported."""

    id: str
    pod_uid: str
    namespace: str
    pod: str


@dataclass(frozen=True, slots=True)
class Container:
    """A container; pod_uid, namespace and pod are from its own labels."""

    id: str
    sandbox_id: str
    name: str
    pod_uid: str = UNKNOWN
    namespace: str = UNKNOWN
    pod: str = UNKNOWN


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field in wire order. Raises ValueError if it is malformed."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 2:
                size, at = _varint(message, at)
            case 1:
                size = 8
            case 5:
                size = 4
            case kind:
                raise ValueError(f"wire type {kind} is not used by CRI")
        if at + size > end:
            raise ValueError("a field is longer than its message")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is truncated or too long")


def _text(value: int | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("a number instead of a text")  # noqa: TRY004
    return value.decode()


def texts(message: bytes, *numbers: int) -> list[str]:
    """Returns the texts of these fields; "" for a missing field."""
    found = {number: _text(value) for number, value in fields(message) if number in numbers}
    return [found.get(number, "") for number in numbers]


def items(
    message: bytes, read: Callable[[list[tuple[int, int | bytes]]], Item]
) -> tuple[list[Item], int, int]:
    """Returns the items of a list, and how many were invalid and how many beyond MAX_ITEMS."""
    found: list[Item] = []
    bad = number = 0
    for number, (_, item) in enumerate(fields(message), 1):
        if number > MAX_ITEMS:
            continue
        try:
            if isinstance(item, int):
                raise ValueError("a number instead of an item")  # noqa: TRY301, TRY004
            found.append(read(list(fields(item))))
        except ValueError:
            bad += 1
    return found, bad, max(0, number - MAX_ITEMS)


def _labels(parts: list[tuple[int, int | bytes]], number: int) -> dict[str, str]:
    """Decodes a `map<string, string>`, which is encoded as messages of key (1) and value (2)."""
    labels = {}
    for found, value in parts:
        if found == number and isinstance(value, bytes):
            key, text = texts(value, 1, 2)
            if key.startswith("io.kubernetes."):
                labels[key] = text
    return labels


def sandbox(parts: list[tuple[int, int | bytes]]) -> Sandbox:
    """Decodes PodSandbox: id 1, metadata 2 (name 1, uid 2, namespace 3), labels 5."""
    values = dict(parts)
    metadata = values.get(2, b"")
    name, uid, namespace = texts(metadata if isinstance(metadata, bytes) else b"", 1, 2, 3)
    labels = _labels(parts, 5)
    return Sandbox(
        id=_id(values.get(1, b"")),
        pod_uid=_same(uid, labels.get("io.kubernetes.pod.uid", "")),
        namespace=_same(namespace, labels.get("io.kubernetes.pod.namespace", "")),
        pod=_same(name, labels.get("io.kubernetes.pod.name", "")),
    )


def container(parts: list[tuple[int, int | bytes]]) -> Container:
    """Decodes Container: id 1, pod_sandbox_id 2, metadata 3 (name 1), labels 8."""
    values = dict(parts)
    metadata = values.get(3, b"")
    (name,) = texts(metadata if isinstance(metadata, bytes) else b"", 1)
    labels = _labels(parts, 8)
    return Container(
        id=_id(values.get(1, b"")),
        sandbox_id=_id(values.get(2, b"")),
        name=_same(name, labels.get("io.kubernetes.container.name", "")),
        pod_uid=_same(labels.get("io.kubernetes.pod.uid", "")),
        namespace=_same(labels.get("io.kubernetes.pod.namespace", "")),
        pod=_same(labels.get("io.kubernetes.pod.name", "")),
    )


def _id(value: int | bytes) -> str:
    text = _text(value)
    if not _ID.fullmatch(text):
        raise ValueError("not a container id")
    return text


def _same(*values: str) -> str:
    """Returns the name that all values agree on. Raises ValueError for an invalid name."""
    names = {value for value in values if value}
    if any(not _NAME.fullmatch(name) for name in names):
        raise ValueError("not a name")
    if len(names) > 1:
        raise ValueError("metadata and labels have different names")
    return names.pop() if names else UNKNOWN
