"""Hyper-parameters from data files: those shipped, and those of EasyEdit and of the papers' repositories."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from weightsmith.edit import editors, make_editor
from weightsmith.edit.hyperparameters import METHODS, hyperparameters, read_hyperparameters, shipped
from weightsmith.errors import WeightsmithError

PUBLISHED = ("gpt2-xl", "gpt-j-6b", "llama-3-8b")

ROME = """
alg_name: "ROME"
model_name: "./hugging_cache/gpt2-xl"
stats_dir: "./data/stats"
device: 0
layers: [17]
fact_token: "subject_last"
v_num_grad_steps: 20
v_lr: 5e-1
v_loss_layer: 47
v_weight_decay: 1e-3
clamp_norm_factor: 4
kl_factor: 0.0625
mom2_adjustment: false
context_template_length_params: [[5, 10], [10, 10]]
rewrite_module_tmp: "transformer.h.{}.mlp.c_proj"
layer_module_tmp: "transformer.h.{}"
mlp_module_tmp: "transformer.h.{}.mlp"
attn_module_tmp: "transformer.h.{}.attn"
ln_f_module: "transformer.ln_f"
lm_head_module: "transformer.wte"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
model_parallel: false
fp16: true
"""
"""A file as EasyEdit has them."""

MEMIT: dict[str, Any] = {
    "layers": [3, 4, 5],
    "clamp_norm_factor": 0.75,
    "layer_selection": "all",
    "fact_token": "subject_last",
    "v_num_grad_steps": 25,
    "v_lr": 0.5,
    "v_loss_layer": 27,
    "v_weight_decay": 0.5,
    "kl_factor": 0.0625,
    "mom2_adjustment": True,
    "mom2_update_weight": 15000,
    "rewrite_module_tmp": "transformer.h.{}.mlp.fc_out",
    "mom2_dtype": "float32",
}
"""A file as MEMIT's repository has them: it does not say what it is for."""


def written(path: Path, entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dumped = json.dumps(entries) if path.suffix == ".json" else yaml.safe_dump(entries)
    path.write_text(entries if isinstance(entries, str) else dumped, encoding="utf-8")
    return path


def easyedit(**changes: Any) -> dict[str, Any]:
    entries: dict[str, Any] = yaml.safe_load(ROME)
    return entries | changes


def test_what_is_shipped() -> None:
    models = {"gpt2", "gpt2-medium", "gpt2-large", "facts", *PUBLISHED}
    assert set(shipped()) == {(method, model) for method in METHODS for model in models}


@pytest.mark.parametrize(("method", "model"), list(shipped()))
def test_each_shipped_file(method: str, model: str) -> None:
    """It is what its place says, an editor takes it, and it says where its numbers come from."""
    file = shipped()[method, model]
    found, values, notes = read_hyperparameters(file)
    assert (found, notes) == (method, [])
    assert values == hyperparameters(method, model)
    made = make_editor(method, **values)
    assert {name: getattr(made, name) for name in values} == values
    text = file.read_text(encoding="utf-8")
    assert yaml.safe_load(text)["model"] == model
    assert sum(line.startswith("#") for line in text.splitlines()) >= 2
    published = model in PUBLISHED
    assert ("v_lr" in values) == ("stop_loss" in values) == published
    for absolute in {"moment_weight", "edit_ridge", "l2", "null_threshold"}:
        assert published or absolute not in values


def test_the_defaults_of_the_papers() -> None:
    """Layers, steps, step, clamp, weight decay and λ of each published configuration."""
    table = {
        ("rome", "gpt2-xl"): ((17,), 20, 0.5, 4.0, 0.5, None),
        ("rome", "gpt-j-6b"): ((5,), 20, 0.5, 4.0, 0.5, None),
        ("rome", "llama-3-8b"): ((5,), 25, 0.5, 4.0, 1e-3, None),
        ("memit", "gpt2-xl"): ((13, 14, 15, 16, 17), 20, 0.5, 0.75, 0.5, 20_000.0),
        ("memit", "gpt-j-6b"): ((3, 4, 5, 6, 7, 8), 25, 0.5, 0.75, 0.5, 15_000.0),
        ("memit", "llama-3-8b"): ((4, 5, 6, 7, 8), 25, 0.1, 0.75, 0.5, 15_000.0),
        ("emmet", "gpt2-xl"): ((17,), 20, 0.5, 0.75, 0.5, 1000.0),
        ("emmet", "gpt-j-6b"): ((5,), 25, 0.5, 0.75, 0.5, 1.0),
        ("alphaedit", "gpt2-xl"): ((13, 14, 15, 16, 17), 20, 0.5, 0.75, 0.5, None),
        ("alphaedit", "gpt-j-6b"): ((3, 4, 5, 6, 7, 8), 25, 0.5, 0.75, 0.5, None),
        ("alphaedit", "llama-3-8b"): ((4, 5, 6, 7, 8), 25, 0.1, 0.75, 0.5, None),
    }
    for (method, model), (layers, steps, v_lr, clamp, decay, weight) in table.items():
        found = hyperparameters(method, model)
        values = [found[key] for key in ("layers", "steps", "v_lr", "clamp", "weight_decay", "kl_factor")]
        assert values == [layers, steps, v_lr, clamp, decay, 0.0625], (method, model)
        assert found.get("moment_weight") == weight
        if method == "alphaedit":
            assert (found["null_threshold"], found["null_floor"], found["l2"]) == (0.02, None, 10.0)
        if method == "emmet":
            assert (found["edit_ridge"], found["shift"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt2-xl", "gpt2-xl"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("./hugging_cache/GPT2_XL/", "gpt2-xl"),
        ("C:\\models\\gpt2-xl", "gpt2-xl"),
        ("EleutherAI/gpt-j-6B", "gpt-j-6b"),
        ("EleutherAI_gpt-j-6B", "gpt-j-6b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("Llama3-8B", "llama-3-8b"),
        ("openai-community/gpt2", "gpt2"),
        ("gpt-2", "gpt2"),
    ],
)
def test_models_by_any_of_their_names(name: str, model: str) -> None:
    assert hyperparameters("memit", name) == hyperparameters("memit", model)


def test_other_models_and_methods_are_told() -> None:
    assert hyperparameters("alphaedit", "meta-llama/Llama-3.1-8B") == hyperparameters("alphaedit", "llama-3-8b")
    for name in ("distilgpt2", "meta-llama/Llama-3.1-8B", "llama-38b", ""):
        with pytest.raises(
            WeightsmithError, match=r"no hyper-parameters of memit are shipped for .* known: facts, gpt-j"
        ):
            hyperparameters("memit", name)
    with pytest.raises(WeightsmithError, match=r"'org/gpt2-x': did you mean 'gpt2-xl'\?"):
        hyperparameters("memit", "org/gpt2-x")
    with pytest.raises(WeightsmithError, match=r"shipped for 'mmeit': did you mean 'memit'\?"):
        hyperparameters("mmeit", "gpt2-xl")


def test_easyedit(tmp_path: Path) -> None:
    """Its file as text, with numbers that YAML reads as texts."""
    method, values, notes = read_hyperparameters(written(tmp_path / "gpt2-xl.yaml", ROME))
    assert method == "rome"
    assert values == {
        "layers": (17,),
        "steps": 20,
        "v_lr": 0.5,
        "weight_decay": 1e-3,
        "clamp": 4.0,
        "kl_factor": 0.0625,
        "prefix_lengths": ((5, 10), (10, 10)),
        "component": "mlp.value",
        "lookup": "subject_last",
        "stop_loss": 0.05,
        "rounds": 1,
    }
    assert type(values["clamp"]) is float
    make_editor(method, **values)
    for told in (
        "v_loss_layer 47 is not followed: the loss is read at the model's last layer",
        "mom2_adjustment False is not followed: the update is measured by the preserved keys' moment",
    ):
        assert told in notes
    assert any(note.startswith("mom2_n_samples 100000 is not followed: ") for note in notes)
    (unread,) = (note for note in notes if note.startswith("not read: "))
    assert "stats_dir" in unread
    assert "layers" not in unread
    assert "as the published code has it: stop_loss 0.05, rounds 1" in notes


def test_the_same_as_json(tmp_path: Path) -> None:
    as_yaml = read_hyperparameters(written(tmp_path / "a.yaml", ROME))
    assert read_hyperparameters(written(tmp_path / "a.json", easyedit())) == as_yaml


def test_a_repository_of_a_paper(tmp_path: Path) -> None:
    """The folder says what the file is for."""
    method, values, notes = read_hyperparameters(written(tmp_path / "MEMIT" / "gpt-j.json", MEMIT))
    assert method == "memit"
    assert (values["layers"], values["moment_weight"], values["component"]) == ((3, 4, 5), 15_000.0, "mlp.value")
    assert (values["prefix_lengths"], values["rounds"]) == (((10, 5),), 1)
    assert not any("mom2_adjustment False" in note for note in notes)
    with pytest.raises(WeightsmithError, match=r"gpt-j\.json does not say what it is for: add alg_name, or method"):
        read_hyperparameters(written(tmp_path / "other" / "gpt-j.json", MEMIT))


def test_entries_of_one_method(tmp_path: Path) -> None:
    emmet = MEMIT | {"alg_name": "EMMET", "update_norm_lambda": 2, "emmet_lambda": "1e-1"}
    method, values, _ = read_hyperparameters(written(tmp_path / "a.yaml", emmet))
    assert (method, values["moment_weight"], values["shift"], values["edit_ridge"]) == ("emmet", 15_000.0, 2.0, 0.1)

    alphaedit = MEMIT | {"alg_name": "AlphaEdit", "nullspace_threshold": "2e-2", "L2": 10, "P_loc": "./p.pt"}
    method, values, notes = read_hyperparameters(written(tmp_path / "a.yaml", alphaedit))
    assert (method, values["null_threshold"], values["null_floor"], values["l2"]) == ("alphaedit", 0.02, None, 10.0)
    assert "moment_weight" not in values
    assert any(note.startswith("not read: ") and "mom2_update_weight" in note for note in notes)

    assert (
        read_hyperparameters(written(tmp_path / "a.yaml", easyedit(original_implementation=True)))[1]["compat"] is True
    )
    assert read_hyperparameters(written(tmp_path / "a.yaml", easyedit(alg_name="R-ROME")))[0] == "rome"


@pytest.mark.parametrize(
    ("template", "component"),
    [
        ("transformer.h.{}.mlp.c_proj", "mlp.value"),
        ("model.layers.{}.mlp.down_proj", "mlp.value"),
        ("transformer.h.{}.mlp.fc_out", "mlp.value"),
        ("transformer.h.{}.attn.c_proj", "attn.value"),
        ("model.layers.{}.self_attn.o_proj", "attn.value"),
        ("lm_head", "classifier.value"),
    ],
)
def test_linear_maps_by_their_modules(tmp_path: Path, template: str, component: str) -> None:
    path = written(tmp_path / "a.yaml", easyedit(rewrite_module_tmp=template))
    assert read_hyperparameters(path)[1]["component"] == component


@pytest.mark.parametrize(
    ("entry", "value", "agrees"),
    [
        ("enable_prompt_keys", True, False),
        ("enable_random_prefix_keys", False, True),
        ("use_chat_template", True, False),
        ("prob_cutoff", 0.9, 0),
        ("norm_control", 1, 0),
    ],
)
def test_what_is_done_differently_is_noted(tmp_path: Path, entry: str, value: Any, agrees: Any) -> None:
    (note,) = (
        note
        for note in read_hyperparameters(written(tmp_path / "a.yaml", easyedit(**{entry: value})))[2]
        if note.startswith(entry)
    )
    assert note.startswith(f"{entry} {value!r} is not followed: ")
    notes = read_hyperparameters(written(tmp_path / "a.yaml", easyedit(**{entry: agrees})))[2]
    assert not any(entry in note for note in notes)


def names(method: str) -> list[str]:
    return [field.name for field in fields(editors()[method])]


def test_our_own_files(tmp_path: Path) -> None:
    """Every editor's fields, whatever their types."""
    own = {"method": "memit", "model": "mine", "layers": None, "prefix_lengths": [[3, 2]], "margin": 2, "compat": True}
    assert read_hyperparameters(written(tmp_path / "a.yaml", own)) == (
        "memit",
        {"layers": None, "prefix_lengths": ((3, 2),), "margin": 2.0, "compat": True},
        [],
    )
    for method in editors():
        defaults = {name: getattr(make_editor(method), name) for name in names(method)}
        path = written(tmp_path / "a.json", {"method": method} | defaults)
        assert read_hyperparameters(path) == (method, defaults, [])


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (easyedit(v_num_grad_step=3), r"unknown entry 'v_num_grad_step': did you mean 'v_num_grad_steps'\?"),
        (easyedit(steps=3), "unknown entry 'steps'"),
        (easyedit(alg_name="FT"), "is for FT, which is not read: .*known: rome, memit, emmet, alphaedit"),
        (
            easyedit(fact_token="subject_first"),
            "has fact_token 'subject_first', and only 'subject_last' and 'last' is known",
        ),
        (easyedit(layer_selection="random"), "has layer_selection 'random', and only 'all' is known here"),
        (
            easyedit(rewrite_module_tmp="model.layers.{}.mlp.down_porj"),
            r"edits 'model\.layers\.\{\}\.mlp\.down_porj', which is no known linear map: did you mean 'mlp\.down_proj'",
        ),
        (easyedit(rewrite_module_tmp=3), "edits 3, which is no known linear map"),
        (easyedit(layers=17), "has layers 17, which is not a list of whole numbers from 0"),
        (easyedit(layers=[-1]), r"has layers \[-1\], which is not a list of whole numbers from 0"),
        (easyedit(layers=[1.5]), r"has layers \[1\.5\], which is not a list of whole numbers"),
        (easyedit(v_num_grad_steps="many"), "has v_num_grad_steps 'many', which is not a whole number from 0"),
        (easyedit(v_num_grad_steps=True), "has v_num_grad_steps True, which is not a whole number from 0"),
        (easyedit(v_lr=-1), "has v_lr -1, which is not a number from 0"),
        (easyedit(v_lr="nan"), "has v_lr 'nan', which is not a number from 0"),
        (easyedit(kl_factor=10**400), "has kl_factor 1.*, which is not a number from 0"),
        (easyedit(clamp_norm_factor=None), "has clamp_norm_factor None, which is not a number from 0"),
        (easyedit(original_implementation="yes"), "has original_implementation 'yes', which is not true or false"),
        (easyedit(context_template_length_params=[[5, 10, 3]]), "which is not a list of pairs of whole numbers"),
        (easyedit(context_template_length_params=[5, 10]), "which is not a list of pairs of whole numbers"),
        ({"method": "memitt", "layers": [1]}, r"is for the method 'memitt': did you mean 'memit'\?"),
        ({"method": ["memit"], "layers": [1]}, r"is for the method \"\['memit'\]\""),
        ({"method": "memit", "layer": [1]}, r"unknown entry 'layer': did you mean 'layers'\?"),
        ({"method": "memit", "component": 3}, "has component 3, which is not a text"),
        ({"method": "memit", "v_num_grad_steps": 3}, "unknown entry 'v_num_grad_steps'"),
        ([1], "holds no hyper-parameters"),
        ("", "holds no hyper-parameters"),
        ("{a: [", r"is no YAML or JSON file \(.+\): correct it"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, entries: Any, told: str) -> None:
    path = written(tmp_path / "a.yaml", entries)
    with pytest.raises(WeightsmithError, match=told) as raised:
        read_hyperparameters(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(WeightsmithError, match="cannot be read: give a YAML or JSON file of hyper-parameters"):
            read_hyperparameters(path)
    for name, content in (
        ("a.json", b"{"),
        ("a.yaml", b"\xff\xfe\x00"),
        ("b.yaml", b"a: \x00"),
        ("c.json", b"[" * 200_000),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsmithError, match="is no YAML or JSON file"):
            read_hyperparameters(tmp_path / name)
