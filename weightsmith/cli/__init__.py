"""The command line. `commands` is the table of what there is, `parsing` turns words into the options of one command,
`telling` turns what it came to into text or JSON, `exits` says what the exit status means; `main` goes from one to the next.

Nothing heavy is imported before a command is known, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from weightsmith.cli.commands import GROUPS
from weightsmith.cli.exits import FLAGS, REFUSED
from weightsmith.cli.helping import general_help, group_help

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `weightsmith` command; `weightsmith.cli.exits` has the exit status that it ends with."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["-V"]):
        from weightsmith import __version__

        _write(f"weightsmith {__version__}\n")
        return
    if given[:1] in (["-h"], ["--help"]) or (given[0:1] and given[0] in GROUPS and given[1:2] in (["-h"], ["--help"])):
        _write(general_help() if given[0] not in GROUPS else group_help(given[0]))
        return
    if given[:1] == ["--completion"] or (given[:1] and given[0].startswith("--completion=")):
        _complete(given)
        return
    from weightsmith.cli.parsing import parse
    from weightsmith.cli.wording import UsageError
    from weightsmith.errors import WeightsmithError

    try:
        call = parse(given)
    except (UsageError, WeightsmithError) as error:
        _fail(str(error), FLAGS.status if isinstance(error, UsageError) else REFUSED.status, "--json" in given)
    from weightsmith.cli.running import carried_out

    status = carried_out(call)
    if status:
        raise SystemExit(status)


def _complete(given: Sequence[str]) -> None:
    from weightsmith.cli.parsing import SHELLS, completion
    from weightsmith.errors import did_you_mean

    shell = given[0].partition("=")[2] or (given[1] if len(given) > 1 else "")
    if shell not in SHELLS:
        told = f"--completion {shell} is unknown: {did_you_mean(shell, SHELLS)}"
        if not shell:
            told = f"--completion needs the name of a shell: give one of {', '.join(SHELLS)}"
        _fail(told, FLAGS.status, False)
    _write(completion(shell))


def _write(text: str) -> None:
    sys.stdout.write(text)


def _fail(text: str, status: int, as_json: bool) -> NoReturn:
    from weightsmith.cli.telling import tell_error

    tell_error(text, status, as_json=as_json)
    raise SystemExit(status)
