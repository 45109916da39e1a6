"""`--completion`: what bash proposes, asked of bash itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ASK = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(( $# - 1 ))
$(complete -p weightsmith | sed 's/.*-F \\([^ ]*\\).*/\\1/') weightsmith
printf '%s\\n' "${COMPREPLY[@]}"
"""

needs_bash = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("python3") is None, reason="bash or python3 is not installed"
)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from weightsmith.cli.parsing import completion

    path = tmp_path_factory.mktemp("completion") / "weightsmith.bash"
    path.write_text(completion("bash"))
    return path


@needs_bash
@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        (["m"], {"merge"}),
        (["locate", ""], {"trace", "patch", "attribution", "astra"}),
        (["locate", "patch", "--corruption", ""], {"greyscale", "blur", "noise"}),
        (["merge", "--method", "t"], {"ties", "task_arithmetic", "tsv"}),
        (["run", "--dry"], {"--dry-run"}),
        (["edits", "list", "--js"], {"--json"}),
    ],
)
def test_bash_proposes(script: Path, words: list[str], proposed: set[str]) -> None:
    command = ["bash", "-c", ASK, "bash", str(script), "weightsmith", *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found = set(answer.stdout.split())
    assert proposed <= found
    assert all(name.startswith(words[-1]) for name in found)


def test_another_shell(weightsmith) -> None:
    seen = weightsmith("--completion=zsh")
    assert seen.status == 0
    assert seen.out.startswith("#compdef weightsmith")
    assert "--dry-run" in seen.out
