"""A stream whose process is killed at any moment: nothing that was reported done is lost, and it goes on to the same bits."""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.edit.conftest import CORPUS
from tests.forked import started, wait_until
from weightsmith.data.texts import TextSet
from weightsmith.delta import weights_hash
from weightsmith.edit import AlphaEdit
from weightsmith.models import Model, load, save
from weightsmith.request import TextRequest
from weightsmith.stream import Journal, Stream, settings_of

KILLS = 3


def work(folder: Path, said: Path) -> None:
    """What the process does that is killed: it goes on with the stream, and says how many batches it has done."""
    model = load(folder / "model")
    texts = TextSet.of([CORPUS] * 4, model.tokenize, length=32)
    asked = [TextRequest(**entries) for entries in json.loads((folder / "asked.json").read_text())]
    journal = Journal.open(folder / "edits")
    stream = Stream(model, AlphaEdit(prefix_lengths=()), texts, journal=journal, cache_dir=folder / "cache")
    with said.open("w", buffering=1, encoding="utf-8") as file:
        file.write("ready\n")
        for request in asked[len(stream.batches) :]:
            stream.add([request])
            file.write(f"{len(stream.batches)}\n")


def requests(subjects: int = 16) -> list[TextRequest]:
    names = ("Anna", "Bert", "Clara", "Dora")
    verbs = ("plays the", "lives in", "is a", "was born in", "went to", "and the music of")
    answers = ("flute", "Oslo", "rain", "joy", "Rome", "baker", "oboe")
    each = [(name, verb) for verb in verbs for name in names][:subjects]
    return [TextRequest(f"{n} {v}", f"{n} {v}", n, answers[i % len(answers)]) for i, (n, v) in enumerate(each)]


def test_killed_at_any_moment(gpt2: Model, texts: TextSet, tmp_path: Path) -> None:
    save(gpt2, tmp_path / "model")
    asked, editor = requests(), AlphaEdit(prefix_lengths=())
    entries = [{k: v for k, v in asdict(r).items() if isinstance(v, str)} for r in asked]
    (tmp_path / "asked.json").write_text(json.dumps(entries))
    model = load(tmp_path / "model")
    with Stream(model, editor, texts, cache_dir=tmp_path / "cache") as whole:
        begun = time.monotonic()
        for request in asked:
            whole.add([request])
        seconds, expected = time.monotonic() - begun, weights_hash(model)
    Journal.create(tmp_path / "edits", settings_of(model, editor, whole.replay))
    moments = random.Random(0)
    killed, said = 0, tmp_path / "said"
    for _ in range(KILLS):
        said.unlink(missing_ok=True)
        process = started(work, tmp_path, said)
        try:
            wait_until(
                lambda: said.exists() and "ready" in said.read_text(),
                lambda alive=process.is_alive: alive() or pytest.fail("it ended too early"),
            )
            time.sleep(moments.uniform(0, seconds / 3))
        finally:
            process.kill()
            process.join()
        killed += process.exitcode == -signal.SIGKILL
        *_, last = said.read_text().split()
        kept = len(Journal.open(tmp_path / "edits").batches)
        reported = 0 if last == "ready" else int(last)
        assert reported <= kept <= len(asked)
        assert not reported or kept <= reported + 1  # the one that was in flight, at most
    assert killed >= 2
    stream = Stream(model, editor, texts, journal=Journal.open(tmp_path / "edits"), cache_dir=tmp_path / "cache")
    for request in asked[len(stream.batches) :]:
        stream.add([request])
    assert weights_hash(model) == expected
    stream.undo(len(asked))
    assert weights_hash(model) == weights_hash(load(tmp_path / "model"))
