"""A very small fact world and the model that knows it: made, stopped, gone on with, opened again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from weightsmith.data.factworld import FactWorld, fact_world
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model, presets
from weightsmith.run.knowledge import facts as room
from weightsmith.run.knowledge.facts import build, recall, world_of
from weightsmith.train.loop import Training

TRAINING = {"epochs": 2, "batch_size": 8, "lr": 3e-3, "length": 48}
RECIPE: dict[str, Any] = {
    "model_type": "gpt2", "n_positions": 48, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocabulary": 500,
    "training": TRAINING,
}  # fmt: skip


@pytest.fixture(scope="module")
def world() -> FactWorld:
    return fact_world(seed=3, people=4, places=3)


@pytest.fixture(scope="module")
def made(world: FactWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    folder = tmp_path_factory.mktemp("facts") / "run"
    return folder, build(folder, world, RECIPE)[0]


def test_the_folder_holds_world_model_metrics_and_recall(made: tuple[Path, Model], world: FactWorld) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, model = made
    entries = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    assert entries["fingerprint"] == world.fingerprint()
    assert len(entries["kept_aside"]) == 3 * len(world.facts)
    with (folder / "training_metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["epoch", "train_loss", "train_accuracy", "lr", "seconds"]
    recalled = json.loads((folder / "recall.json").read_text(encoding="utf-8"))
    for kind in ("trained", "kept_aside"):
        assert set(recalled[kind]) == {"all", *world.relations}
        assert recalled[kind]["all"]["n"] == len(world.facts)
        assert all(0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1 for entry in recalled[kind].values())
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder / "model")("Paris lies in")["input_ids"]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(folder / "model")(ids).logits
        assert torch.equal(plain, model.token_logits(ids))


def test_it_is_opened_and_not_made_again(
    made: tuple[Path, Model], world: FactWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = made
    monkeypatch.setattr(room, "save", lambda *_: pytest.fail("the model is there"))
    monkeypatch.setattr(Training, "_step", lambda *_: pytest.fail("the training is finished"))
    again, there = build(folder, world, RECIPE)
    assert again.fingerprint() == model.fingerprint()
    assert there is world


def test_stopped_anywhere_it_goes_on_to_the_same_model(
    made: tuple[Path, Model], world: FactWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # After the first epoch's checkpoint, then while the files are written.
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_told", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(folder, world, RECIPE)
    with pytest.raises(WeightsmithError, match="--resume"):
        build(folder, world, RECIPE)
    with monkeypatch.context() as patched:
        patched.setattr(room, "write_csv", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(folder, world, RECIPE, resume=True)
    assert not (folder / "recall.json").exists()
    model, _ = build(folder, world, RECIPE)
    assert weights_hash(model) == weights_hash(made[1])
    for name in ("facts.json", "recall.json"):
        assert (folder / name).read_bytes() == (made[0] / name).read_bytes()


def test_another_world_or_recipe_is_refused(made: tuple[Path, Model], world: FactWorld) -> None:
    folder, _ = made
    with pytest.raises(WeightsmithError, match="other texts"):
        build(folder, fact_world(seed=4, people=4, places=3), RECIPE)
    with pytest.raises(WeightsmithError, match=r"lr 0\.003 instead of 0\.001"):
        build(folder, world, RECIPE | {"training": TRAINING | {"lr": 1e-3}})


def test_recall_counts_answers_that_are_right_to_the_last_token(made: tuple[Path, Model], world: FactWorld) -> None:
    """Against one prompt at a time, written token by token."""
    _, model = made
    probes = world.probes(kept_aside=False)[::3]
    right: dict[str, list[bool]] = {}
    for fact, probe in probes:
        ids, n = model.tokenize.continued(probe.prompt, probe.answer)
        written = list(ids[:-n])
        for _ in range(n):
            with torch.no_grad():
                written.append(int(model.token_logits(torch.tensor([written]))[0, -1].argmax()))
        right.setdefault(fact.name, []).append(tuple(written) == ids)
    shares = [sum(hits) / len(hits) for hits in right.values()]
    found = recall(model, probes)["all"]
    assert found.value == pytest.approx(sum(shares) / len(shares))
    assert found.n == len(shares)


def test_the_world_of_a_folder_is_read_back(made: tuple[Path, Model], world: FactWorld, tmp_path: Path) -> None:
    folder, _ = made
    for place in (folder, folder / "model"):
        there = world_of(place)
        assert there is not None
        assert there.facts == world.facts
        assert there.texts() == world.texts()
    assert world_of(tmp_path) is None
    assert world_of(Path("nobody/nothing")) is None
    text = (folder / "facts.json").read_text(encoding="utf-8")
    for damaged, told in (
        (text[:-9], "damaged"),
        ("[]", "damaged"),
        (text.replace('"seed": 3', '"seed": 4'), "was changed since"),
    ):
        (tmp_path / "recall.json").write_text("{}")
        (tmp_path / "facts.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(WeightsmithError, match=told):
            world_of(tmp_path)


def test_the_shipped_recipe_is_small_enough_for_every_probe() -> None:
    from weightsmith.models import create_language
    from weightsmith.train import train_tokenizer

    recipe, world = presets("text")[room.PRESET], fact_world()
    model = create_language(room.PRESET, train_tokenizer(world.texts(), recipe["vocabulary"]), 0)
    assert sum(parameter.numel() for parameter in model.module.parameters()) < 10e6
    requests = world.requests(300)
    prompts = [text for request in requests for text in (request.prompt, *request.paraphrases)]
    longest = max(len(model.tokenize(prompt)) for prompt in prompts)
    assert longest + 16 < model.n_tokens, "room for an answer behind a sentence in front"
    for request in requests:
        for text in (request.prompt, *request.paraphrases):
            first, end = model.tokenize.subject(text, request.subject)
            assert model.tokenize(text)[first:end] == model.tokenize(request.subject)
