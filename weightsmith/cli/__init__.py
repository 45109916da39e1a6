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
from weightsmith.cli.starting import collector_paused
from weightsmith.ranks import helping, led

__all__ = ["main"]

_HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `weightsmith` command; `weightsmith.cli.exits` has the exit status that it ends with."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    first, second = (*given, "", "")[:2]
    if first in _HELP or (first in GROUPS and second in _HELP):
        _write(group_help(first) if first in GROUPS else general_help())
        return
    if first in ("-V", "--version"):
        from weightsmith import __version__

        _write(f"weightsmith {__version__}\n")
        return
    if first.partition("=")[0] == "--completion":
        _complete(first.partition("=")[2] or second)
        return
    if helping():
        with led():
            return
    with collector_paused():
        from weightsmith.cli.names import check_names
        from weightsmith.cli.parsing import parse
        from weightsmith.cli.wording import UsageError
        from weightsmith.errors import WeightsmithError

        try:
            check_names(given)
            call = parse(given)
        except (UsageError, WeightsmithError) as error:
            _fail(str(error), FLAGS.status if isinstance(error, UsageError) else REFUSED.status, "--json" in given)
        from weightsmith.cli.running import carried_out

    status = carried_out(call)
    if status:
        raise SystemExit(status)


def _complete(shell: str) -> None:
    from weightsmith.cli.parsing import SHELLS, completion
    from weightsmith.errors import did_you_mean

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
