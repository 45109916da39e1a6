"""From the files of an edit of facts to its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weightsmith.files import read_csv, write_text
from weightsmith.report.edit_page import EditInputs, build_edit
from weightsmith.request import TextRequest
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.knowledge import EditOptions

PAGE = "report.html"


def write_page(
    options: EditOptions,
    folder: RunFolder,
    asked: Sequence[TextRequest],
    summary: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> Path:
    """Write `report.html` from what the edit left, and return its path.

    Args:
        asked: every fact that was to be edited, in their order; rows: of `knowledge_report.csv`.
    """
    stream = folder.results / "stream.csv"
    inputs = EditInputs(
        title=f"{folder.path.name}: facts edited",
        summary=summary,
        rows=rows,
        answers=read_csv(folder.results / "answers.csv"),
        prompts={request.name: request.prompt for request in asked},
        batches={} if options.batch_size is None else batches_of(asked, options.batch_size),
        stream=read_csv(stream) if options.batch_size is not None and stream.exists() else (),
        config=asdict(options),
        env=folder.env(),
    )
    page = folder.results / PAGE
    write_text(page, build_edit(inputs))
    return page


def batches_of(asked: Sequence[TextRequest], size: int) -> dict[str, int]:
    """Name of a fact → the batch that edited it, from 1."""
    return {request.name: place // size + 1 for place, request in enumerate(asked)}
