"""Prompts with a subject, from files: the tracing facts known-1000, CounterFact, and lists of token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.data.records import read_records
from weightsmith.errors import WeightsmithError

FORMS = (
    'a JSON list of records with "prompt" and "subject" (known-1000, CounterFact), or of records with "ids": [...] and '
    '"subject": [first, end]'
)


@dataclass(frozen=True)
class SubjectPrompt:
    """A text, or its tokens, and where its subject is.

    Attributes:
        name: identifies it in its file.
        text: the prompt; "" where token ids are given.
        subject: the subject's words; "" where its tokens are given.
        ids: token ids, empty where there is a text.
        span: (first, end) the subject's tokens among `ids`.
        target: id of the token whose recovery is wanted, with `ids`; None for the one that the model gives.
    """

    name: str
    text: str = ""
    subject: str = ""
    ids: tuple[int, ...] = ()
    span: tuple[int, int] = (0, 0)
    target: int | None = None


def read_prompts(path: str | Path, limit: int | None = None) -> list[SubjectPrompt]:
    """The prompts of a JSON file, the first `limit` of them.

    CounterFact's original layout (`requested_rewrite`) is read as well as the flat ones; `{}` in a prompt is its subject.

    Raises:
        WeightsmithError: no such file, no JSON list, a record without a prompt or with a subject that is not in it.
    """
    records = read_records(path, f"--data-path {path}", "prompts", FORMS)
    names = records.names()
    return [_prompt(row, names[number], records.where(number)) for number, row in enumerate(records.rows[:limit])]


def _prompt(record: Any, name: str, where: str) -> SubjectPrompt:
    if not isinstance(record, dict):
        raise WeightsmithError(f"{where} is no record with a prompt: give {FORMS}")
    rewrite = record.get("requested_rewrite")
    record = record | rewrite if isinstance(rewrite, dict) else record
    if "ids" in record:
        ids, span, target = record["ids"], record.get("subject"), record.get("target")
        if not (_whole(ids) and ids and _whole(span) and len(span) == 2 and _whole([0 if target is None else target])):
            raise WeightsmithError(
                f'{where} needs "ids" and "subject": [first, end], and where there is one "target", as whole numbers from 0'
            )
        return SubjectPrompt(name, ids=tuple(ids), span=(span[0], span[1]), target=target)
    text, subject = record.get("prompt"), record.get("subject")
    if not isinstance(text, str) or not isinstance(subject, str) or not subject:
        raise WeightsmithError(f'{where} has no "prompt" and "subject" as text: give {FORMS}')
    text = text.replace("{}", subject)
    if subject not in text:
        raise WeightsmithError(f"the subject {subject!r} of {where} is not in its prompt {text!r}: correct the record")
    return SubjectPrompt(name, text, subject)


def _whole(values: Any) -> bool:
    """Whether these are a list of whole numbers from 0."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
