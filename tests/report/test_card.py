from __future__ import annotations

import ast
import re

import yaml
from huggingface_hub import ModelCard

from weightsmith.report import edit_entry, language_card, model_card


def header(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_full_card_says_what_was_done_and_measured(evaluation_rows, training_rows):
    card = model_card(
        title="digits, edited",
        base_model="google/vit-base-patch16-224",
        architecture="ViT-B/16",
        data="digits",
        class_names=("cat", "dog"),
        split_rows=[{"part": "held_out", "class": "all", "name": "", "count": "359", "share": "1.0"}],
        training_rows=training_rows,
        edits=[
            {"method": "alphaedit", "layers": [9, 10], "corrections": 30, "reached": 29},
            {"method": "head", "layers": None, "corrections": 30, "reached": 30},
        ],
        evaluation_rows=evaluation_rows(),
        provenance={"seed": 42, "packages": {"torch": "2.9"}},
        notes=("Corrections come from the validation part.",),
        licence="apache-2.0",
    )
    assert header(card) == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["weightsmith", "model-editing"],
        "license": "apache-2.0",
        "base_model": "google/vit-base-patch16-224",
    }
    assert ModelCard(card).data.pipeline_tag == "image-classification"
    for line in (
        "| alphaedit | 9, 10 | 30 | 29 |",
        "| head | classifier | 30 | 30 |",
        "| accuracy before | 90.0% (88.0 to 92.0; n = 500) | 90.0% (88.0 to 92.0; n = 500) |",
        "| net change in accuracy | +4.0 points (+2.0 to +6.0; n = 500) | +4.0 points (+2.0 to +6.0; n = 500) |",
        "| validation | 0.6000 | 90.0% |",
        "| seed | 42 |",
        "| packages.torch | 2.9 |",
        "Images: held-out part 359.",
        "- Corrections come from the validation part.",
    ):
        assert line in card.splitlines()


def test_a_card_of_an_unedited_model_claims_no_edit():
    card = model_card(title="baseline", base_model="./somewhere/else")
    assert header(card)["tags"] == ["weightsmith"]
    assert "base_model" not in header(card), "the hub knows no local folder"
    assert "correct" not in card
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == ["How to load it", "Limits"]


def test_text_from_data_cannot_become_markup():
    card = model_card(
        title="x\n# y",
        class_names=("a|b", "<script>", "[c](http://d)", "left_lung"),
        edits=[{"method": "m|n", "layers": [], "corrections": 1}],
    )
    assert "\n# y" not in card
    assert r"a\|b, \<script\>, \[c\](http://d), left_lung" in card
    assert r"| m\|n | classifier | 1 |" in card


def test_the_example_is_code_and_fits_the_model():
    def code(**more: object) -> str:
        return re.search(r"```python\n(.*?)```", model_card(title="x", **more), re.DOTALL)[1]

    for text in (code(), code(channels=1), code(registered_by="weightsmith.models.mlp")):
        ast.parse(text)
    assert 'convert("RGB")' in code()
    assert 'convert("L")' in code(channels=1)
    assert "import weightsmith.models.mlp" in code(registered_by="weightsmith.models.mlp")
    assert "weightsmith" not in code()


def test_each_edit_is_told_with_layers_and_norm():
    info = {
        "method": "patcher",
        "layers": [9],
        "requests": [
            {"sample": "val/3", "before": 1, "target": 0, "after": 0, "success": True},
            {"sample": "val/7", "before": 0, "target": 1, "after": 0, "success": False},
        ],
    }
    lines = model_card(title="x", edits=[edit_entry(info, 0.123456, ("cat", "dog"))]).splitlines()
    assert "| method | layers changed (from 0) | corrections asked for | reached | norm of the change |" in lines
    assert "| patcher | 9 | 2 | 1 | 0.1235 |" in lines
    assert "| val/3 | dog | cat | cat |" in lines
    assert "| val/7 | cat | dog | cat |" in lines
    many = info | {"requests": info["requests"] * 40}
    card = model_card(title="x", edits=[edit_entry(many, 1.0, ("cat", "dog"))])
    assert card.count("| val/3 |") == 25
    assert "And 30 more, which the edit log of the run has." in card


def test_a_folder_here_is_no_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert header(model_card(title="x", base_model="runs/scans"))["base_model"] == "runs/scans"
    (tmp_path / "runs" / "scans").mkdir(parents=True)
    assert "base_model" not in header(model_card(title="x", base_model="runs/scans"))


def test_a_card_of_a_language_model_tells_intervals_prompts_and_provenance():
    edited = {"sample": "a", "before": "oboe", "target": "flute", "after": "flute", "success": True}
    info = {"method": "memit", "layers": [1, 2], "requests": [edited]}
    names = ("measure", "class", "before", "before_low", "before_high", "after", "after_low", "after_high", "n")
    values = ("efficacy,,0.1,0.0,0.2,0.9,0.8,1.0,30", "drift,,,,,0.01,,,4")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in values]
    card = language_card(
        title="gpt2, edited",
        base_model="openai-community/gpt2",
        data="facts.json",
        edits=[edit_entry(info, 2.0, asked={"a": "Anna plays the"})],
        rows=rows,
        provenance={"weights": "ab12", "data": {"facts": "cd34"}},
        licence="mit",
    )
    data = ModelCard(card).data
    assert (data.pipeline_tag, data.license, data.base_model) == ("text-generation", "mit", "openai-community/gpt2")
    for line in (
        "| memit | 1, 2 | 1 | 1 | 2 |",
        "| Anna plays the | oboe | flute | flute |",
        "| efficacy | 0.1 (0 to 0.2) | 0.9 (0.8 to 1) | 30 |",
        "| drift | – | 0.01 | 4 |",
        "| data.facts | cd34 |",
    ):
        assert line in card.splitlines(), line
    ast.parse(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1])
