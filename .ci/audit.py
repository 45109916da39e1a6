"""Ask which installed packages have known vulnerabilities: 1 where one has that is mended in a later version.

All are told, and one line where nobody could be asked.

    python .ci/audit.py .venv/bin/pip-audit

pip-audit ends well where its index knows none of the packages, so what was asked about is counted here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def audited(command: list[str]) -> tuple[int, str]:
    """(exit status, what to say)."""
    asked = [*command, "--local", "--skip-editable", "--progress-spinner", "off", "--timeout", "15", "--format", "json"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603 (as typed)
        entries: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired) as error:
        return 0, f"dependencies could not be audited ({error}): nothing is known of them"
    except (ValueError, KeyError, TypeError):
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return 0, f"dependencies could not be audited ({said[-1][:200]}): nothing is known of them"
    known = [entry for entry in entries if "version" in entry]
    found = [(entry, one) for entry in known for one in entry.get("vulns", ())]
    lines = [
        f"{entry['name']} {entry['version']} has {one['id']}: mended in {', '.join(one['fix_versions']) or 'no version yet'}"
        for entry, one in found
    ]
    if not known:
        lines.append(f"dependencies could not be audited: the index knows none of {len(entries)} packages")
    else:
        lines.append(f"{len(known)} of {len(entries)} packages audited, {len(found)} vulnerabilities")
    return int(any(one["fix_versions"] for _, one in found)), "\n".join(
        lines
    )  # what nobody has mended, nobody can take


if __name__ == "__main__":
    status, told = audited(sys.argv[1:])
    sys.stdout.write(told + "\n")
    raise SystemExit(status)
