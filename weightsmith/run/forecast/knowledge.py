"""The plans of `weightsmith facts` and `edit`, and of the language model that is made where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightsmith.data.factworld import FactWorld, fact_world
from weightsmith.data.texts import Knowledge
from weightsmith.edit import Editor
from weightsmith.edit.closed_form import ClosedForm
from weightsmith.edit.reading import without_repeats
from weightsmith.files import default_cache_dir, user_path
from weightsmith.models import Model, create_language, load, presets
from weightsmith.request import TextRequest
from weightsmith.run.forecast.correct import solving
from weightsmith.run.forecast.pace import HOW, Pace, pace_of
from weightsmith.run.forecast.parts import WORDS, loading, passes
from weightsmith.run.forecast.plan import Plan, Step
from weightsmith.run.job import check_device
from weightsmith.run.knowledge.edit import KIN, check_options, check_reads_text, editor_of, stem_of
from weightsmith.run.knowledge.fact_run import FACTS
from weightsmith.run.knowledge.fact_run import KIN as FACTS_KIN
from weightsmith.run.knowledge.facts import PRESET, world_of
from weightsmith.run.knowledge.language import Kept, facts_of, of_name
from weightsmith.run.options.folder import FolderOptions
from weightsmith.run.options.knowledge import EditOptions, FactsOptions
from weightsmith.run.session import would_fill
from weightsmith.stream import Journal
from weightsmith.train import LanguageOptions, train_tokenizer

_TEXT_TOKENS = 60
"""Tokens that are written for the fluency."""
_AT_ONCE = 64
"""Questions in a pass."""
_ASIDE_READ = 4
"""Passes over the text kept aside: perplexity before and after, and both models for the drift."""
_SAMPLE = 500
"""Prompts and texts that are looked at for their lengths."""
_TEXT_BYTES, _PACKED_BYTES, _TOKEN_BYTES = 700, 100, 150
"""What the tokenizer makes of a text, the entry of a text in a row of each epoch, and what is there of each token."""
_ROUGH = (
    "Editors stop when the wanted answers lead, so what they need is a bound; what is measured afterwards is counted by its "
    "questions."
)


@dataclass(frozen=True, eq=False)
class Language:
    """A language model to plan with.

    Attributes:
        model: of the right shape; world: that it knows, or will know.
        pace: in prompts of facts.
        steps: what makes the model, where it is not there.
    """

    model: Model
    world: FactWorld | None
    pace: Pace
    steps: tuple[Step, ...]


def facts(options: FactsOptions) -> Plan:
    """What `weightsmith.run.knowledge.fact_run.facts` would do. Raises as it does."""
    folder = would_fill(options, FACTS_KIN, FACTS)
    found = untrained(options.seed, (folder.path / "recall.json").exists() and not options.overwrite)
    return Plan(command="facts", steps=found.steps, folder=folder.path, weights=found.pace.weights, notes=[HOW])


def edit(options: EditOptions) -> Plan:
    """What `weightsmith.run.knowledge.edit.edit` would do. Raises as it does, where that shows beforehand."""
    check_options(options)
    folder = would_fill(options, KIN, stem_of(options))
    found = language(options.model, options)
    check_reads_text(options, found.model)
    editing = {method: editor_of(options, method, found.model) for method in options.edit_method}
    started = time.perf_counter()
    drawn = facts_of(options.data_path, found.world, options.max_edits, options.seed)
    requests = [one for one in without_repeats(drawn)[0] if isinstance(one, TextRequest)]
    kept = Kept.of(found.model, options.preserve, found.world)
    steps = [*found.steps, replace(loading(started), name="read", what="facts, and the text that is preserved")]
    preserved, moments, aside = preserved_passes(kept, found.model), moments_of(kept, found.model), aside_of(kept)
    for method, editor in editing.items():
        solve = _solves(found, method, editor, moments)
        if options.batch_size is None:
            steps.append(solve(len(requests), preserved))
            continue
        done = _journalled(folder.path)
        batches = -(-len(requests) // options.batch_size)
        once, each = solve(options.batch_size, preserved), solve(options.batch_size, 0.0)
        left = max(0, batches - done)
        steps.append(
            Step(
                name=f"stream, {method}",
                what=f"{batches} batches of {options.batch_size} edits, {done} of them in the journal",
                forwards=once.forwards + each.forwards * max(0, left - 1) if left else 0.0,
                seconds=once.seconds + each.seconds * max(0, left - 1) if left else 0.0,
                memory=once.memory,
                there=not left,
            )
        )
    steps += [answering(found.pace, requests, written=len(requests), name="before")]
    steps += [
        answering(found.pace, requests, written=len(requests), name=f"after, {method}", aside=_ASIDE_READ * aside)
        for method in editing
    ]
    steps.append(Step(name="save", what="the edited model", memory=found.pace.weights))
    return Plan(command="edit", steps=steps, folder=folder.path, weights=found.pace.weights, notes=[_ROUGH, HOW])


def _solves(found: Language, method: str, editor: Editor, moments: int) -> Callable[[int, float], Step]:
    """From so many edits, and inputs whose keys are read, to the step that solves for them."""
    asked, layers = None, 1
    if isinstance(editor, ClosedForm):
        asked, layers = editor.steps, len(editor.layers or editor.default_layers(found.model))

    def solve(edits: int, preserved: float) -> Step:
        return solving(
            found.pace,
            method,
            edits,
            preserved,
            moments=moments,
            asked=asked,
            layers=layers,
            at_once=_AT_ONCE,
            copies=0,
        )

    return solve


def language(name: str, options: FolderOptions) -> Language:
    """The model that `--model` names, or the small GPT-2 of the fact world, which is made where it is not there."""
    device, started = check_device(options.device, stored=name != "auto"), time.perf_counter()
    if name != "auto":
        model, world = of_name(name, options.device)
        load_step = loading(started)
        return Language(model, world, pace_of(model, _AT_ONCE, WORDS, trains=False), (load_step,))
    made = user_path(options.runs_dir) / FACTS
    cached = (user_path(options.cache_dir) if options.cache_dir else default_cache_dir()) / "fact-model"
    for place in (made, cached):
        world = world_of(place)
        if world is not None and world.fingerprint() == fact_world(0).fingerprint():
            model = load(place, device=device)
            steps = (_fact_model(place, there=True), _opening(started, world, place == cached))
            return Language(model, world, pace_of(model, _AT_ONCE, WORDS), steps)
    return untrained(0)


def untrained(seed: int, there: bool = False) -> Language:
    """The small GPT-2 of the fact world before its training, and the training."""
    world, recipe = fact_world(seed), presets("text")[PRESET]
    texts = world.texts()
    tokenizer = train_tokenizer(texts, recipe["vocabulary"])
    model = create_language(recipe, tokenizer, world.seed)
    options = LanguageOptions(seed=world.seed, **recipe["training"])
    rows = pace_of(model, options.batch_size, options.length)
    tokens = sum(len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"])
    count = -(-tokens // options.length)
    train = Step(
        name="train",
        what=f"a small GPT-2, {options.epochs} epochs of {count} rows of {options.length} tokens",
        forwards=options.epochs * 3 * rows.forwards(count),
        seconds=options.epochs * rows.steps(-(-count // options.batch_size), options.batch_size),
        memory=rows.training_memory(options.batch_size),
        there=there,
    )
    pace = pace_of(model, _AT_ONCE, WORDS)
    probes = [prompt for kept in (False, True) for prompt in world.probes(kept_aside=kept)]
    asked = passes(pace, "recall", f"{len(probes)} questions", 3 * len(probes), there=there)
    return Language(model, world, pace, (train, asked))


def answering(pace: Pace, requests: Sequence[TextRequest], *, written: int, name: str, aside: float = 0.0) -> Step:
    """What one model answers to requests, their paraphrases and neighbours, and the text that it writes.

    Args:
        aside: passes over text kept aside, which is measured as well.
    """
    questions = sum(1 + len(one.paraphrases) + len(one.neighbours) for one in requests)
    # Of each the wanted and the true answer, and the one that it gives by itself; a token written is a pass of its own.
    inputs = 3 * questions + written * _TEXT_TOKENS + aside
    found = passes(
        pace, name, f"{questions} questions, {written} texts of {_TEXT_TOKENS} tokens", inputs, batch=_AT_ONCE
    )
    # All texts are written together, token by token, and each token is read once.
    writing = _TEXT_TOKENS * (pace.call + written * pace.image / WORDS)
    return replace(found, seconds=pace.passes(3 * questions + aside, _AT_ONCE) + writing)


def preserved_passes(kept: Kept, model: Model) -> float:
    """Passes of `WORDS` tokens that the text preserved comes to, where all of it is read once."""
    text = kept.preserve.texts if isinstance(kept.preserve, Knowledge) else kept.preserve
    prompts = len(kept.preserve.prompts) if isinstance(kept.preserve, Knowledge) else 0
    length = min(128, model.n_tokens)
    return len(text) * length / WORDS + prompts


def moments_of(kept: Kept, model: Model) -> int:
    """Second moments that prompts need at a time: one for each length that there is, and all side by side when mixed."""
    if not isinstance(kept.preserve, Knowledge) or not kept.preserve.prompts:
        return 0
    prompts = kept.preserve.prompts
    return 2 * len({len(model.tokenize(prompt)) for prompt in prompts[:: max(1, len(prompts) // _SAMPLE)]})


def aside_of(kept: Kept) -> float:
    """Passes of `WORDS` tokens over the text kept aside."""
    return 0.0 if kept.aside is None else len(kept.aside) * kept.aside.length / WORDS


def _opening(started: float, world: FactWorld, cached: bool) -> Step:
    """Opening the fact world's model; of one in the cache the texts are made into tokens again, to see that they are its."""
    step = loading(started)
    if not cached:
        return step
    texts, recipe = world.texts(), presets("text")[PRESET]
    began, some = time.perf_counter(), texts[: 2 * _SAMPLE]
    tokenizer = train_tokenizer(some, recipe["vocabulary"])
    tokens = sum(len(ids) for ids in tokenizer(list(some), verbose=False)["input_ids"]) * len(texts) / len(some)
    seconds = 2 * (time.perf_counter() - began) * len(texts) / len(some)
    a_text = _TEXT_BYTES + _PACKED_BYTES * recipe["training"]["epochs"]
    return replace(step, seconds=step.seconds + seconds, memory=round(len(texts) * a_text + tokens * _TOKEN_BYTES))


def _fact_model(place: Path, *, there: bool) -> Step:
    return Step(name="model", what=f"the small GPT-2 of the fact world, in {place}", there=there)


def _journalled(folder: Path) -> int:
    """Batches that a run's journal has."""
    place = folder / "edits"
    return len(Journal.open(place, mend=False).batches) if (place / "journal.jsonl").exists() else 0
