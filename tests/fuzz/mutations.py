"""How a file is damaged: bytes as disks and networks do it, JSON and YAML as people and other programs do it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**40, 1e308, -1e308, float("nan"), float("inf"), "", "0", "x" * 300,
    "../../etc/passwd", "/etc/passwd", "\x00", "<script>", "é\u202e", [], {}, [[]], [None], {"": None}, [1, 2], "NaN",
)  # fmt: skip
"""What may stand where something else belongs."""
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x7B)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """One to three damages of any bytes."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(made) + 1)
        length = chance.choice((1, 2, 4, 8, 64, 1000))
        match chance.randrange(7):
            case 0:
                del made[at:]
            case 1:
                del made[at : at + length]
            case 2:
                made[at:at] = chance.randbytes(length)
            case 3:
                made[at:at] = made[at : at + length]
            case 4:
                made[at : at + length] = bytes([chance.choice(_EDGES)]) * min(length, len(made) - at)
            case 5:
                number = chance.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
                made[at : at + 8] = number.to_bytes(8, "little")[: len(made[at : at + 8])]
            case _ if made:
                place = chance.randrange(len(made))
                made[place] ^= 1 << chance.randrange(8)
    return bytes(made)


def rewritten(value: Any, chance: random.Random) -> Any:
    """One to three entries of a JSON value replaced, renamed, doubled or left out."""
    made = json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 3)):
        places = list(_places(made))
        if not places:
            return chance.choice(STRANGE)
        holder, key = chance.choice(places)
        match chance.randrange(5):
            case 0 | 1:
                holder[key] = copy.deepcopy(chance.choice(STRANGE))
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            case 3:
                holder.append(holder[key])
            case _:
                other, from_there = chance.choice(places)
                held = (
                    other[from_there]
                    if (from_there in other if isinstance(other, dict) else from_there < len(other))
                    else 0
                )
                if key in holder if isinstance(holder, dict) else key < len(holder):
                    holder[key] = json.loads(json.dumps(held))
    return made


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry of every list and mapping: (its holder, its key)."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key
        yield from _places(inner)


def _safetensors(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header, ours within it too; the tensors stay."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    ours = header.get("__metadata__", {}).get("weightsmith")
    if ours is not None and chance.random() < 0.8:
        header["__metadata__"]["weightsmith"] = json.dumps(rewritten(json.loads(ours), chance))
    else:
        header = rewritten(header, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[end:]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Content of a file in its own form where it has one: half as a value, half as bytes."""
    if chance.random() < 0.5:
        return damaged(content, chance)
    if content[8:9] == b"{":
        return _safetensors(content, chance)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return damaged(content, chance)
    lines = text.splitlines()
    try:
        return json.dumps(rewritten(json.loads(text), chance)).encode()
    except ValueError:
        pass
    try:  # a line a value: journals
        values = [json.loads(line) for line in lines]
        at = chance.randrange(len(values))
        values[at] = rewritten(values[at], chance)
        return "".join(json.dumps(value) + "\n" for value in values).encode()
    except ValueError:
        pass
    try:
        value = yaml.safe_load(text)
        if isinstance(value, dict):
            return yaml.safe_dump(rewritten(value, chance), allow_unicode=True).encode()
    except (yaml.YAMLError, ValueError):
        pass
    return damaged(content, chance)
