"""The requests of a comparison, fixed in a file: drawn once a seed for every method, each batch a part of the next."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.data.facts import read_facts, write_facts
from weightsmith.errors import WeightsmithError, perhaps
from weightsmith.files import DAMAGED, cause_of, user_path, write_json
from weightsmith.request import Request, TextRequest

_log = logging.getLogger(__name__)

FORMAT = "weightsmith-comparison-1"
PLAN, REQUESTS = "comparison.json", "requests.json"

Draws = Mapping[int, Sequence[Request]]
"""Seed → requests; a batch of b edits is the first b of them."""


@dataclass(frozen=True)
class Plan:
    """What fixes a comparison, so that anybody measures the same again.

    Attributes:
        reads: "text" or "images".
        model: as it was named; fingerprint: of its weights, config and preprocessing.
        data: the data set, as it was named; preserve, held_out: digests of what is preserved and of what is sealed.
        methods: name → hyper-parameters.
        batch_sizes, seeds: the sweep.
        draws: seed → (name, content hash) of each request.
        notes: what a reader must know.
    """

    reads: str
    model: str
    fingerprint: str
    data: str
    preserve: str
    held_out: str
    methods: dict[str, dict[str, Any]]
    batch_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    draws: dict[int, tuple[tuple[str, str], ...]]
    notes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write the plan, atomically."""
        entries = asdict(self) | {
            "draws": {
                str(seed): [{"name": name, "sha256": content} for name, content in drawn]
                for seed, drawn in self.draws.items()
            }
        }
        write_json(path, {"format": FORMAT} | entries)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read what `save` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(entries, dict) or entries.pop("format", None) != FORMAT:
                raise WeightsmithError(f"{path} is no {FORMAT} file: give the comparison.json of a comparison")
            for name in ("batch_sizes", "seeds", "notes"):
                entries[name] = tuple(entries[name])
            entries["draws"] = {
                int(seed): tuple((one["name"], one["sha256"]) for one in drawn)
                for seed, drawn in entries["draws"].items()
            }
            return cls(**entries)
        except DAMAGED as error:
            raise WeightsmithError(
                f"{path} cannot be read ({cause_of(error)}): give the comparison.json of a comparison, or its run folder"
            ) from error


def content_hash(request: Request) -> str:
    """SHA-256 of what a request asks, whatever it is called."""
    if isinstance(request, TextRequest):
        asked = {key: value for key, value in asdict(request).items() if key not in ("name", "source")}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    head = json.dumps([list(request.image.shape), request.target])
    return hashlib.sha256(head.encode() + request.image.contiguous().numpy().tobytes()).hexdigest()


def signed(draws: Draws) -> dict[int, tuple[tuple[str, str], ...]]:
    """The draws as a plan records them."""
    return {seed: tuple((request.name, content_hash(request)) for request in drawn) for seed, drawn in draws.items()}


def named_apart(draws: Draws) -> dict[int, list[Request]]:
    """The draws with a name for each request that none of another content has: a fact may get another target a seed."""
    taken: dict[str, str] = {}
    found: dict[int, list[Request]] = {}
    for seed, drawn in draws.items():
        found[seed] = []
        for request in drawn:
            content, name = content_hash(request), request.name
            if taken.setdefault(name, content) != content:
                name = f"{name} (seed {seed})"
                taken[name] = content
            found[seed].append(replace(request, name=name))
    return found


def write_requests(path: Path, draws: Draws) -> None:
    """`requests.json`: every request of text once, as `read_facts` reads it."""
    each = {request.name: request for drawn in draws.values() for request in drawn if isinstance(request, TextRequest)}
    write_facts(path, list(each.values()))


def plan_file(requests: str) -> Path:
    """The comparison file that `--requests` names, be it the file or its run folder."""
    place = user_path(requests)
    return place / PLAN if place.is_dir() else place


def drawn_again(plan: Plan, path: Path) -> dict[int, list[Request]]:
    """The requests of an earlier comparison of a language model, from the file beside its plan.

    Raises:
        WeightsmithError: the file is missing or damaged, or a request in it has changed.
    """
    beside = path.parent / REQUESTS
    try:
        by_name: dict[str, Request] = {request.name: request for request in read_facts(beside)}
    except WeightsmithError as error:
        raise WeightsmithError(f"--requests {path} needs {REQUESTS} beside it: {error}") from error
    return matched(plan, by_name, str(beside))


def matched(plan: Plan, by_name: Mapping[str, Request], where: str) -> dict[int, list[Request]]:
    """The requests that a plan names. Raises `WeightsmithError` where one is missing or has another content."""
    for drawn in plan.draws.values():
        for name, content in drawn:
            if name not in by_name:
                raise WeightsmithError(
                    f"{where} has no request {name!r} of the comparison: give the data it was made of{perhaps(name, by_name)}"
                )
            if content_hash(by_name[name]) != content:
                raise WeightsmithError(
                    f"the request {name!r} in {where} is not the one that was compared: give the data it was made of"
                )
    return {seed: [by_name[name] for name, _ in drawn] for seed, drawn in plan.draws.items()}
