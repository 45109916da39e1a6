from __future__ import annotations

import ast
import re

import yaml

from weightsmith.report import model_card


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
