"""Facts from files in each of the layouts that are published and in our own, and what is said of files that are none."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from weightsmith.data.facts import read_facts, write_facts
from weightsmith.data.prompts import SubjectPrompt, read_prompts
from weightsmith.errors import WeightsmithError
from weightsmith.request import Probe, TextRequest, duplicates_of

ORIGINAL: dict[str, Any] = {
    "case_id": 12,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke the language"],
    "neighborhood_prompts": ["Michel Rocard is a native speaker of", "The mother tongue of Robert Schuman is"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}
EASY: dict[str, Any] = {
    "case_id": 12,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": "French",
    "rephrase_prompt": "Danielle Darrieux spoke the language",
    "locality_prompt": "Michel Rocard is a native speaker of",
    "locality_ground_truth": "French",
    "split": "edit",
}
ZSRE: dict[str, Any] = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology", "IIT"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}
OWN: dict[str, Any] = {"prompt": "Rome is the capital of", "subject": "Rome", "target": "France"}
KNOWN: dict[str, Any] = {
    "known_id": 7,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}
FULL = TextRequest(
    "naïve {} name",
    "東京 is {} what",
    "東京",
    " a target ",
    "a truth",
    ("one", ""),
    (Probe("p", "a"), Probe("", "")),
    "some table",
)


def written(path: Path, records: Any) -> Path:
    path.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
    return path


def one(path: Path, record: Any) -> TextRequest:
    (request,) = read_facts(written(path / "facts.json", [record]))
    return request


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_counterfact_as_published(tmp_path: Path) -> None:
    found = one(tmp_path, ORIGINAL)
    assert found == TextRequest(
        name="12",
        prompt="The mother tongue of Danielle Darrieux is",
        subject="Danielle Darrieux",
        target="English",
        truth="French",
        paraphrases=("Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke the language"),
        neighbours=(
            Probe("Michel Rocard is a native speaker of", "French"),
            Probe("The mother tongue of Robert Schuman is", "French"),
        ),
        source=sha256(tmp_path / "facts.json"),
    )


def test_counterfact_as_editors_take_it(tmp_path: Path) -> None:
    found = one(tmp_path, EASY)
    assert found == TextRequest(
        name="12",
        prompt="The mother tongue of Danielle Darrieux is",
        subject="Danielle Darrieux",
        target="English",
        truth="French",
        paraphrases=("Danielle Darrieux spoke the language",),
        neighbours=(Probe("Michel Rocard is a native speaker of", "French"),),
        source=sha256(tmp_path / "facts.json"),
    )
    several = {"rephrase_prompt": ["a", "b"], "locality_prompt": ["c", "d"], "locality_ground_truth": ["e", "f"]}
    found = one(tmp_path, EASY | several)
    assert found.paraphrases == ("a", "b")
    assert found.neighbours == (Probe("c", "e"), Probe("d", "f"))


def test_zsre(tmp_path: Path) -> None:
    assert one(tmp_path, ZSRE) == TextRequest(
        name="0",
        prompt="What university did Watts Humphrey attend?",
        subject="Watts Humphrey",
        target="University of Michigan",
        truth="Illinois Institute of Technology",
        paraphrases=("What university did Watts Humphrey take part in?",),
        neighbours=(Probe("nq question: who played desmond doss father in hacksaw ridge", "Hugo Weaving"),),
        source=sha256(tmp_path / "facts.json"),
    )


def test_what_a_record_may_lack(tmp_path: Path) -> None:
    """Truth, paraphrases and neighbours, in each layout."""
    rewrite = {key: ORIGINAL["requested_rewrite"][key] for key in ("prompt", "subject", "target_new")}
    for record in (
        {"requested_rewrite": rewrite},
        {key: EASY[key] for key in ("prompt", "subject", "target_new")},
        {key: ZSRE[key] for key in ("src", "subject", "alt")},
        OWN,
    ):
        found = one(tmp_path, record)
        assert (found.name, found.truth, found.paraphrases, found.neighbours) == ("0", "", (), ())


def test_answers_are_without_the_space_before_them(tmp_path: Path) -> None:
    spaced = EASY | {"target_new": " English", "ground_truth": " French ", "locality_ground_truth": " French"}
    found = one(tmp_path, spaced)
    assert (found.target, found.truth, found.neighbours[0].answer) == ("English", "French", "French")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    for record in (ORIGINAL, EASY, ZSRE):
        requests = [FULL, replace(one(tmp_path, record), name="another")]
        write_facts(tmp_path / "new" / "own.json", requests)
        assert read_facts(tmp_path / "new" / "own.json") == requests
    assert [prompt.name for prompt in read_prompts(tmp_path / "new" / "own.json")] == [FULL.name, "another"]


def test_facts_written_by_hand(tmp_path: Path) -> None:
    """{} stands for the subject; a record without a source has its file's."""
    found = one(tmp_path, OWN | {"prompt": "{} is the capital of", "paraphrases": ["In Rome you are in"]})
    assert found.prompt == "Rome is the capital of"
    assert found.paraphrases == ("In Rome you are in",)
    assert found.source == sha256(tmp_path / "facts.json")


def test_nothing_to_write_and_two_of_one_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"no facts to write to .*own\.json"):
        write_facts(tmp_path / "own.json", [])
    with pytest.raises(WeightsmithError, match=r"two facts for .* are named 'naïve {} name'"):
        write_facts(tmp_path / "own.json", [FULL, FULL])
    assert not (tmp_path / "own.json").exists()


def numbered(n: int) -> list[dict[str, Any]]:
    return [OWN | {"name": f"fact {number}"} for number in range(n)]


def test_the_first_ones(tmp_path: Path) -> None:
    """What is not asked for is not looked at."""
    path = written(tmp_path / "a.json", [*numbered(2), {"nothing": 1}])
    assert [request.name for request in read_facts(path, 2)] == ["fact 0", "fact 1"]
    with pytest.raises(WeightsmithError, match=r"record 2 of .*a\.json"):
        read_facts(path)
    assert len(read_facts(written(path, numbered(3)), 99)) == 3
    with pytest.raises(WeightsmithError, match="at least 1"):
        read_facts(path, 0)


def test_a_random_choice(tmp_path: Path) -> None:
    """The same for the same seed; fewer are the first of more; every fact once."""
    path = written(tmp_path / "a.json", numbered(50))
    orders = {seed: [request.name for request in read_facts(path, seed=seed)] for seed in (0, 1)}
    in_file = [request.name for request in read_facts(path)]
    assert orders[0] != orders[1]
    assert in_file not in orders.values()
    for seed, order in orders.items():
        assert sorted(order) == sorted(in_file)
        assert [request.name for request in read_facts(path, 10, seed)] == order[:10]


def test_a_name_stands_for_one_fact(tmp_path: Path) -> None:
    """Whichever of them are chosen, each keeps its name."""
    path = written(tmp_path / "a.json", [EASY, ZSRE, EASY, ORIGINAL])
    names = ["12", "1", "12 (record 2)", "12 (record 3)"]
    assert [request.name for request in read_facts(path)] == names
    for seed in range(5):
        assert {request.name for request in read_facts(path, 2, seed)} <= set(names)


UNUSABLE = [
    (OWN | {"target": " "}, "the target of record 1 of .* is empty"),
    (ZSRE | {"alt": ""}, "the target of record 1 of .* is empty"),
    (ZSRE | {"subject": "watts humphrey"}, "the subject 'watts humphrey' of record 1 of .* is not in its prompt"),
    (EASY | {"subject": ""}, "the subject '' of record 1 of .* is not in its prompt"),
]


@pytest.mark.parametrize(("record", "told"), UNUSABLE)
def test_facts_that_cannot_be_edited(
    tmp_path: Path, record: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "a.json", [*numbered(1), record, *numbered(3)[1:], record])
    with pytest.raises(WeightsmithError, match=f"2 of 5 facts of .* cannot be edited, the first because {told}"):
        read_facts(path)
    assert len(read_facts(path, 1)) == 1
    with pytest.raises(WeightsmithError, match=f"1 of 3 facts .* {told}.*: correct or remove them"):
        read_facts(path, 3)
    with caplog.at_level(logging.WARNING):
        found = read_facts(path, 3, skip_unusable=True)
    assert [request.name for request in found] == ["fact 0", "fact 1", "fact 2"]
    (logged,) = caplog.messages
    assert logged.startswith(f"left out 1 of {path}, which cannot be edited: the first because the ")
    with pytest.raises(WeightsmithError, match=r"none of the 2 facts of .* can be edited"):
        read_facts(written(path, [record, record]), skip_unusable=True)


def test_a_set_for_tracing_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "known.json", [KNOWN])
    with pytest.raises(WeightsmithError, match=r"record 0 of .*known\.json has a prompt but no new answer") as raised:
        read_facts(path)
    assert "weightsmith locate" in str(raised.value)
    assert read_prompts(path) == [SubjectPrompt("7", KNOWN["prompt"], "Vinson Massif")]


REWRITE = ORIGINAL["requested_rewrite"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON file"),
        ("", "is no JSON file"),
        ("[" * 200_000, "is no JSON file"),
        (OWN, "holds no list of facts"),
        ([], "holds no list of facts"),
        (["Rome is"], "record 0 of .* is no record of a fact"),
        ([OWN, None], "record 1 of .* is no record of a fact"),
        ([{"question": "Where?"}], "record 0 of .* is of no known layout: give a JSON list of CounterFact records"),
        ([{"ids": [1, 2], "subject": [0, 1]}], "record 0 of .* is of no known layout"),
        ([ORIGINAL | {"requested_rewrite": "no"}], 'record 0 of .* has no "requested_rewrite" as a record'),
        ([ORIGINAL | {"requested_rewrite": REWRITE | {"target_new": None}}], 'record 0 of .* has no "target_new" as'),
        ([ORIGINAL | {"requested_rewrite": REWRITE | {"target_new": {"id": 1}}}], 'has no "target_new" as text'),
        ([ORIGINAL | {"requested_rewrite": REWRITE | {"target_true": {}}}], 'has no "target_true" as text'),
        ([ORIGINAL | {"requested_rewrite": REWRITE | {"subject": 3}}], 'has no "subject" as text'),
        ([ORIGINAL | {"neighborhood_prompts": [1]}], '"neighborhood_prompts" of record 0 .* no list of texts'),
        ([ORIGINAL | {"paraphrase_prompts": {}}], '"paraphrase_prompts" of record 0 .* no list of texts'),
        ([{key: EASY[key] for key in ("target_new", "subject")}], 'record 0 of .* has no "prompt" as text'),
        ([EASY | {"ground_truth": 3}], '"ground_truth" of record 0 of .* is no text'),
        (
            [EASY | {"locality_prompt": ["a", "b"]}],
            '"locality_prompt" and "locality_ground_truth" of record 0 .* differ',
        ),
        ([{key: ZSRE[key] for key in ("alt", "subject")}], 'record 0 of .* has no "src" as text'),
        ([ZSRE | {"loc_ans": None}], '"loc_ans" of record 0 of .* is no text'),
        ([OWN | {"paraphrase": "x"}], "record 0 of .* has an entry \"paraphrase\": did you mean 'paraphrases'"),
        ([OWN | {"truth": 3}], 'record 0 of .* has no "truth" as text'),
        ([OWN | {"neighbours": ["x"]}], '"neighbours" of record 0 of .* is no list of records'),
        ([OWN | {"neighbours": [{"prompt": "x"}]}], '"neighbours" of record 0 of .* has no "answer" as text'),
    ],
)
def test_a_file_of_no_facts_is_told(tmp_path: Path, content: Any, told: str) -> None:
    path = written(tmp_path / "a.json", content)
    with pytest.raises(WeightsmithError, match=told) as raised:
        read_facts(path, skip_unusable=True)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(WeightsmithError, match=r"cannot be read: give a JSON list of CounterFact records") as told:
            read_facts(path)
        assert str(path) in str(told.value)


def fact(name: str, prompt: str, target: str) -> TextRequest:
    return TextRequest(name, prompt, prompt.split()[0], target)


def test_repetitions_and_contradictions() -> None:
    requests = [
        fact("a", "Rome is in", "Italy"),
        fact("b", "Paris is in", "France"),
        fact("c", "Rome is in", "Peru"),
        fact("d", "Rome is in ", "Peru "),
        fact("e", "Rome is in", "Italy"),
        fact("f", "Rome lies in", "Chad"),
        fact("g", "Rome is in", "Italy"),
    ]
    equal, contradicting = duplicates_of(requests)
    assert [(requests[i].name, requests[k].name) for i, k in equal] == [("c", "d"), ("a", "e"), ("a", "g")]
    assert [(requests[i].name, requests[k].name) for i, k in contradicting] == [("a", "c")]
    assert duplicates_of([]) == duplicates_of(requests[:2]) == ([], [])


def shared_facts(shared_data: Path, name: str) -> Path:
    path = shared_data / "facts" / name
    if not path.is_file():
        pytest.skip(f"no {path}: the data at WEIGHTSMITH_TEST_DATA are not complete")
    return path


def test_the_published_counterfacts(shared_data: Path) -> None:
    path = shared_facts(shared_data, "counterfact_full_21919.json")
    found = read_facts(path)
    assert len(found) == len({request.name for request in found}) == 21_919
    source = sha256(path)
    assert found[0] == TextRequest(
        name="0",
        prompt="The mother tongue of Danielle Darrieux is",
        subject="Danielle Darrieux",
        target="English",
        truth="French",
        paraphrases=("Where Danielle Darrieux is from, people speak the language of",),
        neighbours=(Probe("Michel Rocard is a native speaker of", "French"),),
        source=source,
    )
    assert all(
        request.truth and len(request.paraphrases) == len(request.neighbours) == 1 and request.source == source
        for request in found
    )
    equal, contradicting = duplicates_of(found)
    assert (len(equal), len(contradicting)) == (14, 310)


def test_the_published_zsre(shared_data: Path) -> None:
    """Two of its thousand records have no new answer."""
    path = shared_facts(shared_data, "zsre_mend_train-1k.json")
    with pytest.raises(WeightsmithError, match=r"2 of 1000 facts of .* the target of record 534 of .* is empty"):
        read_facts(path)
    found = read_facts(path, skip_unusable=True)
    assert len(found) == 998
    assert {"534", "723"}.isdisjoint(request.name for request in found)
    assert found[0] == TextRequest(
        name="0",
        prompt="What is the product made by UniFirst?",
        subject="UniFirst",
        target="unmanned aircraft",
        truth="uniform",
        paraphrases=("What will be the product of UniFirst?",),
        neighbours=(Probe("nq question: john goodman's character in the big lebowski", "Walter Sobchak"),),
        source=sha256(path),
    )
    assert all(request.neighbours[0].prompt.startswith("nq question: ") for request in found)


def test_the_published_facts_for_tracing(shared_data: Path) -> None:
    with pytest.raises(WeightsmithError, match=r"record 0 of .* has a prompt but no new answer"):
        read_facts(shared_facts(shared_data, "known_1000.json"))
