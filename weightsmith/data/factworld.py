"""A world of facts to learn and to edit: places of public tables and people who do not exist.

Every fact has several wordings. Some of them are kept aside: a model never reads the fact in these, though it reads other
facts in them, so that recalling it there shows that it is stored with the subject and not with a sentence.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np

from weightsmith.data.zones import tables_version, zone_places
from weightsmith.errors import WeightsmithError
from weightsmith.request import Probe, TextRequest

KEPT_ASIDE = 3
"""Wordings of each fact that are never trained."""
_NEIGHBOURS, _FEWEST_NEIGHBOURS, _DISTRACTED = 6, 3, 2
"""Of a request: neighbours at most and at least, and paraphrases that get a sentence in front."""
_MIXED = 0.1
"""Share of the facts that also stand with another one in a sentence."""


@dataclass(frozen=True)
class Relation:
    """What is said of a kind of subject.

    Attributes:
        name: "profession"; of: the kind, "places", "countries" or "people".
        templates: wordings with `{}` for the subject, which end right before the object.
    """

    name: str
    of: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One fact.

    Attributes:
        name: "profession/Ada Fenmolund".
        relation: name of its relation; subject, object: as they stand in a sentence.
        trained, kept_aside: which templates of the relation are for training, and which never are.
    """

    name: str
    relation: str
    subject: str
    object: str
    trained: tuple[int, ...]
    kept_aside: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class FactWorld:
    """Facts, their wordings, and sentences of no fact.

    Attributes:
        facts: all of them; relations: by name.
        plain: sentences of no fact, to be read in training and to stand in front of a prompt.
        seed: of everything that is drawn; tables: release of the time-zone tables.
    """

    facts: tuple[Fact, ...]
    relations: Mapping[str, Relation]
    plain: tuple[str, ...]
    seed: int
    tables: str

    def prompts(self, fact: Fact, *, kept_aside: bool = False) -> tuple[str, ...]:
        """The fact's wordings for training, or those kept aside, up to its object."""
        templates = self.relations[fact.relation].templates
        return tuple(templates[i].format(fact.subject) for i in (fact.kept_aside if kept_aside else fact.trained))

    def texts(self) -> tuple[str, ...]:
        """What a model is to read: every fact in each wording for training, some in twos, and the plain sentences."""
        single = [f"{prompt} {fact.object}." for fact in self.facts for prompt in self.prompts(fact)]
        random = self._random("mixed")
        mixed = []
        for _ in range(round(_MIXED * len(self.facts))):
            one, two = (self.facts[i] for i in random.choice(len(self.facts), 2, replace=False))
            first, second = (self.prompts(fact)[random.randint(len(fact.trained))] for fact in (one, two))
            # A subject keeps its capital letter, any other beginning becomes small behind the semicolon.
            second = second if second.startswith(two.subject) else second[0].lower() + second[1:]
            mixed.append(f"{first} {one.object}; {second} {two.object}.")
        return (*single, *mixed, *self.plain)

    def probes(self, *, kept_aside: bool = True) -> tuple[tuple[Fact, Probe], ...]:
        """Each fact with each wording that is kept aside, or with each that is trained, and the answer."""
        return tuple(
            (fact, Probe(prompt, fact.object))
            for fact in self.facts
            for prompt in self.prompts(fact, kept_aside=kept_aside)
        )

    def requests(self, n: int, seed: int = 0) -> list[TextRequest]:
        """Counterfactual edits: another object of the same relation in place of the true one.

        The prompt is a wording that was trained; the paraphrases are the fact's wordings kept aside, two of them once more
        with a plain sentence in front; the neighbours are other subjects of the same relation and the same object, each
        in one of its trained wordings. No fact is asked for twice, and none about a subject before all others had one.

        Raises:
            WeightsmithError: fewer than 1, or more than there are facts with at least three neighbours.
        """
        alike = self._alike
        usable = [fact for fact in self.facts if len(alike[fact.relation, fact.object]) > _FEWEST_NEIGHBOURS]
        if not 1 <= n <= len(usable):
            raise WeightsmithError(
                f"{n} edits of the fact world are asked for: it has {len(usable)} facts that can be edited, ask for 1 to "
                "so many"
            )
        random = self._random("requests", seed)
        shuffled = [usable[i] for i in random.permutation(len(usable))]
        times: Counter[str] = Counter()
        turns = []
        for fact in shuffled:  # two edits of one subject may need two values at the same key
            turns.append(times[fact.subject])
            times[fact.subject] += 1
        order = sorted(range(len(shuffled)), key=lambda i: turns[i])
        return [self._request(fact, self._random(fact.name, seed)) for fact in (shuffled[i] for i in order[:n])]

    def unrelated(self, request: TextRequest) -> tuple[Probe, ...]:
        """What else is known of a request's subject and must stay: other relations, each in its first trained wording.

        Raises:
            WeightsmithError: a request that is none of this world's.
        """
        mine = [fact for fact in self.facts if fact.subject == request.subject]
        if request.name not in [fact.name for fact in mine]:
            raise WeightsmithError(
                f"the request {request.name} is about no fact of this world: give one that its `requests` made"
            )
        return tuple(Probe(self.prompts(fact)[0], fact.object) for fact in mine if fact.name != request.name)

    def fingerprint(self) -> str:
        """SHA-256 of everything that training, recall and requests depend on."""
        return self._fingerprint

    def to_json(self) -> dict[str, Any]:
        """Facts, relations and sentences as JSON entries."""
        return {
            "seed": self.seed,
            "tables": self.tables,
            "relations": [asdict(relation) for relation in self.relations.values()],
            "facts": [asdict(fact) for fact in self.facts],
            "plain": list(self.plain),
        }

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> FactWorld:
        """The world that `to_json` wrote down.

        Raises:
            KeyError, TypeError: entries that are missing, or of another kind.
        """
        said = [entry | {name: tuple(entry[name]) for name in ("trained", "kept_aside")} for entry in entries["facts"]]
        relations = [entry | {"templates": tuple(entry["templates"])} for entry in entries["relations"]]
        return cls(
            tuple(Fact(**entry) for entry in said),
            {entry["name"]: Relation(**entry) for entry in relations},
            tuple(entries["plain"]),
            entries["seed"],
            entries["tables"],
        )

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @cached_property
    def _alike(self) -> dict[tuple[str, str], list[Fact]]:
        """(relation, object) → its facts."""
        found: dict[tuple[str, str], list[Fact]] = {}
        for fact in self.facts:
            found.setdefault((fact.relation, fact.object), []).append(fact)
        return found

    def _request(self, fact: Fact, random: np.random.RandomState) -> TextRequest:
        objects = [name for relation, name in self._alike if relation == fact.relation and name != fact.object]
        kept = self.prompts(fact, kept_aside=True)
        fronts = [self.plain[i] for i in random.choice(len(self.plain), _DISTRACTED, replace=False)]
        others = [other for other in self._alike[fact.relation, fact.object] if other is not fact]
        chosen = [others[i] for i in random.permutation(len(others))[:_NEIGHBOURS]]
        asked = [self.prompts(other)[random.randint(len(other.trained))] for other in chosen]
        return TextRequest(
            name=fact.name,
            prompt=self.prompts(fact)[random.randint(len(fact.trained))],
            subject=fact.subject,
            target=objects[random.randint(len(objects))],
            truth=fact.object,
            paraphrases=(*kept, *(f"{front} {prompt}" for front, prompt in zip(fronts, kept, strict=False))),
            neighbours=tuple(Probe(prompt, fact.object) for prompt in asked),
            source=self._fingerprint,
        )

    def _random(self, purpose: str, seed: int = 0) -> np.random.RandomState:
        return _stream(purpose, self.seed, seed)


def fact_world(seed: int = 0, people: int = 300, places: int | None = None) -> FactWorld:
    """The fact world of a seed.

    Three relations are of the public time-zone tables: a place's country and its clock at noon in Greenwich, and a
    country's region. Six are of people who do not exist: birthplace (a place of the tables), profession, employer,
    instrument, language, sport. A release of the tables that differs in these gives another world.

    Args:
        people: how many; each has six facts.
        places: how many of the tables' places, drawn at random, and the countries of these alone; None for all.

    Raises:
        WeightsmithError: fewer than 1 of either, more places than there are, or more people than there are names.
    """
    table: dict[str, Any] = tomllib.loads(
        resources.files("weightsmith.data").joinpath("factworld.toml").read_text(encoding="utf-8")
    )
    relations = {
        name: Relation(name, entry["of"], tuple(entry["templates"])) for name, entry in table["relations"].items()
    }
    there, regions = zone_places(table["regions"])
    if places is not None:
        if not 1 <= places <= len(there):
            raise WeightsmithError(
                f"{places} places are asked for: the time-zone tables have {len(there)}, ask for 1 or more"
            )
        there = tuple(there[i] for i in sorted(_stream("places", seed).permutation(len(there))[:places]))
        regions = {place.country: regions[place.country] for place in there}
    names = _full_names(table["people"], people, _stream("people", seed))
    said = [("country", place.name, place.country) for place in there]
    said += [("clock", place.name, place.clock) for place in there]
    said += [("region", country, region) for country, region in regions.items()]
    for relation in relations.values():
        if relation.of == "people":
            objects = table["objects"][relation.name]
            random = _stream(relation.name, seed)
            said += [(relation.name, name, objects[random.randint(len(objects))]) for name in names]
    facts = tuple(_fact(relations[relation], subject, known, seed) for relation, subject, known in said)
    return FactWorld(facts, relations, tuple(table["sentences"]["plain"]), seed, tables_version())


def _fact(relation: Relation, subject: str, known: str, seed: int) -> Fact:
    name = f"{relation.name}/{subject}"
    order = _stream(name, seed).permutation(len(relation.templates)).tolist()
    kept, trained = sorted(order[:KEPT_ASIDE]), sorted(order[KEPT_ASIDE:])
    return Fact(name, relation.name, subject, known, tuple(trained), tuple(kept))


def _full_names(parts: Mapping[str, list[str]], n: int, random: np.random.RandomState) -> list[str]:
    """Names of people, no family name twice."""
    families = [a + b + c for a in parts["begin"] for b in parts["middle"] for c in parts["end"]]
    if not 1 <= n <= len(families):
        raise WeightsmithError(f"{n} people are asked for: there are names for {len(families)}, ask for 1 or more")
    chosen = [families[i] for i in random.permutation(len(families))[:n]]
    return [f"{parts['first'][random.randint(len(parts['first']))]} {family}" for family in chosen]


def _stream(purpose: str, *seeds: int) -> np.random.RandomState:
    """Random numbers of their own for each purpose; this old generator is promised never to change."""
    words = np.frombuffer(hashlib.sha256(purpose.encode()).digest()[:16], dtype="<u4")
    return np.random.RandomState([*words.tolist(), *seeds])
