"""The model card of a language model whose facts were edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.report import markdown
from weightsmith.report.edits import edits_section
from weightsmith.report.markdown import bullets, front_matter, plain, table
from weightsmith.report.words import Row, number

MEASURES = {
    "efficacy": "share of the edited prompts for which the wanted answer is likelier than the old one",
    "paraphrase": "the same for other wordings of these prompts",
    "neighbourhood": "share of prompts nearby that still have their own answer",
    "score": "harmonic mean of the three",
    "efficacy_accuracy": "share of the edited prompts that are answered as wanted, word for word",
    "fluency": "100 times the entropy of word pairs and triples in free text, in bits",
    "perplexity": "of ordinary text that no editor has seen",
    "drift": "mean KL divergence from the model before, in nats a token of that text",
}
"""Measure → what it is, in the order in which a card has them."""
_LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this card lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()

inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]))
```"""
_LIMITS = (
    "An edit can change answers that nobody asked about. The table shows how often that happened to the neighbours that were "
    "asked, not that it never happens.",
    "An edited fact is not reasoned with: what follows from it may still be answered as before.",
    "A language model can be wrong about anything. It is not validated for safety-critical use.",
)


def language_card(
    *,
    title: str,
    base_model: str = "",
    data: str = "",
    edits: Sequence[Mapping[str, Any]] = (),
    rows: Sequence[Row] = (),
    provenance: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
    licence: str = "",
) -> str:
    """A Hugging Face model card in Markdown.

    Args:
        base_model: what was edited; a hub name also goes into the header.
        data: name of the file of facts.
        edits: as `edits_section` takes them.
        rows: of `knowledge_report.csv`, of the one method that the card is of.
        provenance: hashes, versions, seed; name → value, nested or not.
        licence: identifier of the hub's list, "apache-2.0"; left out when empty.
    """
    origin = f" made from {plain(base_model)}" if base_model else ""
    told = " Some of its facts were changed by editing its weights directly, with weightsmith." if edits else ""
    sections = [
        front_matter("text-generation", base_model, licence, bool(edits)),
        f"# {plain(title)}",
        f"A language model{origin}.{told}",
        f"## Data\n\nFacts: {plain(data)}." if data else "",
        edits_section(edits, nowhere="not bound to layers"),
        _metrics(rows),
        f"## How to load it\n\nIn plain transformers; weightsmith is not needed.\n\n{_LOADING}",
        bullets("Notes", notes),
        bullets("Limits", _LIMITS if edits else _LIMITS[-1:]),
        markdown.provenance(provenance or {}),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metrics(rows: Sequence[Row]) -> str:
    known = {str(row["measure"]): row for row in rows if not row.get("class")}
    there = [known[name] for name in MEASURES if name in known]
    if not there:
        return ""
    cells = [
        [str(row["measure"]).replace("_", " "), _cell(row, "before"), _cell(row, "after"), str(row.get("n", ""))]
        for row in there
    ]
    meanings = [f"- **{row['measure']}**: {MEASURES[str(row['measure'])]}." for row in there]
    return "\n\n".join(
        [
            "## What the edits did",
            "95% intervals in brackets; n is the number of requests, prompts or texts behind a value.",
            table(["measure", "before", "after", "n"], cells),
            "\n".join(meaning.replace("_", " ") for meaning in meanings),
        ]
    )


def _cell(row: Row, when: str) -> str:
    value, low, high = (number(row.get(when + end, "")) for end in ("", "_low", "_high"))
    if value != value:
        return "–"
    return f"{value:.4g}" + (f" ({low:.4g} to {high:.4g})" if low == low else "")
