"""Prompts from files in each of the layouts that are published, and what is said of files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weightsmith.data.prompts import SubjectPrompt, read_prompts
from weightsmith.errors import WeightsmithError

KNOWN = {
    "known_id": 7,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}
ORIGINAL = {
    "case_id": 12,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native"],
}
EASY = {
    "case_id": 12,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": "English",
    "subject": "Danielle Darrieux",
    "ground_truth": "French",
    "split": "edit",
}
IDS = {"ids": [1, 403, 407, 261], "subject": [1, 3]}


def written(path: Path, records: Any) -> Path:
    path.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
    return path


def one(path: Path, record: Any) -> SubjectPrompt:
    (prompt,) = read_prompts(written(path / "facts.json", [record]))
    return prompt


def test_known_facts(tmp_path: Path) -> None:
    wanted = SubjectPrompt("7", "Vinson Massif is located in the continent of", "Vinson Massif")
    assert one(tmp_path, KNOWN) == wanted


def test_counterfact_as_published_and_as_editors_take_it(tmp_path: Path) -> None:
    wanted = SubjectPrompt("12", "The mother tongue of Danielle Darrieux is", "Danielle Darrieux")
    assert one(tmp_path, ORIGINAL) == wanted
    assert one(tmp_path, EASY) == wanted


def test_token_ids(tmp_path: Path) -> None:
    assert one(tmp_path, IDS) == SubjectPrompt("0", ids=(1, 403, 407, 261), span=(1, 3))
    assert one(tmp_path, IDS | {"target": 5, "name": "a"}) == SubjectPrompt(
        "a", ids=(1, 403, 407, 261), span=(1, 3), target=5
    )
    assert one(tmp_path, IDS | {"target": None}).target is None


def test_names(tmp_path: Path) -> None:
    """The record's own, else its number; the first of several keys."""
    plain = {"prompt": "Rome is", "subject": "Rome"}
    records = [
        plain | given for given in ({}, {"case_id": 5}, {"known_id": 6, "case_id": 5}, {"name": "x", "known_id": 6})
    ]
    assert [prompt.name for prompt in read_prompts(written(tmp_path / "a.json", records))] == ["0", "5", "6", "x"]


def test_a_name_stands_for_one_prompt(tmp_path: Path) -> None:
    found = read_prompts(written(tmp_path / "a.json", [KNOWN, EASY, KNOWN]))
    assert [prompt.name for prompt in found] == ["7", "12", "7 (record 2)"]
    assert found[0].text == found[2].text


def test_the_first_ones(tmp_path: Path) -> None:
    """What is not asked for is not looked at."""
    path = written(tmp_path / "a.json", [KNOWN, EASY, {"nothing": 1}])
    assert [prompt.name for prompt in read_prompts(path, 2)] == ["7", "12"]
    with pytest.raises(WeightsmithError, match=r"record 2 of .*a\.json"):
        read_prompts(path)


def test_letters_of_all_alphabets(tmp_path: Path) -> None:
    record = {"prompt": "São Paulo und 東京", "subject": "東京"}
    path = tmp_path / "a.json"
    path.write_text(json.dumps([record], ensure_ascii=False), encoding="utf-8")
    assert read_prompts(path)[0].text == "São Paulo und 東京"


def test_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    written(tmp_path / "facts.json", [KNOWN])
    assert len(read_prompts("~/facts.json")) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is no JSON file"),
        ("", "is no JSON file"),
        ("\ufeff[]", "is no JSON file"),
        ({"prompt": "Rome is", "subject": "Rome"}, "holds no list of prompts"),
        ([], "holds no list of prompts"),
        ("null", "holds no list of prompts"),
        (["Rome is"], "record 0 of .* is no record with a prompt"),
        ([KNOWN, None], "record 1 of .* is no record with a prompt"),
        ([{"prompt": "Rome is"}], 'record 0 of .* has no "prompt" and "subject" as text'),
        ([{"subject": "Rome"}], 'record 0 of .* has no "prompt" and "subject" as text'),
        ([{"prompt": "Rome is", "subject": ""}], 'has no "prompt" and "subject" as text'),
        ([{"prompt": 3, "subject": "Rome"}], 'has no "prompt" and "subject" as text'),
        ([{"prompt": "Rome is", "subject": [0, 1]}], 'has no "prompt" and "subject" as text'),
        (
            [{"prompt": "Rome is", "subject": "Paris"}],
            "the subject 'Paris' of record 0 .* is not in its prompt 'Rome is'",
        ),
        ([{"requested_rewrite": {"prompt": "{} is"}}], 'has no "prompt" and "subject" as text'),
        ([{"requested_rewrite": "{} is"}], 'has no "prompt" and "subject" as text'),
    ],
)
def test_a_file_of_no_prompts_is_told(tmp_path: Path, content: Any, told: str) -> None:
    path = written(tmp_path / "a.json", content)
    with pytest.raises(WeightsmithError, match=told) as raised:
        read_prompts(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "entries",
    [
        {"ids": "1234"},
        {"ids": 5},
        {"ids": []},
        {"ids": [1, "x"]},
        {"ids": [1, 2.5, 3]},
        {"ids": [1, True, 3]},
        {"ids": [1, None]},
        {"ids": {"1": 2}},
        {"subject": "Rome"},
        {"subject": "12"},
        {"subject": [1]},
        {"subject": [1, 2, 3]},
        {"subject": [0, 1.5]},
        {"subject": None},
        {"target": "Paris"},
        {"target": 2.5},
        {"target": [1]},
        {"ids": [1, -2, 3]},
        {"subject": [-1, 2]},
        {"target": -3},
    ],
    ids=str,
)
def test_token_ids_that_are_no_numbers_are_told(tmp_path: Path, entries: dict[str, Any]) -> None:
    with pytest.raises(
        WeightsmithError, match=r'record 0 of .* needs "ids" and "subject": \[first, end\].* as whole numbers'
    ):
        one(tmp_path, IDS | entries)


def test_token_ids_without_a_subject_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsmithError, match='needs "ids" and "subject"'):
        one(tmp_path, {"ids": [1, 2]})


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(WeightsmithError, match=r"--data-path .* cannot be read: give a JSON list") as told:
            read_prompts(path)
        assert str(path) in str(told.value)
    binary = tmp_path / "a.json"
    binary.write_bytes(b"\xff\xfe\x00[")
    with pytest.raises(WeightsmithError, match="is no JSON file"):
        read_prompts(binary)


def test_the_published_facts(shared_data: Path) -> None:
    path = shared_data / "facts" / "known_1000.json"
    records, found = json.loads(path.read_text(encoding="utf-8")), read_prompts(path)
    assert len(found) == len(records) == 1209
    assert len({prompt.name for prompt in found}) == 1209
    for record, prompt in zip(records, found, strict=True):
        assert (prompt.name, prompt.text, prompt.subject) == (
            str(record["known_id"]),
            record["prompt"],
            record["subject"],
        )
        assert prompt.subject in prompt.text
        assert not prompt.ids


def test_the_published_counterfacts(shared_data: Path) -> None:
    path = shared_data / "facts" / "counterfact_full_21919.json"
    found = read_prompts(path, 100)
    assert [prompt.name for prompt in found] == [str(i) for i in range(100)]
    assert found[0] == SubjectPrompt("0", EASY["prompt"], EASY["subject"])
    assert all(prompt.subject in prompt.text and "{}" not in prompt.text for prompt in found)
