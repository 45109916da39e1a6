"""Facts to edit, from files: CounterFact in both of its layouts, zsRE, and the flat layout that is written here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.data.records import read_records
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import write_json
from weightsmith.request import Probe, TextRequest

logger = logging.getLogger(__name__)

FORMS = (
    'a JSON list of CounterFact records ("requested_rewrite", or "prompt", "subject" and "target_new"), '
    'of zsRE records ("src", "subject", "alt", "answers"), or of records with "prompt", "subject" and "target"'
)
"""The layouts that are read."""


def read_facts(
    path: str | Path, limit: int | None = None, seed: int | None = None, *, skip_unusable: bool = False
) -> list[TextRequest]:
    """The facts of a JSON file as requests.

    | here | CounterFact, original | CounterFact, EasyEdit | zsRE (MEND) |
    |---|---|---|---|
    | prompt | requested_rewrite.prompt, `{}` filled | prompt | src |
    | target | requested_rewrite.target_new.str | target_new | alt |
    | truth | requested_rewrite.target_true.str | ground_truth | the first of answers |
    | paraphrases | paraphrase_prompts | rephrase_prompt | rephrase |
    | neighbours | neighborhood_prompts, answered by target_true | locality_prompt, locality_ground_truth | loc, loc_ans |

    zsRE's target is `alt`, another answer than the true one, as EasyEdit takes it; the published code of ROME and MEMIT
    teaches the true answer instead. Its neighbours keep the published wording, "nq question: " and no question mark.
    Records of `write_facts` come back as they were. Other entries of a record (split, generation prompts) are left.

    A fact whose target is empty, or whose subject is not in its prompt word for word, cannot be edited: where there is
    one among those asked for, nothing is returned unless `skip_unusable`. Measured: none of CounterFact's 21,919; 2 of
    a thousand of zsRE's, whose `alt` is empty (EasyEdit leaves these out without a word); no subject was missing.

    Args:
        limit: at most so many facts; None for all.
        seed: of a random order; fewer facts of the same seed are the first of more. None keeps the file's order.
        skip_unusable: leave out what cannot be edited, take the next ones for it, and log how many were left out.

    Raises:
        WeightsmithError: no such file, no JSON list, a record of no known layout, one that lacks an entry, one that
            cannot be edited, a set for tracing (known-1000), which has no new answers; a limit below 1.
    """
    if limit is not None and limit < 1:
        raise WeightsmithError(f"the limit of facts is {limit}: ask for at least 1")
    records = read_records(path, str(path), "facts", FORMS)
    names, n = records.names(), len(records.rows)
    # The stream of this old generator is promised never to change, whatever the version of numpy.
    order = range(n) if seed is None else np.random.RandomState(seed).permutation(n).tolist()
    wanted = n if limit is None else min(limit, n)
    requests: list[TextRequest] = []
    unusable: list[_UnusableError] = []
    for number in order:
        if len(requests) + (0 if skip_unusable else len(unusable)) == wanted:
            break
        try:
            requests.append(_request(records.rows[number], records.where(number), names[number], records.fingerprint))
        except _UnusableError as error:
            unusable.append(error)
    if unusable and not skip_unusable:
        raise WeightsmithError(
            f"{len(unusable)} of {wanted} facts of {path} cannot be edited, the first because {unusable[0]}: "
            "correct or remove them (`skip_unusable=True` leaves them out)"
        )
    if unusable:
        logger.warning(
            "left out %d of %s, which cannot be edited: the first because %s", len(unusable), path, unusable[0]
        )
    if not requests:
        raise WeightsmithError(
            f"none of the {n} facts of {path} can be edited, the first because {unusable[0]}: correct them"
        )
    return requests


def write_facts(path: str | Path, requests: Sequence[TextRequest]) -> None:
    """Write requests as a JSON list, atomically, so that `read_facts` gives back the same.

    Raises:
        WeightsmithError: no requests, or two of one name.
    """
    if not requests:
        raise WeightsmithError(f"there are no facts to write to {path}: give at least one request")
    names: set[str] = set()
    for request in requests:
        if request.name in names:
            raise WeightsmithError(f"two facts for {path} are named {request.name!r}: give each a name of its own")
        names.add(request.name)
    write_json(path, [asdict(request) for request in requests])


class _UnusableError(WeightsmithError):
    """A record that is whole but cannot be edited; its text stands inside a sentence."""


@dataclass(frozen=True)
class _Record:
    """A record's entries, asked for one by one."""

    entries: dict[str, Any]
    where: str

    def text(self, key: str) -> str:
        """A text that must be there, bare or as {"str": ...}; "" is one."""
        value = self.entries.get(key)
        value = value.get("str") if isinstance(value, dict) else value
        if not isinstance(value, str):
            raise WeightsmithError(f'{self.where} has no "{key}" as text: correct it, or give {FORMS}')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or a single one; nothing where it is not there."""
        value = self.entries.get(key, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            raise WeightsmithError(f'"{key}" of {self.where} is no text and no list of texts: correct it')
        return tuple(values)

    def first(self, key: str) -> str:
        """The first of `texts`, "" where there is none."""
        return next(iter(self.texts(key)), "")


def _request(row: Any, where: str, name: str, source: str) -> TextRequest:
    if not isinstance(row, dict):
        raise WeightsmithError(f"{where} is no record of a fact: give {FORMS}")
    parts = _layout(row, where)(_Record(row, where))
    prompt, subject = parts["prompt"], parts["subject"]
    if not parts["target"].strip():
        raise _UnusableError(f"the target of {where} is empty")
    if not subject or subject not in prompt:
        raise _UnusableError(f"the subject {subject!r} of {where} is not in its prompt {prompt!r}")
    complete: _Parts = {"name": name, "source": source} | parts
    return TextRequest(**complete)


_Parts = dict[str, Any]
"""Entries of a `TextRequest`; prompt, subject and target are texts."""


def _layout(row: dict[str, Any], where: str) -> Callable[[_Record], _Parts]:
    """What reads this record. Raises `WeightsmithError` for a record of no known layout."""
    for sign, reader in (("requested_rewrite", _original), ("target_new", _easyedit), ("alt", _zsre), ("target", _own)):
        if sign in row:
            return reader
    if "prompt" in row and "subject" in row:
        raise WeightsmithError(
            f'{where} has a prompt but no new answer, as sets for tracing (known-1000) have none: add "target" to its '
            "records to edit them, or trace them with `weightsmith locate`"
        )
    raise WeightsmithError(f"{where} is of no known layout: give {FORMS}")


def _original(record: _Record) -> _Parts:
    rewrite = record.entries["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise WeightsmithError(f'{record.where} has no "requested_rewrite" as a record: correct it, or give {FORMS}')
    asked = _Record(rewrite, record.where)
    subject = asked.text("subject")
    neighbours = record.texts("neighborhood_prompts")
    truth = asked.text("target_true").strip() if neighbours or "target_true" in rewrite else ""
    return {
        "prompt": asked.text("prompt").replace("{}", subject),
        "subject": subject,
        "target": asked.text("target_new").strip(),
        "truth": truth,
        "paraphrases": record.texts("paraphrase_prompts"),
        "neighbours": tuple(Probe(prompt, truth) for prompt in neighbours),
    }


def _easyedit(record: _Record) -> _Parts:
    return {
        "prompt": record.text("prompt"),
        "subject": record.text("subject"),
        "target": record.text("target_new").strip(),
        "truth": record.first("ground_truth").strip(),
        "paraphrases": record.texts("rephrase_prompt"),
        "neighbours": _probes(record, "locality_prompt", "locality_ground_truth"),
    }


def _zsre(record: _Record) -> _Parts:
    return {
        "prompt": record.text("src"),
        "subject": record.text("subject"),
        "target": record.text("alt").strip(),
        "truth": record.first("answers").strip(),
        "paraphrases": record.texts("rephrase"),
        "neighbours": _probes(record, "loc", "loc_ans"),
    }


def _own(record: _Record) -> _Parts:
    known = [field.name for field in fields(TextRequest)]
    unknown = [key for key in record.entries if key not in known]
    if unknown:
        raise WeightsmithError(f'{record.where} has an entry "{unknown[0]}": {did_you_mean(unknown[0], known)}')
    parts: _Parts = {key: record.text(key) for key in ("prompt", "subject", "target")}
    parts |= {key: record.text(key) for key in ("truth", "source") if key in record.entries}
    if parts["subject"] not in parts["prompt"]:  # written by hand, with {} as in CounterFact
        parts["prompt"] = parts["prompt"].replace("{}", parts["subject"])
    probes = record.entries.get("neighbours", [])
    if not isinstance(probes, list) or not all(isinstance(probe, dict) for probe in probes):
        raise WeightsmithError(
            f'"neighbours" of {record.where} is no list of records with "prompt" and "answer": correct it'
        )
    asked = [_Record(probe, f'"neighbours" of {record.where}') for probe in probes]
    neighbours = tuple(Probe(probe.text("prompt"), probe.text("answer")) for probe in asked)
    return parts | {"paraphrases": record.texts("paraphrases"), "neighbours": neighbours}


def _probes(record: _Record, prompts: str, answers: str) -> tuple[Probe, ...]:
    asked, said = record.texts(prompts), record.texts(answers)
    if len(asked) != len(said):
        raise WeightsmithError(f'"{prompts}" and "{answers}" of {record.where} differ in number: correct them')
    return tuple(Probe(prompt, answer.strip()) for prompt, answer in zip(asked, said, strict=True))
