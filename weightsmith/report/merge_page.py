"""The page of a merged model: what it was made of, how far its sources lie apart, and what became of every tensor.

A merge does without torch, and so does its page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.report.parts import Block, TableBlock, Words
from weightsmith.report.render import PageInputs, PageSection, page_of

_ABOUT = (
    "Several models that were fine-tuned from one base, made into one by arithmetic on their weights. No training was done, "
    "and nothing was measured of what the merged model can do unless a section below says so: evaluate it before it is used."
)
_MOST_NAMES = 60
"""Names of tensors in a list."""


def build_merge(report: Mapping[str, Any], title: str, sections: Sequence[PageSection] = ()) -> str:
    """The page as text.

    Args:
        report: what `merge_report.json` holds.
        title: heading of the page.
        sections: what else is known, such as a search of coefficients; they come first.
    """
    output = report["output"]
    copied, left = report["copied_tensors"], report["left_out"]
    summary = [
        f"{len(report['models'])} model{'s' * (len(report['models']) > 1)} and the base {report['base']['name']} became one by "
        f"{report['method']}.",
        f"{output['tensors']:,} tensors, {_megabytes(output['bytes'])}: {report['merged_tensors']:,} merged, {len(copied):,} "
        f"taken as they are, {len(left):,} left out. They were read back from the disk and are what was merged.",
    ]
    if report.get("lost_to_rounding"):
        summary.append(
            f"Rounding to the stored numbers took {report['lost_to_rounding']:.2%} of the merged change, as norms."
        )
    config = {
        "method": report["method"],
        **{f"parameters.{name}": value for name, value in report["parameters"].items()},
        "weights": [model["weight"] for model in report["models"]],
        "head": report["head"],
        "dtype": report["dtype"],
    }
    env = {
        "weightsmith": report["version"],
        "base": _identity(report["base"]),
        **{f"models.{place}": _identity(model) for place, model in enumerate(report["models"])},
        "output.fingerprint": output["fingerprint"],
        "output.files": output["files"],
    }
    return page_of(
        PageInputs(
            title=title,
            about=_ABOUT,
            summary=summary,
            notes=report["notes"],
            sections=[
                *sections,
                PageSection("models", "What it was made of", [_sources(report)], link="Models"),
                PageSection("tensors", "Tensors that were not merged", [*_names(copied, left)], link="Tensors"),
            ],
            config=config,
            env=env,
        )
    )


def _sources(report: Mapping[str, Any]) -> Block:
    rows = [
        {"model": report["base"]["name"], "part": "base", "weight": "", "change / base": ""} | _facts(report["base"])
    ]
    for model in report["models"]:
        ratio = model["change_over_base"]
        rows.append(
            {
                "model": model["name"],
                "part": "fine-tuned",
                "weight": f"{model['weight']:g}",
                "change / base": "inf" if ratio is None else f"{ratio:.4f}",
            }
            | _facts(model)
        )
    return TableBlock(
        title="Sources",
        rows=rows,
        caption="Change / base is the norm of what fine-tuning changed, by the norm of the base's weights, over the merged "
        "tensors. Models fine-tuned from one base lie near it; one of another lineage is about 1 away or more.",
    )


def _facts(source: Mapping[str, Any]) -> dict[str, str]:
    return {
        "tensors": str(source["tensors"]),
        "size": _megabytes(source["bytes"]),
        "fingerprint": source["fingerprint"][:16],
    }


def _names(copied: Sequence[str], left: Sequence[str]) -> list[Block]:
    found: list[Block] = []
    for told, names in (
        ("Taken as they are, from the base or from the model that the head is taken of", copied),
        ("Left out", left),
    ):
        if names:
            more = f", and {len(names) - _MOST_NAMES:,} more in merge_report.json" if len(names) > _MOST_NAMES else ""
            found.append(Words(sentences=[f"{told}: {', '.join(names[:_MOST_NAMES])}{more}."]))
    return found


def _identity(source: Mapping[str, Any]) -> str:
    told = f"{source['name']}, fingerprint {source['fingerprint']}"
    return told + (f", SHA-256 {source['sha256']}" if "sha256" in source else "")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} bytes"
