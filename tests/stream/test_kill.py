"""A stream whose process is killed at any moment: nothing that was reported done is lost, and it goes on to the same bits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from weightsmith.data.texts import TextSet
from weightsmith.delta import weights_hash
from weightsmith.edit import AlphaEdit
from weightsmith.models import Model, load, save
from weightsmith.request import TextRequest
from weightsmith.stream import Journal, Stream, settings_of

KILLS = 3

SERVER = """
import json, os, signal, sys
from pathlib import Path
from tests.edit.conftest import CORPUS
from weightsmith.data.texts import TextSet
from weightsmith.edit import AlphaEdit
from weightsmith.models import load
from weightsmith.request import TextRequest
from weightsmith.stream import Journal, Stream

def run():
    model = load(folder / "model")
    texts = TextSet.of([CORPUS] * 4, model.tokenize, length=32)
    asked = [TextRequest(**entries) for entries in json.loads((folder / "asked.json").read_text())]
    journal = Journal.open(folder / "edits")
    stream = Stream(model, AlphaEdit(prefix_lengths=()), texts, journal=journal, cache_dir=folder / "cache")
    print("ready", flush=True)
    for request in asked[len(stream.batches):]:
        stream.add([request])
        print(len(stream.batches), flush=True)

folder = Path(sys.argv[1])
load(folder / "model")  # what is imported late is there now
while sys.stdin.readline():  # "start": each process is a fork, so that torch is imported once
    child = os.fork()
    if not child:
        try:
            run()
        except BaseException as error:
            print(f"failed: {error!r}", flush=True)
        os._exit(0)
    sys.stdin.readline()  # "kill"
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended", flush=True)
"""


def requests(subjects: int = 16) -> list[TextRequest]:
    names = ("Anna", "Bert", "Clara", "Dora")
    verbs = ("plays the", "lives in", "is a", "was born in", "went to", "and the music of")
    answers = ("flute", "Oslo", "rain", "joy", "Rome", "baker", "oboe")
    each = [(name, verb) for verb in verbs for name in names][:subjects]
    return [TextRequest(f"{n} {v}", f"{n} {v}", n, answers[i % len(answers)]) for i, (n, v) in enumerate(each)]


def _until_end(lines: Iterable[str]) -> list[str]:
    """The numbers that a process told, and how it ended."""
    said: list[str] = []
    for line in lines:
        said.append(line.strip())
        if said[-1] in ("killed", "ended"):
            break
    return said


def test_killed_at_any_moment(gpt2: Model, texts: TextSet, tmp_path: Path) -> None:
    save(gpt2, tmp_path / "model")
    asked, editor = requests(), AlphaEdit(prefix_lengths=())
    entries = [{k: v for k, v in asdict(r).items() if isinstance(v, str)} for r in asked]
    (tmp_path / "asked.json").write_text(json.dumps(entries))
    model = load(tmp_path / "model")
    with Stream(model, editor, texts, cache_dir=tmp_path / "cache") as whole:
        started = time.monotonic()
        for request in asked:
            whole.add([request])
        seconds, expected = time.monotonic() - started, weights_hash(model)
    Journal.create(tmp_path / "edits", settings_of(model, editor, whole.replay))
    moments = random.Random(0)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    killed = 0
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for _ in range(KILLS):
            server.stdin.write("start\n")
            server.stdin.flush()
            assert server.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0, seconds / 3))
            server.stdin.write("kill\n")
            server.stdin.flush()
            *said, end = _until_end(server.stdout)
            killed += end == "killed"
            kept = len(Journal.open(tmp_path / "edits").batches)
            reported = int(said[-1]) if said else 0
            assert reported <= kept <= len(asked)
            assert not said or kept <= reported + 1  # the one that was in flight, at most
    assert killed >= 2
    stream = Stream(model, editor, texts, journal=Journal.open(tmp_path / "edits"), cache_dir=tmp_path / "cache")
    for request in asked[len(stream.batches) :]:
        stream.add([request])
    assert weights_hash(model) == expected
    stream.undo(len(asked))
    assert weights_hash(model) == weights_hash(load(tmp_path / "model"))
