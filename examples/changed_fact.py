"""A fact changed: it is edited in a language model, its other wordings and neighbours are asked, and the edit is taken back.

    python examples/changed_fact.py                  # a fact of the embedded world; its small GPT-2 is trained once, minutes
    python examples/changed_fact.py --model gpt2-folder --facts mine.json --preserve text.txt

A facts file is a list of entries with prompt, subject and target, and where they are known truth, paraphrases and neighbours.
The edit is a line of a journal, which `weightsmith edits list` shows; taking it back restores the weights bit by bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from weightsmith.errors import WeightsmithError
from weightsmith.run.edits import edits
from weightsmith.run.knowledge.edit import edit
from weightsmith.run.options.edits import ListEditsOptions, UndoEditsOptions
from weightsmith.run.options.knowledge import EditOptions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="auto", help="a language model [that of the fact world]")
    parser.add_argument("--facts", default="facts", help="JSON file [facts of that world]")
    parser.add_argument("--preserve", nargs="*", default=[], help="texts that say what must stay")
    parser.add_argument("--keep", action="store_true", help="do not take the edit back")
    parser.add_argument("--runs-dir", default="runs")
    given = parser.parse_args(arguments)

    edit(
        EditOptions(
            model=given.model,
            data_path=given.facts,
            preserve=tuple(given.preserve),
            max_edits=1,
            batch_size=1,
            run_name="changed-fact",
            runs_dir=given.runs_dir,
            resume=True,
        )
    )
    run = str(Path(given.runs_dir) / "changed-fact")
    edits(ListEditsOptions(run=run))
    if not given.keep:
        edits(UndoEditsOptions(run=run))
        edits(ListEditsOptions(run=run))


if __name__ == "__main__":
    try:
        main()
    except WeightsmithError as error:
        raise SystemExit(f"error: {error}") from None
