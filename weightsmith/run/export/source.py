"""What is exported: a model and the edit for it, found in a run folder or given as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from weightsmith import report
from weightsmith.data.facts import read_facts
from weightsmith.delta import Delta, weights_hash
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import read_csv, user_path
from weightsmith.models import Model, load, registered_by, wrapper_of
from weightsmith.models.preprocess import Features
from weightsmith.run.cards import classifier_card, facts_card, licence_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import check_device
from weightsmith.run.knowledge.fact_run import of_auto
from weightsmith.run.options.correct import RunOptions
from weightsmith.run.options.export import ExportOptions
from weightsmith.run.options.files import read_yaml
from weightsmith.run.options.folder import FolderOptions
from weightsmith.run.options.knowledge import EditOptions


@dataclass(frozen=True, eq=False)
class Source:
    """What is exported.

    Attributes:
        model: without the edit.
        base: what the edit is for: a path or hub name, to write into an adapter.
        delta: the edit; None where the model goes as it is.
        told: what that is, in words.
        run: where a run lies, None for a model alone; options: what that run was asked.
    """

    model: Model
    base: str
    delta: Delta | None
    told: str
    run: RunFolder | None = None
    options: RunOptions | EditOptions | None = None

    def card(self, licence: str) -> str:
        """The model card with the edit, as the run's tables tell it; of a model alone its own, or one that says little."""
        if self.run is None:
            return (_own_card(self.base) if self.delta is None and not licence else "") or self._bare_card(licence)
        method = self.delta.info.get("method") if self.delta is not None else None
        if isinstance(self.options, EditOptions):
            rows = _rows(self.run.results / "knowledge_report.csv", method)
            path = self.run.results / "requests.json"
            requests = read_facts(path) if path.is_file() else []
            return facts_card(self.run, self.options, self.delta, requests, rows, licence)
        assert self.options is not None
        rows = _rows(self.run.results / "evaluation_report.csv", method)
        return classifier_card(self.run, self.options, self.model, self.delta, rows, licence)

    def _bare_card(self, licence: str) -> str:
        """The card of a model of which no run tells."""
        model, delta = self.model, self.delta
        edits = [] if delta is None else [report.edit_entry(delta.info, delta.norm(), model.class_names)]
        known: dict[str, object] = {"weights before the edit" if edits else "weights": weights_hash(model)}
        named: dict[str, Any] = {
            "title": Path(self.base).name,
            "base_model": self.base,
            "licence": licence or licence_of(self.base),
        }
        if model.family.reads == "text":
            return report.language_card(**named, edits=edits, provenance=known)
        return report.model_card(
            **named,
            class_names=model.class_names,
            channels=model.preprocess.channels,
            features=model.preprocess.channels if isinstance(model.preprocess, Features) else 0,
            edits=edits,
            provenance=known,
            needs=wrapper_of(model),
            registered_by=registered_by(model),
        )


def source_of(options: ExportOptions) -> Source:
    """Find what the options name.

    Raises:
        WeightsmithError: no such run or model, an edit that it has not, or deltas for other weights.
    """
    if not options.source:
        raise WeightsmithError(
            f"weightsmith export {options.form} needs a run or a model: weightsmith export {options.form} RUN --out PATH"
        )
    path, device = user_path(options.source), check_device(options.device)
    asked = _asked(path)
    if asked is None:
        model = load(options.source, device=device)
        return _with_files(Source(model, options.source, None, f"{options.source} as it is"), options)
    folder = RunFolder.named(asked, path.name)
    if isinstance(asked, EditOptions):
        base = asked.model
        if asked.model == "auto":
            model, _ = of_auto(FolderOptions(runs_dir=options.runs_dir, cache_dir=options.cache_dir, device=device))
            base = model.name
        else:
            model = load(asked.model, device=device)
    else:
        base = str(path / "model")
        model = load(path, device=device)
    plain = Source(model, base, None, f"the trained model of {path}, without an edit", folder, asked)
    if options.delta:
        return _with_files(plain, options)
    deltas = _deltas(path)
    if options.method is not None and options.method not in deltas:
        listing = did_you_mean(options.method, deltas) if deltas else "it has none yet"
        raise WeightsmithError(f"--method {options.method} made no edit in {path}: {listing}")
    if not deltas:
        return plain
    method = options.method or next(iter(deltas))
    deltas[method].check(model)
    told = f"the edit of {method} in {path}" + (f", of {', '.join(deltas)}" if len(deltas) > 1 else "")
    return Source(model, base, deltas[method], told, folder, asked)


def _with_files(source: Source, options: ExportOptions) -> Source:
    """With the deltas of `--delta`, added up."""
    if options.method is not None:
        raise WeightsmithError("--method chooses among the edits of a run: leave it out with --delta or a model alone")
    if not options.delta:
        return source
    deltas = [Delta.load(user_path(path)) for path in options.delta]
    for path, delta in zip(options.delta, deltas, strict=True):
        try:
            delta.check(source.model)
        except WeightsmithError as error:
            raise WeightsmithError(f"--delta {path}: {error}") from error
    whole = deltas[0]
    for delta in deltas[1:]:
        whole = whole + delta
    told = f"{', '.join(Path(path).name for path in options.delta)} on {options.source}"
    return Source(source.model, source.base, whole, told, source.run, source.options)


def _asked(path: Path) -> RunOptions | EditOptions | None:
    """What the run in a folder was asked; None where the folder is no run of `run` or `edit`, and may be a model."""
    stored = path / "config.yaml"
    if not stored.is_file():
        return None
    try:
        entries = yaml.safe_load(stored.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsmithError(f"{stored} cannot be read, so nobody knows what run this is: restore it") from error
    names = set(entries) if isinstance(entries, dict) else set()
    if {"edit_method", "preserve"} <= names:
        return read_yaml(stored, EditOptions())
    if {"edit_method", "stage"} <= names:
        return read_yaml(stored, RunOptions())
    inside = sorted(str(found.parent) for found in path.glob("*models/*/config.json"))
    if inside and not (path / "model").is_dir():
        raise WeightsmithError(f"{path} holds several models: name one of them, {inside[0]} say")
    return None


def _deltas(path: Path) -> dict[str, Delta]:
    """Method → delta of a run, the first method's first."""
    found: dict[str, Delta] = {}
    for file in sorted(path.glob("delta*.safetensors"), key=lambda file: (file.stem != "delta", file.name)):
        delta = Delta.load(file)
        found[str(delta.info.get("method") or file.stem.removeprefix("delta_"))] = delta
    return found


def _own_card(base: str) -> str:
    """The card that lies in a model's folder, "" where none does."""
    for place in (user_path(base), user_path(base) / "model"):
        if (place / "README.md").is_file():
            return (place / "README.md").read_text(encoding="utf-8")
    return ""


def _rows(path: Path, method: object) -> Sequence[dict[str, str]]:
    return [row for row in read_csv(path) if row.get("method") == method] if path.is_file() else []
