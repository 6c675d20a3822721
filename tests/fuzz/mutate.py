"""Something wrong in a file: in its bytes, in a value of its JSON, in a field of its protobuf message."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

STRANGE_NUMBERS = (0, -1, 1, 2, 7, 63, 255, 1 << 31, (1 << 31) - 1, 1 << 40, -(1 << 63), 0.5, -0.0, 1e-30, 1e30, 1e308)
STRANGE_TEXTS = (
    "",
    "a",
    "../a",
    "/etc/passwd",
    ".",
    "\0",
    "\ud800",
    "x" * 70000,
    "{{ 1 }}",
    "model.onnx",
    "null",
    "é\n",
)
STRANGE_VALUES: tuple[Any, ...] = (
    *STRANGE_NUMBERS,
    *STRANGE_TEXTS,
    None,
    True,
    False,
    math.nan,
    math.inf,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    [1] * 100,
)
DEPTH = 3000  # of what is nested: more than a parser's recursion allows


def in_bytes(random: Random, content: bytes) -> bytes:
    """Content with some bytes replaced, cut out, doubled, or cut off."""
    changed = bytearray(content)
    match random.randrange(7):
        case 0:
            return bytes(changed[: random.randrange(len(changed) + 1)])
        case 1:
            return b""
        case 2:
            return bytes(changed) + random.randbytes(random.randrange(1, 100))
        case 3 if changed:
            start = random.randrange(len(changed))
            del changed[start : start + random.randrange(1, 64)]
        case 4 if changed:
            start = random.randrange(len(changed))
            changed[start:start] = changed[start : start + random.randrange(1, 64)]
        case _ if changed:
            for _ in range(random.choice((1, 1, 2, 8, 64))):
                changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def in_json(random: Random, content: bytes, names: tuple[str, ...] = ()) -> bytes:
    """A JSON file with a value replaced or taken out, or an entry more; `names` are those that entries may have."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # damaged before
        return content
    places = list(_places(value))
    if not places:
        return content
    holder, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice((*names, key))] = random.choice(STRANGE_VALUES)
        case 2:
            other_holder, other = random.choice(places)
            holder[key] = other_holder[other]
            if _is_endless(value):
                return b"["
        case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = random.choice(
                (holder[key] + 1, holder[key] - 1, -holder[key], 2 * holder[key], str(holder[key]))
            )
        case 4 if random.randrange(20) == 0:
            return b"[" * DEPTH if random.randrange(2) else b'{"a":' * DEPTH
        case _:
            holder[key] = random.choice(STRANGE_VALUES)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    """All entries of what is nested, as holder and key."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(one)


def _is_endless(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False


def in_message(random: Random, message: Any) -> None:
    """Change one field of a protobuf message, or of one in it."""
    places = list(_fields(message))
    if not places:
        return
    holder, name = random.choice(places)
    old = getattr(holder, name)
    if isinstance(old, int):
        value = random.choice((old + 1, old - 1, 0, -1, 1 << 31, 1 << 40, -(1 << 63), (1 << 63) - 1))
        setattr(holder, name, max(-(1 << 63), min(value, (1 << 63) - 1)))
    elif isinstance(old, bytes):
        setattr(holder, name, in_bytes(random, old))
    elif isinstance(old, str):
        texts = [text for text in STRANGE_TEXTS if text.isprintable()]
        texts += [getattr(*place) for place in places if isinstance(getattr(*place), str)]
        setattr(holder, name, random.choice(texts))
    elif hasattr(old, "ListFields") or random.randrange(10) == 0:
        holder.ClearField(name)
    else:
        _in_repeated(random, old)


def _in_repeated(random: Random, values: Any) -> None:
    index = random.randrange(len(values))
    match random.randrange(3):
        case 0:
            del values[index]
        case 1:
            values.append(values[index])
        case _ if isinstance(values[index], int):
            values[index] = random.choice((0, -1, values[index] + 1, values[index] - 1, 1 << 31, (1 << 63) - 1))
        case _ if isinstance(values[index], str):
            values[index] = random.choice(values)
        case _:
            in_message(random, values[index])


def _fields(message: Any) -> Any:
    """All fields that are set, of a message and of those in it: the message, and the field's name."""
    for field, value in message.ListFields():
        yield message, field.name
        if field.message_type is not None:
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from _fields(one)


def in_file(random: Random, path: Path) -> None:
    """A file with other bytes, no file, or something else in its place."""
    if not path.is_file():  # damaged before
        return
    match random.randrange(12):
        case 0:
            path.unlink()
        case 1:
            path.unlink()
            path.mkdir()
        case 2:
            others = [one for one in path.parent.iterdir() if one.is_file()]
            path.write_bytes(random.choice(others).read_bytes())
        case _:
            path.write_bytes(in_bytes(random, path.read_bytes()))
