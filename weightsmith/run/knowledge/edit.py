"""`weightsmith edit`: facts of a language model, edited and measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from weightsmith.adapters import transposed_weights
from weightsmith.data.facts import write_facts
from weightsmith.delta import Delta, weights_hash
from weightsmith.edit import Editor, editors, make_editor
from weightsmith.edit.hyperparameters import METHODS as WITH_HPARAMS
from weightsmith.edit.hyperparameters import hyperparameters, read_hyperparameters
from weightsmith.edit.lora_native import LoRAOptions, adapted
from weightsmith.edit.reading import without_repeats
from weightsmith.errors import WeightsmithError, did_you_mean, near_path
from weightsmith.evaluate import KnowledgeAnswers, KnowledgeReport, answer, knowledge
from weightsmith.files import user_path, write_csv, write_json
from weightsmith.models import Model, save
from weightsmith.request import TextRequest
from weightsmith.run.cards import facts_card
from weightsmith.run.editing import check_layer_flags
from weightsmith.run.folder import RunFolder
from weightsmith.run.knowledge.fact_run import of_auto
from weightsmith.run.knowledge.language import Kept, facts_of, of_name
from weightsmith.run.knowledge.page import PAGE, write_page
from weightsmith.run.knowledge.streaming import as_one, check, fill, in_force, stream_of
from weightsmith.run.options.knowledge import EditOptions
from weightsmith.run.outcome import Outcome
from weightsmith.run.session import Kin, at_least, distinct, session
from weightsmith.run.tables import ANSWER_COLUMNS, delta_name, edit_log_name, edit_rows

_log = logging.getLogger(__name__)

_TEXT_TOKENS = 60
"""Tokens of the text that each request is continued by, for the fluency and for people."""

_SHOWN = ("efficacy", "paraphrase", "neighbourhood", "score", "efficacy_accuracy", "fluency", "perplexity", "drift")
"""Measures that the terminal shows; the report has all of them."""

KIN = Kin(
    commands=("edit",),
    called="edit",
    another="another command",
    results=(
        "requests.json", "edit_log.csv", "*_edit_log.csv", "knowledge_report.csv", "answers.csv", "summary.json", "stream.csv",
        PAGE,
    ),
    inside=("delta*.safetensors", "edited", "edits", "adapter*"),
    worth=("edits/journal.jsonl",),
)  # fmt: skip


def edit(options: EditOptions) -> Outcome:
    """Edit facts with one or more methods, each on the unedited model.

    Raises:
        WeightsmithError: bad options or data, in one sentence; a run that exists without `resume` or `overwrite`.
    """
    check_options(options)
    with session(options, "edit", KIN, stem_of(options)) as folder:
        model, world = of_auto(options) if options.model == "auto" else of_name(options.model, options.device)
        check_reads_text(options, model)
        editing = {method: editor_of(options, method, model) for method in options.edit_method}
        drawn = facts_of(options.data_path, world, options.max_edits, options.seed)
        unlike, repeated = without_repeats(drawn)
        requests = [request for request in unlike if isinstance(request, TextRequest)]
        kept = Kept.of(model, options.preserve, world)
        folder.write_env(
            device=str(model.device),
            weights=weights_hash(model),
            seed=options.seed,
            data={"facts": requests_digest(requests)},
            preserve=kept.preserve.digest(),
        )
        _log.info("editing %d facts with %s, preserving %s", len(requests), ", ".join(editing), kept.told)
        asked = requests
        deltas: Mapping[str, Delta]
        if options.batch_size is None:
            cache = user_path(options.cache_dir) if options.cache_dir else None
            deltas = {
                method: editor.solve(model, requests, kept.without(requests), cache)
                for method, editor in editing.items()
            }
        else:
            (editor,) = editing.values()
            with stream_of(options, folder.path, model, editor, kept, asked) as stream:
                fill(stream, options, asked)
                deltas = as_one(stream, folder.results)
                requests = in_force(stream)
        before = answer(model, requests, new_tokens=_TEXT_TOKENS, seed=options.seed, title="before")
        deltas = as_adapters(options, folder, model, deltas)
        rows = write_results(options, folder, model, requests, deltas, before, kept, asked)
        summary = _summary(requests, deltas, repeated)
        write_json(folder.results / "summary.json", {"command": "edit", "summary": summary, "rows": len(rows)})
        page = write_page(options, folder, asked, summary, rows)
    return Outcome(
        command="edit",
        folder=folder.path,
        page=page,
        figures={"measures": rows},
        summary=summary,
        shown=[measures_table(rows), *summary],
        closing=f"holds everything; {folder.path}/edited is the edited model",
    )


def stem_of(options: EditOptions) -> str:
    """What a run without a name is called."""
    return f"{user_path(options.data_path).stem}-{'-'.join(options.edit_method)}"


def requests_digest(requests: Sequence[TextRequest]) -> str:
    """SHA-256 over what the requests ask, their names and neighbours included."""
    asked = json.dumps([dataclasses.asdict(request) for request in requests], default=str, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def editor_of(options: EditOptions, method: str, model: Model) -> Editor:
    """The editor that the options ask for: the file's or the shipped hyper-parameters, under those of flags.

    Raises:
        WeightsmithError: hyper-parameters for another method, or layers that the model or the method has not.
    """
    fields = {field.name for field in dataclasses.fields(editors()[method])}
    given = _of_hparams(options, method)
    if options.edit_layers is not None and "layers" in fields:
        model.check_layers(options.edit_layers)
        given["layers"] = tuple(sorted(options.edit_layers))
    elif given.get("layers"):
        model.check_layers(given["layers"], f"--hparams {options.hparams}")
    if options.margin is not None:
        given["margin"] = options.margin
    if "seed" in fields:
        given.setdefault("seed", options.seed)
    if method == "head" and "closed_form" not in given:
        given["closed_form"] = True  # a vocabulary is too wide for steps over all of it
    return make_editor(method, **given)


def _of_hparams(options: EditOptions, method: str) -> dict[str, Any]:
    """What `--hparams` says for a method; nothing for the others of several."""
    named = options.hparams
    if named is None:
        return {}
    if named.endswith((".yaml", ".yml", ".json")) or user_path(named).is_file():
        meant, fields, notes = read_hyperparameters(named)
        if meant not in options.edit_method:
            raise WeightsmithError(
                f"--hparams {named} is for {meant} and --edit-method says {' '.join(options.edit_method)}: "
                f"give --edit-method {meant}, or another file"
            )
        for note in notes if meant == method else ():
            _log.info("--hparams %s: %s", named, note)
        return fields if meant == method else {}
    if method not in WITH_HPARAMS:
        if not any(other in WITH_HPARAMS for other in options.edit_method):
            raise WeightsmithError(
                f"--hparams {named}: none are shipped for {method}, only for {', '.join(WITH_HPARAMS)}: leave it out, or "
                f"give a file{near_path(user_path(named))}"
            )
        return {}
    try:
        return hyperparameters(method, named)
    except WeightsmithError as error:
        raise WeightsmithError(f"--hparams {named} is no file and no model's name: {error}") from error


def check_options(options: EditOptions) -> None:
    for method in options.edit_method:
        if method not in editors():
            raise WeightsmithError(f"--edit-method {method} is no editor: {did_you_mean(method, editors())}")
    distinct("edit_method", options.edit_method, "alphaedit memit")
    at_least(options, {"max_edits": 1})
    check(options)
    named = options.hparams or ""
    if named.endswith((".yaml", ".yml", ".json")) and not (place := user_path(named)).is_file():
        raise WeightsmithError(
            f"--hparams {named} is not there: give a file, or the name of a model that some are shipped for{near_path(place)}"
        )
    if options.edit_mode == "lora_native":
        lora_options(options)
    check_layer_flags(options.edit_method, edit_layers=options.edit_layers)


def check_reads_text(options: EditOptions, model: Model) -> None:
    if model.family.reads != "text":
        raise WeightsmithError(
            f"--model {options.model} is a {model.family.title}, whose images are corrected with `weightsmith run "
            f"--checkpoint {options.model} --edit-from PATH`"
        )
    _ = model.tokenize("The")  # says so where the tokenizer is missing


def as_adapters(
    options: EditOptions, folder: RunFolder, model: Model, deltas: Mapping[str, Delta]
) -> Mapping[str, Delta]:
    """The deltas as adapters of the rank asked for, the first method's written to `adapter/`; else as they are."""
    if options.edit_mode == "raw":
        return deltas
    stored = transposed_weights(model.module)
    made = {method: adapted(delta, lora_options(options), transposed=stored)[0] for method, delta in deltas.items()}
    for method, delta in made.items():
        name = "adapter" if method == options.edit_method[0] else f"adapter_{method}"
        delta.to_lora(folder.path / name, model, base_model=options.model, alpha=options.lora_alpha)
    return made


def lora_options(options: EditOptions) -> LoRAOptions:
    """What the flags say of the adapter. Raises `WeightsmithError` for values out of range."""
    return LoRAOptions(
        rank=options.lora_rank,
        alpha=options.lora_alpha,
        scale=options.lora_scale,
        use_svd=options.lora_use_svd,
        fit_steps=options.lora_fit_steps,
        allow_fallback=options.allow_fallback,
    )


def write_results(
    options: EditOptions,
    folder: RunFolder,
    model: Model,
    requests: Sequence[TextRequest],
    deltas: Mapping[str, Delta],
    before: KnowledgeAnswers,
    kept: Kept,
    asked: Sequence[TextRequest] = (),
) -> list[dict[str, object]]:
    """Every file of the run; returns the rows of the report. `asked`, if more than what is in force, is kept as it was."""
    out = folder.results
    write_facts(out / "requests.json", asked or requests)
    rows: list[dict[str, object]] = []
    answers: list[dict[str, object]] = []
    for method, delta in deltas.items():
        write_csv(out / edit_log_name(method), edit_rows(delta, "answer"), ANSWER_COLUMNS)
        delta.save(folder.path / delta_name(options.edit_method, method))
        report = measured(model, requests, delta, before, options.seed)
        rows += [{"method": method, **row} for row in (*report.rows(), *kept.rows(model, delta))]
        answers += [{"method": method, **row} for row in report.request_rows()]
    write_csv(out / "knowledge_report.csv", rows)
    write_csv(out / "answers.csv", answers)
    first = options.edit_method[0]
    with deltas[first].on(model):
        mine = [row for row in rows if row["method"] == first]
        save(model, folder.path / "edited", facts_card(folder, options, deltas[first], requests, mine))
    return rows


def measured(
    model: Model, requests: Sequence[TextRequest], delta: Delta, before: KnowledgeAnswers, seed: int
) -> KnowledgeReport:
    """What a delta did to its requests, their paraphrases and neighbours."""
    return knowledge(model, requests, delta, before=before, new_tokens=_TEXT_TOKENS, seed=seed)


def _summary(
    requests: Sequence[TextRequest], deltas: Mapping[str, Delta], repeated: Sequence[tuple[str, str]]
) -> list[str]:
    found = []
    for method, delta in deltas.items():
        reached = sum(bool(row["success"]) for row in delta.info["requests"])
        layers = delta.info["layers"]
        where = f"in layers {', '.join(map(str, layers))}" if layers else "not bound to layers"
        found.append(
            f"{method}: {reached} of {len(requests)} edits give the wanted answer, {where}; update norm {delta.norm():.4g}."
        )
    if repeated:
        found.append(f"Left out, because asked for already: {', '.join(later for _, later in repeated)}.")
    return found


def measures_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The main measures before and after, a column a method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["method"], row["measure"]): row for row in rows}
    table = Table(title="What the edits did, with 95% intervals", box=box.SIMPLE_HEAD)
    for heading in ("measure", "before", *methods):
        table.add_column(Text(heading), justify="left" if heading == "measure" else "right", no_wrap=True)
    for name in _SHOWN:
        there = [cells[method, name] for method in methods if (method, name) in cells]
        if there:
            befores, afters = _shown(there[0], "before"), [_shown(row, "after") for row in there]
            table.add_row(Text(name.replace("_", " ")), befores, *afters)
    return table


def _shown(row: Mapping[str, Any], when: str) -> Text:
    if row[when] == "":
        return Text("-")
    low, high = row[f"{when}_low"], row[f"{when}_high"]
    bounded = low != "" and low == low  # NaN where a single request has no bounds
    return Text(f"{row[when]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if bounded else ""))
