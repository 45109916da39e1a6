"""What the parser says of bad words, in one sentence that names the flag and what it takes."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from weightsmith.errors import did_you_mean

_TAKES = (
    ("[INT", "whole numbers"),
    ("[FLOAT", "numbers"),
    ("INT", "a whole number"),
    ("FLOAT", "a number"),
)
"""What stands for a value in help → what it is in words."""

_TELLING = ("--json", "--dry-run", "--help")
"""Flags beside the options of a command."""


class UsageError(Exception):
    """Words that make no call; its text is one sentence for the user."""


def usage_error(said: str, name: str, kind: type[Any]) -> UsageError:
    """The parser's box as one sentence.

    Args:
        said: what the parser wrote; name: of the command; kind: the dataclass of its options.
    """
    # The box is drawn with other signs where the terminal knows no others.
    lines = [re.sub(r"[-─]{5,}|^[|+│╭╰]|[|+│╮╯]$", "", line).strip() for line in said.splitlines()]
    lines = [line for line in lines if line][1:]  # the first is the title of the box
    text, more = " ".join(lines), f"`weightsmith {name} --help` lists them"
    unknown = re.search(r"Unrecognized options: (.+?)(?: Perhaps you meant: | For full helptext|$)", text)
    if unknown:
        return UsageError(_unknown(unknown[1], name, kind, more))
    choice = re.search(r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*?),?\)\.", text)
    if choice:
        known = [one for one in re.findall(r"'(.*?)'", choice[3]) if one != "None"]
        where = choice[2].removeprefix("options.")  # a word without a flag, such as the form of `export`
        return UsageError(f"{where} {choice[1]} is unknown: {did_you_mean(choice[1], known)}")
    missing = re.search(r"Missing value for argument '(.*?)'", text)
    if missing:
        return UsageError(f"{missing[1]} has no value behind it: give one, or leave it out")
    required = re.search(r"Missing from .*?: (?:STR|INT|FLOAT|--[a-z-]+ \S+) (.*?) \(required\)", text)
    if required:
        return UsageError(
            f"weightsmith {name} needs one word more: {required[1][0].lower()}{required[1][1:].rstrip('.')}"
        )
    value = re.search(r"Error parsing (\S+): (.*?) Argument helptext: (.*)", text)
    if value:
        given = re.search(r"\[('.*?')\]|: ('[^']*')", value[2])
        takes = next((words for sign, words in _TAKES if sign in value[3].split(". ")[0]), "something else")
        words = "" if given is None else f", not {(given[1] or given[2]).replace(', ', ' ')}"
        return UsageError(f"{value[1]} takes {takes}{words}: `weightsmith {name} --help` says which")
    return UsageError(text.partition(" For full helptext")[0] + f": {more}")


def _unknown(words: str, name: str, kind: type[Any], more: str) -> str:
    """Of flags that are none; of several the first, for what follows it may be its value."""
    given = words.split(", ")
    first = next((word for word in given if word.startswith("-")), None)
    if first is None:
        return f"weightsmith {name} takes no word {given[0]!r}: a flag begins with --, {more}"
    typed = first.partition("=")[0].replace("_", "-")
    known = [*_TELLING, *sorted(flag for one in fields(kind) for flag in _spelled(one.name))]
    meant = did_you_mean(typed, known).partition("? known")
    if not meant[1]:
        return f"weightsmith {name} has no flag {first}: {more}"
    return f"weightsmith {name} has no flag {first}: {meant[0]}? {more}"


def _spelled(name: str) -> tuple[str, str]:
    """An option as a flag, and as the flag that switches it off."""
    flag = name.rstrip("_").replace("_", "-")
    return f"--{flag}", f"--no-{flag}"
