"""Words that fit into search attributes: a run that tries to write more than the server takes is stuck."""

import json
from collections.abc import Sequence

ATTRIBUTE_BYTES = 1_800
"""A search attribute's most, in bytes; the server refuses 2,048."""

NAMES = 20
"""So many names go into one that lists names."""

NAME_CHARACTERS, NAME_BYTES = 100, 250


def fit(text: str, limit_bytes: int = ATTRIBUTE_BYTES) -> str:
    """Its beginning: at most 255 characters, and so many bytes as JSON that escapes all but ASCII."""
    text = text[:255]
    while len(json.dumps(text)) > limit_bytes:
        text = text[:-10]
    return text


def fitting(names: Sequence[str]) -> list[str]:
    """The first names, as many as fit into one search attribute."""
    room, found = ATTRIBUTE_BYTES, []
    for name in names[:NAMES]:
        short = fit(name[:NAME_CHARACTERS], NAME_BYTES)
        room -= len(json.dumps(short)) + 2
        if room < 0:
            break
        found.append(short)
    return found
