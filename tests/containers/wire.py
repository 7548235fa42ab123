# SPDX-License-Identifier: Apache-2.0
"""Protobuf messages from fields, for requests to a runtime and answers in its place."""

Value = int | str | bytes


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(*fields: tuple[int, Value]) -> bytes:
    """Each field as it stands: numbers as varints, texts and messages with their length."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return bytes(out)


def labels(number: int, texts: dict[str, str]) -> list[tuple[int, Value]]:
    """`map<string, string>` as its field's messages."""
    return [(number, message((1, key), (2, text))) for key, text in texts.items()]
