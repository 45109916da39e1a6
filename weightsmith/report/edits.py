"""What was edited, as a section of a model card: by which method, in which layers, how far, and each single edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.report.markdown import plain, short, table

MOST = 50
"""Edits that a card lists one by one; the run's edit log has all of them."""


def edits_section(edits: Sequence[Mapping[str, Any]], nowhere: str = "classifier") -> str:
    """A row a method, and below it the single edits where they are known.

    Args:
        edits: a mapping each with method, layers, corrections (how many were asked for) and, where known, reached (how many
            of them the edited model gets right), norm (Frobenius, of the whole change) and changes: a mapping each with
            asked, before, wanted, after.
        nowhere: what is changed where no layers are named.
    """
    if not edits:
        return ""
    rows = [
        [
            plain(str(edit["method"])),
            ", ".join(str(layer) for layer in edit.get("layers") or ()) or nowhere,
            str(edit.get("corrections", "")),
            str(edit.get("reached", "")),
            f"{edit['norm']:.4g}" if "norm" in edit else "",
        ]
        for edit in edits
    ]
    header = ["method", "layers changed (from 0)", "corrections asked for", "reached", "norm of the change"]
    there = [0, 1, 2, *(place for place, key in ((3, "reached"), (4, "norm")) if any(key in edit for edit in edits))]
    lines = ["## Edits", table([header[i] for i in there], [[row[i] for i in there] for row in rows])]
    lines += [_single(edit["changes"]) for edit in edits if edit.get("changes")]
    return "\n\n".join(lines)


def edit_entry(
    info: Mapping[str, Any], norm: float, names: Sequence[str] = (), asked: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """An entry of `edits_section` from what an editor's delta says of itself.

    Args:
        info: of the delta; one that is a sum of others says nothing of single edits.
        names: of the classes, by which numbers are told.
        asked: request → its prompt, of a language model.
    """
    rows: Sequence[Mapping[str, Any]] = info.get("requests", ())
    known = dict(enumerate(names))

    def told(value: object) -> str:
        return known.get(value, str(value)) if isinstance(value, int) else str(value)

    return {
        "method": str(info.get("method", "sum of deltas")),
        "layers": info.get("layers") or (),
        "corrections": len(rows),
        "reached": sum(bool(row.get("success")) for row in rows),
        "norm": norm,
        "changes": [
            {
                "asked": (asked or {}).get(str(row.get("sample", "")), str(row.get("sample", ""))),
                **{name: told(row.get(key, "")) for name, key in (("before", "before"), ("wanted", "target"))},
                "after": told(row.get("after", "")),
            }
            for row in rows
        ],
    }


def _single(changes: Sequence[Mapping[str, str]]) -> str:
    rows = [[short(change[key]) for key in ("asked", "before", "wanted", "after")] for change in changes[:MOST]]
    listing = table(["edited", "before", "wanted", "after"], rows)
    more = len(changes) - len(rows)
    return listing + (f"\n\nAnd {more} more, which the edit log of the run has." if more else "")
