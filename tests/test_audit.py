"""The audit of dependencies: a vulnerability fails it, a machine without network does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"
GOOD = {"name": "torch", "version": "2.13.0", "vulns": []}
BAD = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": []}]}
UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found on PyPI and could not be audited: ours (0.1)"}


def answering(folder: Path, stdout: str, status: int, stderr: str = "") -> list[str]:
    """A command in pip-audit's place that says this."""
    script = folder / "said.py"
    script.write_text(f"import sys\nsys.stdout.write({stdout!r})\nsys.stderr.write({stderr!r})\nsys.exit({status})\n")
    return [sys.executable, str(script)]


def audited(command: list[str]) -> tuple[int, str]:
    done = subprocess.run([sys.executable, AUDIT, *command], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("entries", "status", "told"),
    [
        ([GOOD, UNKNOWN], 0, "1 of 2 packages audited, 0 vulnerabilities\n"),
        ([GOOD, BAD], 1, "old 1.0 has PYSEC-1: mended in 1.1\n2 of 2 packages audited, 1 vulnerabilities\n"),
        ([UNKNOWN, UNKNOWN], 0, "dependencies could not be audited: the index knows none of 2 packages\n"),
    ],
)
def test_what_was_found(tmp_path: Path, entries: list[dict[str, object]], status: int, told: str) -> None:
    said = json.dumps({"dependencies": entries, "fixes": []})
    assert audited(answering(tmp_path, said, status)) == (status, told)


def test_without_network(tmp_path: Path) -> None:
    broken = answering(tmp_path, "", 1, "Traceback\nrequests.exceptions.ConnectionError: no route\n")
    status, told = audited(broken)
    assert (status, told.count("\n")) == (0, 1)
    assert "could not be audited (requests.exceptions.ConnectionError: no route)" in told


def test_without_pip_audit(tmp_path: Path) -> None:
    status, told = audited([str(tmp_path / "pip-audit")])
    assert (status, told.count("\n")) == (0, 1)
    assert "could not be audited" in told
