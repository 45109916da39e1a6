"""Processes that are started at once and share a cache: each comes to what it comes to alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROCESSES = """
import os, sys
from pathlib import Path
from weightsmith.data.facts import read_facts
from weightsmith.data.texts import TextSet
from weightsmith.edit import make_editor
from weightsmith.measure import moments
from weightsmith.models import load

moments._SAVE_SECONDS, talker, top = -1.0, Path(sys.argv[1]), Path(sys.argv[2])  # sums are put aside whenever that is due

load(talker / "model")  # once for all, which import nothing of their own then

def edited(name, cache, text):
    model = load(talker / "model")
    texts = TextSet.of([(top / text).read_text()], model.tokenize, length=24)
    editor = make_editor("memit", layers=(1,), steps=4, rounds=1, prefix_lengths=((4, 2),))
    editor.solve(model, read_facts(talker / "facts.json")[:1], texts, top / cache).save(top / f"{cache}-{name}")

def begun(*given):
    child = os.fork()
    if child:
        return child
    try:
        edited(*given)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)

def all_ended(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

told = all_ended([begun("x", "alone", "text.txt")]) + all_ended([begun("y", "alone too", "other.txt")])
several = [("x", "text.txt"), ("again", "text.txt"), ("y", "other.txt")]
told += all_ended([begun(name, "shared", text) for name, text in several])
print(told)
"""


def test_processes_that_share_a_cache(talker: Path, tmp_path: Path) -> None:
    text = (talker / "text.txt").read_text()[:2000]
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "other.txt").write_text("Rain fell on the harbour.\n" * 6 + text)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESSES, talker, tmp_path],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 0, 0, 0]"], done.stderr[-3000:]

    def change(name: str) -> bytes:
        return (tmp_path / name).read_bytes()

    alone, other = change("alone-x"), change("alone too-y")
    assert alone != other, "what is preserved matters"
    assert change("shared-x") == change("shared-again") == alone
    assert change("shared-y") == other
    entries = {path.name: path.read_bytes() for path in (tmp_path / "shared" / "moments").glob("*.safetensors")}
    assert len(entries) == 2
    for cache in ("alone", "alone too"):
        kept = list((tmp_path / cache / "moments").glob("*.safetensors"))
        assert len(kept) == 1
        assert all(entries[entry.name] == entry.read_bytes() for entry in kept)
    assert not list((tmp_path / "shared").rglob("*.tmp"))
