"""A name that is nearly right is refused with the one that was meant, whatever it is the name of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import weightsmith as ws
from weightsmith.circuit import Unit
from weightsmith.data.corruptions import corruption
from weightsmith.data.folder import folder
from weightsmith.data.npz import open_npz
from weightsmith.edge import Node
from weightsmith.errors import WeightsmithError, perhaps
from weightsmith.locate.plan import targets
from weightsmith.merge import create, merge
from weightsmith.merge.checkpoint import Checkpoint
from weightsmith.merge.heads import HeadPolicy
from weightsmith.merge.vectors.walk import shared
from weightsmith.models.family import Family, families
from weightsmith.site import Site
from weightsmith.train.tracking import check_trackers


def _network(tiny_model) -> ws.Model:
    return tiny_model("vit", classes=10)


def _tensors(place: Path) -> Path:
    save_file({"block.weight": torch.ones(2, 2)}, place / "w.safetensors")
    return place / "w.safetensors"


def _without(place: Path, tiny_model) -> None:
    with Checkpoint.open(str(_tensors(place))) as one:
        shared(one, one, ["blok.weight"])


def _class(place: Path, tiny_model) -> None:
    from PIL import Image

    for part, name in (("train", "birds"), ("train", "cars"), ("val", "brids")):
        (place / part / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(place / part / name / "one.png")
    folder(place, 8)


def _array(place: Path, tiny_model) -> None:
    np.savez(place / "x.npz", train_images=np.zeros((2, 8, 8), np.uint8), train_lables=np.zeros((2, 1), np.uint8))
    open_npz(place / "x.npz", place / "cache")


def _module(place: Path, tiny_model) -> None:
    from dataclasses import replace

    family: Family = families()["vit"]
    replace(family, classifier="clasifier").check(_network(tiny_model).module)


REFUSED: dict[str, tuple[Callable[[Path, Callable[..., ws.Model]], object], str]] = {
    "site": (lambda place, tiny_model: Site.parse("resid.otu[1]"), "resid.out"),
    "tokens": (lambda place, tiny_model: Site("resid.out", 1, tokens="patchs"), "patches"),
    "unit": (lambda place, tiny_model: Unit.parse("nuerons[3,0-15]"), "neurons"),
    "part of a network": (lambda place, tiny_model: Node.parse("hed[0,1]"), "head"),
    "severed path": (lambda place, tiny_model: targets(_network(tiny_model), [], 1, sever=["attn.otu"]), "attn.out"),
    "layer's map": (lambda place, tiny_model: _network(tiny_model).linear("mlp.vlaue", 0), "mlp.value"),
    "module": (_module, "classifier"),
    "tensor": (lambda place, tiny_model: _opened(place, "block.wieght"), "block.weight"),
    "tensor left out": (_without, "block.weight"),
    "class": (_class, "birds"),
    "array": (_array, "train_lables"),
    "part": (lambda place, tiny_model: ws.data.digits().part("trian"), "train"),
    "data set": (lambda place, tiny_model: ws.data.sources.open_data("digist"), "digits"),
    "model": (lambda place, tiny_model: ws.models.create("digtis", ["a"], 0, 1), "digits"),
    "editor": (lambda place, tiny_model: ws.edit.make_editor("alphaedti"), "alphaedit"),
    "corruption": (lambda place, tiny_model: corruption("blurr"), "blur"),
    "merge": (lambda place, tiny_model: create("tise"), "ties"),
    "merge's option": (lambda place, tiny_model: create("ties", densty=0.2), "--density"),
    "merge's head": (lambda place, tiny_model: HeadPolicy.parse("bsae", 1), "base"),
    "dtype": (lambda place, tiny_model: _merged(place, "flaot16"), "float16"),
    "tracker": (lambda place, tiny_model: check_trackers(["tensorbaord"]), "tensorboard"),
}
"""What a name is of → (how one that is nearly right is asked for, what is proposed)."""


def _opened(place: Path, name: str) -> None:
    with Checkpoint.open(str(_tensors(place))) as one:
        one.shape(name)


def _merged(place: Path, dtype: str) -> None:
    source = str(_tensors(place))
    merge(create("linear"), source, [source], place / "out", dtype=dtype)


@pytest.mark.parametrize("what", REFUSED)
def test_what_was_meant_is_proposed(what: str, tiny_model, tmp_path: Path) -> None:
    asked, meant = REFUSED[what]
    with pytest.raises(WeightsmithError, match=rf"did you mean '{meant}'\?"):
        asked(tmp_path, tiny_model)


TYPED = {
    "export onxn runs/x --out y": "form onxn is unknown: did you mean 'onnx'",
    "run --stage trian": "'train'",
    "run --layers-from {place}/effects.safetensosr --edit-method alphaedit --data-path digits": "effects.safetensors",
    "locate trace --part vla": "'val'",
    "edit --hparams {place}/memti.yaml --edit-method head": "memit.yaml",
    "baseline --data-path digits --tracker tensorbaord": "'tensorboard'",
    "run --data-path digits --held-out-from tset": "'test'",
}


@pytest.mark.parametrize("words", TYPED)
def test_what_was_meant_is_proposed_on_the_command_line(weightsmith, tmp_path: Path, words: str) -> None:
    for name in ("effects.safetensors", "memit.yaml"):
        (tmp_path / name).touch()
    flags = [] if words.startswith("export") else ["--runs-dir", tmp_path / "runs"]
    seen = weightsmith(*words.format(place=tmp_path).split(), *flags)
    assert seen.status in (1, 2)
    assert "did you mean" in seen.err
    assert TYPED[words] in seen.err


def test_nothing_is_proposed_where_nothing_is_near() -> None:
    assert perhaps("zebra", ["birds"]) == perhaps("birds", ["birds"]) == ""
