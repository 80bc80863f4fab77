"""Spoil bytes the way an attacker would: anyhow, or so that JSON, tensor headers and messages stay readable."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from memgrid.digest import canonical_json

Mutator = Callable[[random.Random, bytes], bytes]
CONTENT_BYTES_MAX = 1 << 16
"""Longer input finds nothing that shorter does not, only later."""
_NUMBERS = (0, 1, -1, 2, 16, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**60, 2**63 - 1, 2**63, 2**64, 10**400)
_FRACTIONS = (0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
_TEXTS = (
    *(
        "",
        "\0",
        "\ud800",
        "é",
        "a" * 300,
        "../../etc/passwd",
        "/",
        "%2e%2e",
        "NaN",
        "-1",
        "1e999",
        "９",
        "\n",
        "\x1b[2J",
    ),
    *("sha256:" + "0" * 64, "__metadata__", "F32", "BF16", "I64", "BOOL", "bfloat16"),
)
_BITS = (b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\1\0\0\0", b"\xff\xff\x7f\x7f", b"\xff\xff\xff\xff")
"""Infinity, NaN, minus infinity, the least denormal, the largest number and -1, as four bytes."""


def spoil_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, insert, cut out, double, cut off or overwrite a few bytes."""
    at = rng.randrange(len(content) + 1)
    upto = min(len(content), at + rng.choice((1, 2, 4, 8, 64, 1024)))
    match rng.randrange(7):
        case 0 if content:
            place = rng.randrange(len(content))
            return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        case 1:
            return content[:at] + rng.randbytes(rng.choice((1, 2, 8, 64))) + content[at:]
        case 2:
            return content[:at] + content[upto:]
        case 3:
            return content[:upto] + content[at:]
        case 4:
            return content[:at]
        case 5:
            return content[:at] + rng.choice(_BITS) + content[at + 4 :]
        case _:
            return content[:at] + struct.pack("<Q", rng.choice(_NUMBERS) % 2**64) + content[at + 8 :]


def spoil_text(rng: random.Random, content: bytes) -> bytes:
    """Put a piece into a text that means something to somebody."""
    at = rng.randrange(len(content) + 1)
    upto = min(len(content), at + rng.randrange(4))
    piece = rng.choice((*_TEXTS, *"[]{}:,\"'&*!|>-%@#?=", "[" * 1200, "9" * 5000, "&a [*a, *a]", "bytes=0-"))
    return content[:at] + piece.encode(errors="surrogatepass") + content[upto:]


def spoil_json(rng: random.Random, content: bytes) -> bytes:
    """Change one value, key or list inside a JSON document; canonical where it can be, for some insist on it."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return spoil_text(rng, content)
    value = _spoiled(rng, value)
    try:
        return canonical_json(value)
    except (ValueError, RecursionError):
        return json.dumps(value).encode()


def spoil_tensors(rng: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, its length staying true, or some numbers behind it."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length or rng.random() < 0.3:
        start = min(len(content), 8 + length)
        return content[:start] + spoil_bytes(rng, content[start:])
    header = spoil_json(rng, content[8 : 8 + length])
    if rng.random() < 0.2:  # an empty tensor may have any size in its other dimensions
        header = header.replace(b'"shape":[', b'"shape":[0,%d,' % rng.choice(_NUMBERS), 1)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def spoil_message(kind: type[Message]) -> Mutator:
    """Change a field of a protobuf message of that kind."""

    def spoil(rng: random.Random, content: bytes) -> bytes:
        message = kind()
        try:
            message.ParseFromString(content)
        except DecodeError:
            return spoil_bytes(rng, content)
        _spoil_fields(rng, message)
        spoilt: bytes = message.SerializeToString()
        return spoilt

    return spoil


def _spoil_fields(rng: random.Random, message: Message) -> None:
    field = rng.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return
    if field.is_repeated:
        if value and rng.random() < 0.5:
            _spoil_one(rng, field, value)
        elif field.message_type is not None:
            value.extend([value[0] if value else field.message_type._concrete_class()] * rng.choice((1, 2, 300)))
        else:
            value.extend([_scalar(rng, field)] * rng.choice((1, 2, 300)))
    elif field.message_type is not None:
        if message.HasField(field.name) and rng.random() < 0.2:
            message.ClearField(field.name)
        else:
            value.SetInParent()
            _spoil_fields(rng, value)
    else:
        setattr(message, field.name, _scalar(rng, field))


def _spoil_one(rng: random.Random, field: FieldDescriptor, values: Any) -> None:
    place = rng.randrange(len(values))
    if rng.random() < 0.1:
        del values[place]
    elif field.message_type is not None:
        _spoil_fields(rng, values[place])
    else:
        values[place] = _scalar(rng, field)


def _scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return rng.randbytes(rng.choice((0, 1, 31, 32, 64, 1000)))
            return rng.choice(_TEXTS).replace("\ud800", "") * rng.choice((1, 1, 1, 5))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(_FRACTIONS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice((0, 1, 2, 2**31 - 1))
        case _:
            number = rng.choice(_NUMBERS) % 2**64
            return number if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 else number - 2**63


def _spoiled(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        match rng.randrange(12):
            case 0:
                return {name: kept for name, kept in value.items() if name != key}
            case 1:
                return {**value, rng.choice(_TEXTS): value[key]}
            case 2:
                return {rng.choice(_TEXTS) if name == key else name: kept for name, kept in value.items()}
            case 3:
                return {**value, key: value[rng.choice(sorted(value))]}
            case _:
                return {**value, key: _spoiled(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value[:place] + value[place : place + 1] * rng.choice((2, 3, 300)) + value[place + 1 :]
            case _:
                return [*value[:place], _spoiled(rng, value[place]), *value[place + 1 :]]
    return _odd(rng, value)


def _odd(rng: random.Random, value: Any) -> Any:
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(_TEXTS) + value[at + rng.randrange(2) :]
    if isinstance(value, int | float) and rng.random() < 0.3:
        return value + rng.choice((-1, 1))
    nested: Any = 0
    for _ in range(rng.choice((1, 2, 200))):
        nested = [nested]
    odd: tuple[Any, ...] = (None, True, False, [], {}, nested, {"": 0}, [value], *_NUMBERS, *_FRACTIONS, *_TEXTS)
    return rng.choice(odd)
