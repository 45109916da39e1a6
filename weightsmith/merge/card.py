"""The card of a merged model: what it was made of, for somebody who finds the folder alone.

The cards of the room `report` bring torch along, which a merge does without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_PIPELINES = {
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
}
"""How the name of an architecture ends → what the hub calls what it does."""
_MARKUP = re.compile(r"([\\`*{}\[\]<>|#$~_])")


def merged_card(report: Mapping[str, Any]) -> str:
    """A model card in Markdown.

    Args:
        report: what `merge_report.json` holds.
    """
    entries: dict[str, Any] = {"library_name": "transformers", "tags": ["weightsmith", "merge"]}
    does = [
        tag for end, tag in _PIPELINES.items() if any(name.endswith(end) for name in report.get("architectures", ()))
    ]
    entries |= {"pipeline_tag": does[0]} if does else {}
    header = yaml.safe_dump(entries, sort_keys=False)
    models = [
        [
            _plain(str(model["name"])),
            f"{model['weight']:g}",
            "inf" if model["change_over_base"] is None else f"{model['change_over_base']:.4f}",
            model["fingerprint"][:16],
        ]
        for model in report["models"]
    ]
    base, output = report["base"], report["output"]
    parameters = ", ".join(f"{name} {value}" for name, value in report["parameters"].items())
    sections = [
        f"---\n{header}---",
        "# A merged model",
        f"Made with weightsmith {_plain(report['version'])} by {_plain(report['method'])} ({_plain(parameters)}) from the base "
        f"{_plain(str(base['name']))} (fingerprint {base['fingerprint'][:16]}) and the models below. No training was done"
        f"{'.' if 'search' in report else ', and nothing was measured of what it can do: evaluate it before it is used.'}",
        _search(report.get("search")),
        "## Models",
        _table(["model", "weight", "‖change‖ / ‖base‖", "fingerprint"], models),
        "## Tensors",
        f"{output['tensors']} tensors, {output['bytes']} bytes, fingerprint {output['fingerprint']}; "
        f"{report['merged_tensors']} were merged, {len(report['copied_tensors'])} taken as they are, "
        f"{len(report['left_out'])} left out. Head: {_plain(report['head'])}.",
        _notes(report["notes"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _search(found: Mapping[str, Any] | None) -> str:
    """What a search for the coefficient came to: test accuracies with their 95% intervals."""
    if found is None:
        return ""
    words = {"base": "base", "own": "its own model", "merged": f"merged, at {found['coefficient']:g}"}
    rows = [
        [
            _plain(str(row["data"])),
            words[row["backbone"]],
            f"{100 * row['test_accuracy']:.1f}% ({100 * row['test_low']:.1f} to {100 * row['test_high']:.1f})",
            str(row["test_n"]),
        ]
        for row in found["test"]
    ]
    told = (
        f"The coefficient {found['coefficient']:g} was chosen on validation images among {len(found['coefficients'])}."
    )
    if found["control_keep"] is not None:
        told += f" The control had to keep {found['control_keep']:.0%} of the base's accuracy."
    return f"## Accuracy\n\n{told}\n\n" + _table(["data", "backbone", "test accuracy", "images"], rows)


def _notes(sentences: Sequence[str]) -> str:
    return "## Notes\n\n" + "\n".join(f"- {_plain(sentence)}" for sentence in sentences) if sentences else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(text: str) -> str:
    """Text from outside on one line, with what Markdown or HTML would act on escaped."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
