"""The fact world and a small GPT-2 that knows it: made in a folder once, opened from it afterwards."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.data.factworld import Fact, FactWorld, fact_world
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate.generation import generate
from weightsmith.files import DAMAGED, cause_of, write_csv, write_json
from weightsmith.measure.intervals import Interval, shares
from weightsmith.models import Model, create_language, load, presets, save
from weightsmith.request import Probe
from weightsmith.train import LanguageOptions, fit_language, train_tokenizer

_log = logging.getLogger(__name__)
PRESET = "facts"


def fact_model(folder: Path, seed: int = 0, resume: bool = False, device: str = "cpu") -> tuple[Model, FactWorld]:
    """The fact world of a seed, and the small GPT-2 that was trained on it: made in `folder`, or loaded from there.

    Left in the folder are `model/` (Hugging Face layout, with its tokenizer), `facts.json` (the world), the training's
    `checkpoint.pt` and `training_metrics.csv`, and `recall.json`, the share of facts that the model recalls.

    Measured for seed 0 alone (1.53 million parameters, 2,710 facts, 12 epochs of 234,000 tokens, two threads): 525 seconds
    of processor time, half of which is an estimate for two free cores; on a machine shared with many jobs it took 17
    minutes. Recall is 99.9% in trained wordings and 99.0% (98.8 to 99.3) in those kept aside, least for regions: 95.2%.

    Args:
        seed: of the world, of the fresh weights and of the order of the texts.
        resume: go on with a training that was stopped.
        device: on which it is trained, and returned.

    Raises:
        WeightsmithError: the folder holds a training of another world or recipe, a damaged one, or an unfinished one
            without `resume`.
    """
    return build(folder, fact_world(seed), presets("text")[PRESET], resume, device)


def build(
    folder: Path, world: FactWorld, recipe: Mapping[str, Any], resume: bool = False, device: str = "cpu"
) -> tuple[Model, FactWorld]:
    """`fact_model` of any world.

    Args:
        recipe: entries of the network, its `vocabulary` and its `training`, as in a preset.
    """
    texts = world.texts()
    tokenizer = train_tokenizer(texts, recipe["vocabulary"])
    model = create_language(recipe, tokenizer, world.seed)
    model.module.to(device)
    options = LanguageOptions(seed=world.seed, **recipe["training"])
    checkpoint, place, recalled = (folder / name for name in ("checkpoint.pt", "model", "recall.json"))
    if not checkpoint.exists():
        _log.info("training a small GPT-2 on %d facts", len(world.facts))
    history = fit_language(model, texts, options, checkpoint, resume=resume)
    # A finished training may have been stopped before all of it was written; recall.json is the last.
    if not (history.skipped and recalled.exists() and (place / "config.json").exists()):
        recalled.unlink(missing_ok=True)
        save(model, place)
        write_json(folder / "facts.json", _world_entries(world))
        write_csv(folder / "training_metrics.csv", history.rows)
        write_json(recalled, recall_entries(model, world))
    return load(place, device=device), world


def world_of(folder: Path) -> FactWorld | None:
    """The fact world beside a model, given as its run's folder or as a folder in it; None where there is none.

    Raises:
        WeightsmithError: `facts.json` is damaged, or was changed.
    """
    place = folder.parent if folder.name in ("model", "edited") else folder
    path = place / "facts.json"
    if not (path.is_file() and (place / "recall.json").is_file()):  # any other facts may bear that name
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        world = FactWorld.from_json(entries)
        whole = world.fingerprint() == entries["fingerprint"]
    except DAMAGED as error:
        raise WeightsmithError(
            f"{path} is damaged ({cause_of(error)}): make the fact world's model anew with `weightsmith facts`"
        ) from error
    if not whole:
        raise WeightsmithError(
            f"{path} was changed since it was made: make the fact world's model anew with `weightsmith facts`"
        )
    return world


def _world_entries(world: FactWorld) -> dict[str, Any]:
    """The entries of `facts.json`: the world, its fingerprint, and the prompts that are kept aside, filled in."""
    probes = [
        {"fact": fact.name, "prompt": probe.prompt, "answer": probe.answer}
        for fact, probe in world.probes(kept_aside=True)
    ]
    return {"fingerprint": world.fingerprint(), **world.to_json(), "kept_aside": probes}


def recall_entries(model: Model, world: FactWorld) -> dict[str, Any]:
    """The entries of `recall.json`: recall in wordings that were trained, and in those kept aside, by relation and of all."""
    return {
        name: {relation: asdict(share) for relation, share in recall(model, world.probes(kept_aside=kept)).items()}
        for name, kept in (("trained", False), ("kept_aside", True))
    }


def recall(model: Model, probes: Sequence[tuple[Fact, Probe]]) -> dict[str, Interval]:
    """Relation → share of the probes of a fact that the model answers, mean over facts; "all" is of all relations.

    Answered is a probe when the most probable tokens, written one after another, are all those of the object. The wordings
    of a fact are not independent, so the 95% intervals are over facts: bootstrap, Wilson's where all facts are recalled.
    """
    wanted = [model.tokenize.continued(probe.prompt, probe.answer) for _, probe in probes]
    prompts, answers = [ids[:-n] for ids, n in wanted], [ids[-n:] for ids, n in wanted]
    written = generate(model, prompts, [len(answer) for answer in answers], title="recalling")
    right: dict[Fact, list[bool]] = {}
    for (fact, _), words, answer in zip(probes, written, answers, strict=True):
        right.setdefault(fact, []).append(words == answer)
    by_relation: dict[str, list[float]] = {"all": [float(np.mean(hits)) for hits in right.values()]}
    for fact, hits in right.items():
        by_relation.setdefault(fact.relation, []).append(float(np.mean(hits)))
    return {name: shares(np.array(values)[:, None])[0] for name, values in by_relation.items()}
