"""A row of `evaluation_report.csv`, the same for images and for language."""

from __future__ import annotations

from weightsmith.measure import Interval


def report_row(measure: str, class_name: str, before: Interval | None, after: Interval) -> dict[str, object]:
    """Measure, class, value before and after with 95% intervals, n; the fields of before are "" where there is none."""

    def entries(prefix: str, interval: Interval | None) -> dict[str, object]:
        if interval is None:
            return {prefix: "", f"{prefix}_low": "", f"{prefix}_high": ""}
        return {
            prefix: round(interval.value, 6),
            f"{prefix}_low": round(interval.low, 6),
            f"{prefix}_high": round(interval.high, 6),
        }

    return {
        "measure": measure,
        "class": class_name,
        **entries("before", before),
        **entries("after", after),
        "n": after.n,
    }
