"""`weightsmith facts`: the fact world and the small GPT-2 that knows it, in a run folder; and how others find them again."""

from __future__ import annotations

import json
import logging

from filelock import FileLock
from rich import box
from rich.table import Table

from weightsmith.data.factworld import FactWorld, fact_world
from weightsmith.delta import weights_hash
from weightsmith.files import default_cache_dir, explained, user_path
from weightsmith.models import Model, load
from weightsmith.run.job import check_device
from weightsmith.run.knowledge.facts import fact_model, world_of
from weightsmith.run.options.folder import FolderOptions
from weightsmith.run.options.knowledge import FactsOptions
from weightsmith.run.outcome import Outcome
from weightsmith.run.session import Kin, session

_log = logging.getLogger(__name__)

FACTS = "facts"
"""The name of the run, of the data set, and of the folder in the cache."""

KIN = Kin(
    commands=("facts",),
    called="facts",
    another="another command",
    results=(),
    inside=("facts.json", "recall.json", "training_metrics.csv", "checkpoint.pt"),
    worth=("checkpoint.pt",),
)


def facts(options: FactsOptions) -> Outcome:
    """Make the fact world and train its model.

    Raises:
        WeightsmithError: a run that exists without `resume` or `overwrite`, or was made with another seed; a device that
            this machine has not.
    """
    device = check_device(options.device)
    with session(options, "facts", KIN, FACTS) as folder:
        model, world = fact_model(folder.path, options.seed, options.resume, device)
        folder.write_env(weights=weights_hash(model), seed=options.seed, world=world.fingerprint(), tables=world.tables)
        recalled = json.loads((folder.path / "recall.json").read_text(encoding="utf-8"))
    table = Table(title="Share of the facts that the model recalls, with 95% intervals", box=box.SIMPLE_HEAD)
    table.add_column("relation", no_wrap=True)
    for heading in ("wordings that it read", "wordings kept aside", "facts"):
        table.add_column(heading, justify="right")
    for relation in recalled["trained"]:
        both = [recalled[name][relation] for name in ("trained", "kept_aside")]
        shown = [f"{one['value']:.3f} \\[{one['low']:.3f}, {one['high']:.3f}]" for one in both]
        table.add_row(relation, *shown, str(both[0]["n"]))
    return Outcome(
        command="facts",
        folder=folder.path,
        figures={"recall": recalled},
        shown=[table],
        closing=f"holds everything; {folder.path}/model loads in transformers",
    )


def of_auto(options: FolderOptions) -> tuple[Model, FactWorld]:
    """The small GPT-2 of the fact world and that world: of the run `facts` where there is one, else made in the cache."""
    device = check_device(options.device)
    made = user_path(options.runs_dir) / FACTS
    world = world_of(made)
    if world is not None and world.fingerprint() == fact_world(0).fingerprint():
        return load(made, device=device), world
    cache = user_path(options.cache_dir) if options.cache_dir else default_cache_dir()
    place = cache / "fact-model"
    with explained(place):
        place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):  # another process may be training it
        _log.info("the model is the small GPT-2 of the fact world, kept in %s", place)
        return fact_model(place, 0, resume=True, device=device)
