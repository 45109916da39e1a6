"""The four numbers by which methods are compared, the same for image classifiers and for language models."""

from __future__ import annotations

import numpy as np

from weightsmith.evaluate.editing import EditReport
from weightsmith.evaluate.knowledge import KnowledgeReport, by_kind, harmonic, succeeded
from weightsmith.measure import Interval
from weightsmith.measure.intervals import shares

HEADLINE = ("efficacy", "paraphrase", "neighbourhood", "composite")
"""The keys of `headline`, in order."""


def headline(report: EditReport | KnowledgeReport) -> dict[str, Interval]:
    """Efficacy, paraphrase, neighbourhood and their harmonic mean, the composite, under the keys of `HEADLINE`.

    Of a language model these are ES, PS, NS and the score, with intervals that resample requests. Where no truth is
    known there is no ES or PS, and the teacher-forced accuracies of rewrites and paraphrases stand in their place.

    Of an image classifier they are efficacy, generalisation over views and locality. Its three parts come of samples
    that are not matched, so the composite's bounds are the harmonic means of theirs: 95% if the three move together,
    wider otherwise.
    """
    if isinstance(report, EditReport):
        parts = (report.efficacy, report.generalisation, report.locality)
        ends = np.array([[getattr(part, end) for part in parts] for end in ("value", "low", "high")])
        value, low, high = (float(mean) for mean in harmonic(ends))
        return dict(zip(HEADLINE, (*parts, Interval(value, low, high, min(part.n for part in parts))), strict=True))
    if report.efficacy.n:
        parts = (report.efficacy, report.paraphrase, report.neighbourhood)
        return dict(zip(HEADLINE, (*parts, report.score), strict=True))
    columns = by_kind(report.after, report.after.exact)
    columns[:, 2] = by_kind(report.after, succeeded(report.after))[:, 2]
    accuracy = report.scores_after.accuracy
    parts = (accuracy.rewrite, accuracy.paraphrase, report.neighbourhood)
    return dict(zip(HEADLINE, (*parts, shares(columns, harmonic)[-1]), strict=True))
