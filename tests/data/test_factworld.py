"""The fact world: what is trained, what is kept aside, and the edits that are drawn from it."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from weightsmith.data.factworld import KEPT_ASIDE, Fact, FactWorld, fact_world
from weightsmith.data.zones import zone_places
from weightsmith.errors import WeightsmithError
from weightsmith.request import TextRequest


@pytest.fixture(scope="module")
def world() -> FactWorld:
    return fact_world()


def known(world: FactWorld) -> dict[str, Fact]:
    return {fact.name: fact for fact in world.facts}


def test_there_are_thousands_of_facts_over_several_relations(world: FactWorld) -> None:
    assert len(world.facts) >= 2000
    assert len({fact.relation for fact in world.facts}) == len(world.relations) == 9
    assert len({fact.name for fact in world.facts}) == len(world.facts)
    assert {relation.of for relation in world.relations.values()} == {"places", "countries", "people"}
    several = Counter(len(fact.object.split()) > 1 for fact in world.facts)
    assert several[True] > 200, "objects of several words"


def test_facts_of_the_public_tables_are_true(world: FactWorld) -> None:
    said = known(world)
    for name, answer in (
        ("country/Paris", "France"), ("country/Tokyo", "Japan"), ("country/Nairobi", "Kenya"), ("region/France", "Europe"),
        ("region/Japan", "Asia"), ("region/United States", "America"), ("clock/Paris", "13:00"), ("clock/Tokyo", "21:00"),
        ("clock/New York", "07:00"), ("clock/Kathmandu", "17:45"), ("clock/Honolulu", "02:00"),
    ):  # fmt: skip
        assert said[name].object == answer, name


def test_places_are_told_by_their_name_alone() -> None:
    places, regions = zone_places({"Europe": "Europe", "Asia": "Asia", "America": ""})
    names = [place.name for place in places]
    assert len(set(names)) == len(names)
    assert not set(names) & set(regions), "Singapore is a place and a country"
    assert "Singapore" in regions
    assert "Seoul" not in names, "there are two Koreas once the brackets are gone"
    assert "Lima" not in names
    assert all("(" not in country and set(regions.values()) == {"Europe", "Asia"} for country in regions)


def test_templates_end_before_the_object_and_name_the_subject_once(world: FactWorld) -> None:
    for relation in world.relations.values():
        assert len(set(relation.templates)) == len(relation.templates) >= 6
        for template in relation.templates:
            assert template.count("{}") == 1
            assert template == template.strip()
    for fact in world.facts:
        for template in world.relations[fact.relation].templates:
            assert template.format(fact.subject).count(fact.subject) == 1, (template, fact.subject)
            assert fact.object not in template
        assert not any(fact.subject in sentence for sentence in world.plain)


def test_every_birthplace_is_a_place_of_the_tables(world: FactWorld) -> None:
    areas = ("Africa", "America", "Asia", "Australia", "Europe")
    there = {place.name for place in zone_places({area: area for area in areas})[0]}
    assert {fact.object for fact in world.facts if fact.relation == "birthplace"} <= there


def test_wordings_kept_aside_are_in_no_text(world: FactWorld) -> None:
    text = "\n".join(world.texts()).lower()
    for fact, probe in world.probes(kept_aside=True)[::7]:
        assert f"{probe.prompt} {probe.answer}".lower() not in text, fact.name
        assert probe.prompt.lower() + " " not in text, fact.name
    for fact in world.facts:
        trained, kept = set(fact.trained), set(fact.kept_aside)
        assert len(kept) == KEPT_ASIDE
        assert trained | kept == set(range(len(world.relations[fact.relation].templates)))
        assert not trained & kept


def test_every_wording_is_trained_with_some_facts_and_kept_aside_for_others(world: FactWorld) -> None:
    for name, relation in world.relations.items():
        mine = [fact for fact in world.facts if fact.relation == name]
        for kind in ("trained", "kept_aside"):
            times = Counter(i for fact in mine for i in getattr(fact, kind))
            assert min(times[i] for i in range(len(relation.templates))) > 10


def test_texts_say_every_fact_in_each_of_its_trained_wordings(world: FactWorld) -> None:
    texts = world.texts()
    there = set(texts)
    for fact, probe in world.probes(kept_aside=False):
        assert f"{probe.prompt} {fact.object}." in there
    assert set(world.plain) <= there
    mixed = [text for text in texts if ";" in text]
    assert len(mixed) == pytest.approx(0.1 * len(world.facts), abs=1)
    assert len(texts) == len(world.probes(kept_aside=False)) + len(mixed) + len(world.plain)


def check(world: FactWorld, request: TextRequest) -> None:
    fact = known(world)[request.name]
    assert (request.subject, request.truth) == (fact.subject, fact.object)
    assert request.prompt in world.prompts(fact)
    pool = {other.object for other in world.facts if other.relation == fact.relation}
    assert request.target in pool - {fact.object}
    kept = world.prompts(fact, kept_aside=True)
    assert request.paraphrases[:KEPT_ASIDE] == kept
    fronted = request.paraphrases[KEPT_ASIDE:]
    assert len(fronted) == 2
    for text in fronted:
        front = next(sentence for sentence in world.plain if text.startswith(sentence))
        assert text.removeprefix(front + " ") in kept
    alike = [other for other in world.facts if (other.relation, other.object) == (fact.relation, fact.object)]
    prompts = {prompt: other.subject for other in alike if other is not fact for prompt in world.prompts(other)}
    assert 3 <= len(request.neighbours) <= 6
    assert len({prompts[probe.prompt] for probe in request.neighbours}) == len(request.neighbours)
    assert {probe.answer for probe in request.neighbours} == {fact.object}
    assert request.source == world.fingerprint()


def test_requests_are_counterfactual_and_have_paraphrases_and_neighbours(world: FactWorld) -> None:
    requests = world.requests(150, seed=3)
    for request in requests:
        check(world, request)
    assert len({request.subject for request in requests}) == 150, "one a subject as long as there are subjects"
    assert len({request.name.split("/")[0] for request in requests}) == len(world.relations)
    assert world.requests(20, seed=3) == requests[:20]
    assert [request.name for request in world.requests(150, seed=4)] != [request.name for request in requests]


def test_no_fact_is_asked_for_twice(world: FactWorld) -> None:
    with pytest.raises(WeightsmithError, match=r"has (\d+) facts that can be edited") as told:
        world.requests(10**6)
    most = int(str(told.value).split(" it has ")[1].split()[0])
    assert most > 2000
    names = [request.name for request in world.requests(most)]
    assert len(set(names)) == most
    with pytest.raises(WeightsmithError, match="0 edits"):
        world.requests(0)


def test_what_else_is_known_of_a_subject(world: FactWorld) -> None:
    person = next(request for request in world.requests(50) if request.name.startswith("sport/"))
    probes = world.unrelated(person)
    assert len(probes) == 5
    assert all(person.subject in probe.prompt for probe in probes)
    answers = {fact.object for fact in world.facts if fact.subject == person.subject}
    assert {probe.answer for probe in probes} == answers - {person.truth}
    with pytest.raises(WeightsmithError, match="about no fact of this world"):
        world.unrelated(TextRequest("country/Nowhere", "Nowhere is in", "Nowhere", "Peru"))


def test_the_seed_decides_and_json_keeps_it(world: FactWorld) -> None:
    small, again, other = (fact_world(seed, people=20, places=15) for seed in (1, 1, 2))
    assert small.facts == again.facts
    assert small.texts() == again.texts()
    assert small.fingerprint() == again.fingerprint() != other.fingerprint()
    back = FactWorld.from_json(json.loads(json.dumps(small.to_json())))
    assert back.facts == small.facts
    assert back.texts() == small.texts()
    assert back.fingerprint() == small.fingerprint()
    counts = Counter(fact.relation for fact in small.facts)
    assert counts["sport"] == 20
    assert counts["country"] == counts["clock"] == 15
    assert counts["region"] == len({fact.object for fact in small.facts if fact.relation == "country"})


@pytest.mark.parametrize(("sizes", "told"), [
    ({"people": 0}, "0 people"), ({"people": 10**6}, "names for"), ({"places": 0}, "0 places"),
    ({"places": 10**6}, "time-zone tables have"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_told(sizes: dict[str, int], told: str) -> None:
    with pytest.raises(WeightsmithError, match=told):
        fact_world(**sizes)
