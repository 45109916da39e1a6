"""What a run of `weightsmith compress` keeps of each smaller model beside its weights."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.circuit import Kept, Shape
from weightsmith.errors import WeightsmithError
from weightsmith.files import DAMAGED
from weightsmith.measure import Interval
from weightsmith.run.cells import stored

_log = logging.getLogger(__name__)

OPTIMIZED, RECORD = "optimized_models", "kept.json"
_FORMAT = "weightsmith-compressed-1"


@dataclass(frozen=True)
class Optimized:
    """What is known of one smaller model.

    Attributes:
        name: of its folder; method, goal: what was asked for.
        kept: of the baseline's heads and neurons, whose sizes are `whole`.
        kl: mean KL divergence from the baseline in nats on the search's judging images, before any recovery.
        info: what the search says of itself.
        recovery: of the distillation: epochs, best_epoch, and validation accuracy and KL before and after; empty without.
        key: SHA-256 of everything that the model depends on; baseline: the fingerprint of what it was made from.
        settings: the options that it was made with.
    """

    name: str
    method: str
    goal: float
    kept: Kept
    whole: Shape
    kl: Interval
    info: dict[str, Any]
    key: str
    baseline: str
    settings: dict[str, Any]
    recovery: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values, as `kept.json` has them."""
        entries = {name: getattr(self, name) for name in ("name", "method", "goal", "info", "recovery", "settings")}
        values = {"kept": self.kept.to_json(), "whole": asdict(self.whole), "kl": asdict(self.kl)}
        told = {"format": _FORMAT, **entries, **values, "key": self.key, "baseline": self.baseline}
        found: dict[str, Any] = stored(json.loads(json.dumps(told)))
        return found

    @classmethod
    def load(cls, place: Path) -> Optimized | None:
        """What a model's folder says; None where there is no finished model, or its record is damaged."""
        if not (place / "config.json").is_file() or not (place / RECORD).is_file():
            return None
        try:
            entries = json.loads((place / RECORD).read_text(encoding="utf-8"))
            if entries.pop("format") != _FORMAT:
                raise ValueError("another format")
            whole: dict[str, Any] = {
                name: tuple(one) if isinstance(one, list) else one for name, one in entries["whole"].items()
            }
            numbers: dict[str, Any] = {name: math.nan if one is None else one for name, one in entries["kl"].items()}
            values = {"kept": Kept.from_json(entries["kept"]), "whole": Shape(**whole), "kl": Interval(**numbers)}
            return cls(**entries | values)
        except (*DAMAGED, WeightsmithError) as error:
            _log.warning("%s is damaged: %s", place / RECORD, error)
            return None


def notes_of(found: Optimized) -> list[str]:
    """What was removed and what that did, in sentences."""
    whole, kept = found.whole, found.kept
    left = kept.shape(whole)
    kl = found.kl
    then = "nothing was fine-tuned."
    if found.recovery:
        then = f"{found.recovery['epochs']} epochs of distillation from the whole model followed."
    told = [
        f"Of {sum(whole.heads)} heads {sum(left.heads)} stay, of {sum(whole.neurons):,} MLP neurons {sum(left.neurons):,}, of "
        f"{len(whole.heads)} blocks {len(left.heads)}; {then}",
        f"Mean KL divergence from the whole model on {kl.n} images that judged the search: {kl.value:.4f} nats (95% interval "
        f"{kl.low:.4f} to {kl.high:.4f}).",
        "Plain transformers loads the folder with trust_remote_code=True, for it holds the code of its architecture.",
    ]
    macs, before = found.info.get("macs"), found.info.get("macs_whole")
    if isinstance(macs, int | float) and isinstance(before, int | float) and before:
        told.insert(1, f"It takes {macs / before:.1%} of the multiplications: {macs:,} of {before:,} an image.")
    return told


def finished(run: Path, baseline: str, notes: list[str]) -> dict[str, Optimized]:
    """Path → every finished model of a run's folder, by method and goal; those of another baseline are told and left out."""
    found: dict[str, Optimized] = {}
    root = run / OPTIMIZED
    for place in sorted(root.iterdir()) if root.is_dir() else []:
        if place.name.startswith(".") or not place.is_dir():
            continue  # what was being written when a process was killed
        one = Optimized.load(place)
        if one is None:
            notes.append(f"Left out: {place.name} is not finished, or its {RECORD} is damaged.")
        elif one.baseline != baseline:
            notes.append(f"Left out: {place.name} was made from another baseline.")
        else:
            found[str(place)] = one
    return dict(sorted(found.items(), key=lambda item: (item[1].method, item[1].goal)))
