"""What is exported: a model and the edit for it, found in a run folder or given as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from weightsmith.data.facts import read_facts
from weightsmith.delta import Delta
from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import read_csv, user_path
from weightsmith.models import Model, load
from weightsmith.run.cards import classifier_card, facts_card
from weightsmith.run.fact_run import of_auto
from weightsmith.run.folder import RunFolder
from weightsmith.run.job import check_device
from weightsmith.run.options import EditOptions, ExportOptions, FolderOptions, RunOptions, read_yaml


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
        """The model card with the edit, as the run's tables tell it; "" for a model alone."""
        if self.run is None:
            return ""
        method = self.delta.info.get("method") if self.delta is not None else None
        if isinstance(self.options, EditOptions):
            rows = _rows(self.run.results / "knowledge_report.csv", method)
            path = self.run.results / "requests.json"
            requests = read_facts(path) if path.is_file() else []
            return facts_card(self.run, self.options, self.delta, requests, rows, licence)
        assert self.options is not None
        rows = _rows(self.run.results / "evaluation_report.csv", method)
        return classifier_card(self.run, self.options, self.model, self.delta, rows, licence)


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


def _rows(path: Path, method: object) -> Sequence[dict[str, str]]:
    return [row for row in read_csv(path) if row.get("method") == method] if path.is_file() else []
