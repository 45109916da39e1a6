"""Two commands that are started at once and share a cache: each comes to what it comes to alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = """
import os, sys
from pathlib import Path
from weightsmith import cli
from weightsmith.measure import moments
import transformers.models.gpt2.modeling_gpt2

moments._SAVE_SECONDS, talker, top = -1.0, Path(sys.argv[1]), Path(sys.argv[2])  # sums are put aside whenever that is due

def begun(name, cache, text):
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        cli.main(
            ["edit", "--model", f"{talker}/model", "--data-path", f"{talker}/facts.json", "--preserve", f"{top}/{text}",
             "--hparams", f"{talker}/memit.yaml", "--edit-method", "memit", "--max-edits", "1", "--runs-dir", f"{top}/{cache}-runs",
             "--run-name", name, "--cache-dir", f"{top}/{cache}", "--device", "cpu"]
        )
        status = 0
    except SystemExit as stop:
        status = stop.code
    finally:
        os._exit(status)

def all_ended(children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

told = all_ended([begun("x", "alone", "text.txt")]) + all_ended([begun("y", "alone-too", "other.txt")])
told += all_ended([begun(name, "shared", text) for name, text in (("x", "text.txt"), ("again", "text.txt"), ("y", "other.txt"))])
print(told)
"""


def test_commands_that_share_a_cache(talker: Path, tmp_path: Path) -> None:
    text = (talker / "text.txt").read_text()
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "other.txt").write_text("Rain fell on the harbour.\n" * 60 + text)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMANDS, talker, tmp_path],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 0, 0, 0]"], done.stderr[-3000:]

    def change(runs: str, name: str) -> bytes:
        return (tmp_path / f"{runs}-runs" / name / "delta.safetensors").read_bytes()

    alone, other = change("alone", "x"), change("alone-too", "y")
    assert alone != other, "what is preserved matters"
    assert change("shared", "x") == change("shared", "again") == alone
    assert change("shared", "y") == other
    entries = {path.name: path.read_bytes() for path in (tmp_path / "shared" / "moments").glob("*.safetensors")}
    assert len(entries) == 2
    for cache in ("alone", "alone-too"):
        (entry,) = (tmp_path / cache / "moments").glob("*.safetensors")
        assert entries[entry.name] == entry.read_bytes()
    assert not [path for path in (tmp_path / "shared").rglob("*") if path.suffix == ".tmp"]
