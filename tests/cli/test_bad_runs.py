"""A run folder of an older version, or half a run, given to commands that read runs: one sentence, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

READS = {
    "run --run-name old --resume": "another version",
    "run --data-path digits --run-name half --stage edit": "--stage train first",
    "evaluate --model-paths {half} --data-path digits": "holds no model",
    "locate patch --model {half}": "holds no model",
    "merge --base {half} --models {old} --out {out}": "holds no weights",
    "compress --checkpoint {half}": "holds no model",
    "compress --mode optimize --run-name half": "has no model",
    "artificial --stage sweep --run-name half": "--stage data first",
    "edits list {half}": "no journal",
    "edits undo {old}": "another version",
    "compare --requests {half}": "comparison.json",
    "edit --model {half}": "holds no model",
    "ablate lora --model {half}": "holds no model",
    "run --checkpoint {half} --data-path digits": "holds no model",
}


@pytest.mark.parametrize("words", READS)
def test_half_runs_and_older_ones(weightsmith, tmp_path: Path, words: str) -> None:
    old, half = tmp_path / "old", tmp_path / "half"
    old.mkdir()
    (old / "config.yaml").write_text("seed: 42\ngone_option: 1\n")
    (half / "checkpoints").mkdir(parents=True)
    (half / "config.yaml").write_text("seed: 42\n")
    (half / "checkpoints" / "checkpoint.pt").write_bytes(b"cut off")
    given = words.format(old=old, half=half, out=tmp_path / "out").split()
    more = [] if given[0] in ("merge", "edits") else ["--runs-dir", str(tmp_path)]
    seen = weightsmith(*given, *more)
    errors = [line for line in seen.err.splitlines() if line.startswith("error:")]
    assert seen.status == 1
    assert len(errors) == 1
    assert READS[words] in errors[0]
    assert "{" not in errors[0]
    assert "Traceback" not in seen.err
    assert not (tmp_path / "out").exists()
