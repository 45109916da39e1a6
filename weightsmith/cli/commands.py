"""The table of commands: to add one, add a row; nothing heavy is imported before a command is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from weightsmith.errors import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        name: as it is typed; of two words where it is one of a group: "locate patch".
        about: what it does, the docstring of its options.
        options: module:dataclass of its options, within `weightsmith.run.options`.
        does: module:function, from the options to an `Outcome`.
        plans: module:function, from the options to a `Plan`, of a command that knows `--dry-run`.
        resumes: whether it takes the options of an existing run for its defaults when it goes on with one.
    """

    name: str
    about: str
    options: str
    does: str
    plans: str = ""
    resumes: bool = True

    def kind(self) -> type[Any]:
        """The dataclass of its options."""
        found: type[Any] = _named(f"weightsmith.run.options.{self.options}")
        return found

    def function(self) -> Callable[[Any], Any]:
        """What does it."""
        found: Callable[[Any], Any] = _named(self.does)
        return found

    def planner(self) -> Callable[[Any], Any]:
        """What plans it."""
        found: Callable[[Any], Any] = _named(self.plans)
        return found


_FORECAST = "weightsmith.run.forecast"

COMMANDS = (
    Command(
        name="run",
        about="Correct a classifier: data, train, locate, edit, evaluate.",
        options="correct:RunOptions",
        does="weightsmith.run.correct.pipeline:run",
        plans=f"{_FORECAST}.correct:run",
    ),
    Command(
        name="bench",
        about="Correct a classifier's errors by hand on a local page: see why, name the right class, preview, keep, undo. "
        "Every edit that is kept is in the journal of the run, which `weightsmith edits` reads too.",
        options="bench:WorkbenchOptions",
        does="weightsmith.run.bench.command:bench",
        resumes=False,
    ),
    Command(
        name="baseline",
        about="Train a classifier on a data set's official train, val and test parts.",
        options="correct:BaselineOptions",
        does="weightsmith.run.correct.baseline:baseline",
        plans=f"{_FORECAST}.correct:baseline",
    ),
    Command(
        name="compress",
        about="Make a vision transformer smaller: train it, remove what it does not need, measure what is left.",
        options="compress:CompressOptions",
        does="weightsmith.run.compress:compress",
        plans=f"{_FORECAST}.compress:compress",
    ),
    Command(
        name="edit",
        about="Edit facts in a language model, and measure what became of them and of everything else.",
        options="knowledge:EditOptions",
        does="weightsmith.run.knowledge.edit:edit",
        plans=f"{_FORECAST}.knowledge:edit",
    ),
    Command(
        name="compare",
        about="Compare editing methods over batch sizes and seeds on the same requests.",
        options="knowledge:CompareOptions",
        does="weightsmith.run.compare.command:compare",
        plans=f"{_FORECAST}.compare:compare",
    ),
    Command(
        name="evaluate",
        about="Measure trained image classifiers side by side: accuracy, confidence, time and size.",
        options="evaluate:EvaluateOptions",
        does="weightsmith.run.evaluate.command:evaluate",
        plans=f"{_FORECAST}.evaluate:evaluate",
    ),
    Command(
        name="merge",
        about="Merge models that were fine-tuned from one base into one, without losing a tensor.",
        options="merge:MergeOptions",
        does="weightsmith.run.merge:merge",
        plans=f"{_FORECAST}.merge:merge",
        resumes=False,
    ),
    Command(
        name="export",
        about="Take a run's edited model elsewhere: an ONNX file, a LoRA adapter of PEFT's, or a Hugging Face folder with the "
        "edit in its weights; read back and compared before it is in place.",
        options="export:ExportOptions",
        does="weightsmith.run.export:export",
        resumes=False,
    ),
    Command(
        name="artificial",
        about="Task arithmetic on artificial data: two tables, a base, a fine-tuned network, a sweep; or the sweep of your own "
        "pair.",
        options="artificial:ArtificialOptions",
        does="weightsmith.run.artificial.command:artificial",
        plans=f"{_FORECAST}.artificial:artificial",
    ),
    Command(
        name="facts",
        about="Make the fact world, and train a small GPT-2 on it: a few minutes on a CPU.",
        options="knowledge:FactsOptions",
        does="weightsmith.run.knowledge.fact_run:facts",
        plans=f"{_FORECAST}.knowledge:facts",
    ),
    Command(
        name="locate trace",
        about="Causal tracing: noise on the embeddings of patches, or of a prompt's subject.",
        options="locate:TraceOptions",
        does="weightsmith.run.locate.command:locate",
        plans=f"{_FORECAST}.locate:locate",
    ),
    Command(
        name="locate patch",
        about="Activation patching on pairs: an image and what it becomes without its colour, its order, its sharpness...",
        options="locate:PatchOptions",
        does="weightsmith.run.locate.command:locate",
        plans=f"{_FORECAST}.locate:locate",
    ),
    Command(
        name="locate attribution",
        about="Gradient screens of every place at once, the best of them measured exactly, and how much the screen missed.",
        options="locate:AttributionOptions",
        does="weightsmith.run.locate.command:locate",
        plans=f"{_FORECAST}.locate:locate",
    ),
    Command(
        name="locate astra",
        about="ASTRA: which patches of the image make the class, by random masks, and a steering vector made from them.",
        options="locate:PatchAttributionOptions",
        does="weightsmith.run.locate.command:locate",
        plans=f"{_FORECAST}.locate:locate",
    ),
    Command(
        name="ablate lora",
        about="One edit as LoRA adapters: what rank, fit steps and the start of the fit cost of it.",
        options="ablate:AblateLoraOptions",
        does="weightsmith.run.ablate.command:ablate",
        plans=f"{_FORECAST}.compare:ablate",
    ),
    Command(
        name="ablate replay",
        about="A stream of edits with several ways to replay earlier ones: what is forgotten, and what the rest costs.",
        options="ablate:AblateReplayOptions",
        does="weightsmith.run.ablate.command:ablate",
        plans=f"{_FORECAST}.compare:ablate",
    ),
    Command(
        name="edits list",
        about="The edits in force, a line each.",
        options="edits:ListEditsOptions",
        does="weightsmith.run.edits:edits",
        resumes=False,
    ),
    Command(
        name="edits show",
        about="All that the journal has of one edit.",
        options="edits:ShowEditOptions",
        does="weightsmith.run.edits:edits",
        resumes=False,
    ),
    Command(
        name="edits undo",
        about="Take the last batches back, bit by bit.",
        options="edits:UndoEditsOptions",
        does="weightsmith.run.edits:edits",
        resumes=False,
    ),
    Command(
        name="edits remove",
        about="Make it as if one edit had never been made: its batch and every later one are solved again without it.",
        options="edits:RemoveEditOptions",
        does="weightsmith.run.edits:edits",
        resumes=False,
    ),
    Command(
        name="edits replay",
        about="Make the edited model anew from the weights before the first edit and the journal, and check it.",
        options="edits:ReplayEditsOptions",
        does="weightsmith.run.edits:edits",
        resumes=False,
    ),
    Command(
        name="download",
        about="Fetch a MedMNIST data set: resumed, checked by MD5, put in place when it is whole.",
        options="correct:DownloadOptions",
        does="weightsmith.run.fetch:fetch",
        resumes=False,
    ),
    Command(
        name="doctor",
        about="Look at this machine: what is broken, what would be slow, what is not installed, and a remedy for each.",
        options="doctor:DoctorOptions",
        does="weightsmith.run.doctor:doctor",
        resumes=False,
    ),
)
"""Every command, in the order in which help shows them."""

GROUPS = {
    "locate": "Find what in a trained model carries a decision.",
    "ablate": "Vary one choice of an editor and measure what it does.",
    "edits": "What the journal of `edit --batch-size` or `bench` has, and taking edits back.",
}
"""First word of commands that are of two → what they have in common."""


def first_words() -> dict[str, str]:
    """What may follow `weightsmith` → what it does, groups with the ways that they have."""
    found: dict[str, str] = {}
    for command in COMMANDS:
        group, _, way = command.name.partition(" ")
        if not way:
            found[group] = command.about
        elif group not in found:
            found[group] = f"{GROUPS[group].removesuffix('.')}: {', '.join(ways(group))}."
    return found


def ways(group: str) -> dict[str, str]:
    """What may follow the first word of a group → what it does."""
    return {
        command.name.partition(" ")[2]: command.about for command in COMMANDS if command.name.startswith(f"{group} ")
    }


def find(name: str) -> Command:
    """The command of a name. Raises `LookupError` in the user's words for a name that is none."""
    for command in COMMANDS:
        if command.name == name:
            return command
    group, _, way = name.partition(" ")
    if group in GROUPS:
        raise LookupError(f"weightsmith {group} has no {way}: {did_you_mean(way, ways(group))}")
    raise LookupError(f"weightsmith has no command {name}: {did_you_mean(name, first_words())}")


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
