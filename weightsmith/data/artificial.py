"""Artificial classification tasks: two tables that a pair of tasks is learned from, made by scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sklearn.datasets import make_classification

from weightsmith.errors import WeightsmithError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class ArtificialTask:
    """What `sklearn.datasets.make_classification` is asked for; what is not named here is left at its defaults.

    Attributes:
        n_samples, n_features, n_classes: sizes of the table.
        n_informative: features that the class depends on; two more are mixtures of these, the rest is noise.
        seed: of the table.
        n_clusters_per_class: Gaussian clusters a class, at corners of a cube.
        class_sep: half the side of that cube.
    """

    n_samples: int
    n_features: int
    n_classes: int
    n_informative: int
    seed: int
    n_clusters_per_class: int = 2
    class_sep: float = 1.0

    def make(self) -> tuple[np.ndarray, np.ndarray]:
        """(features (n, d) float32, labels (n,) int64)."""
        features, labels = make_classification(
            n_samples=self.n_samples,
            n_features=self.n_features,
            n_informative=self.n_informative,
            n_classes=self.n_classes,
            n_clusters_per_class=self.n_clusters_per_class,
            class_sep=self.class_sep,
            random_state=self.seed,
        )
        return features.astype(np.float32), labels.astype(np.int64)


_FIRST = ArtificialTask(n_samples=10_000, n_features=512, n_classes=10, n_informative=50, seed=42)
_SECOND = ArtificialTask(n_samples=8_000, n_features=512, n_classes=15, n_informative=60, seed=123)

PRESETS: dict[str, tuple[ArtificialTask, ArtificialTask]] = {
    "plain": (_FIRST, _SECOND),
    "informative": (
        replace(_FIRST, n_clusters_per_class=1, class_sep=2.0),
        replace(_SECOND, n_clusters_per_class=1, class_sep=2.0),
    ),
}
"""Name → (the task that the base is trained on, the task that it is fine-tuned on)."""


def tasks(preset: str) -> tuple[ArtificialTask, ArtificialTask]:
    """The two tasks of a preset. Raises `WeightsmithError` naming `--preset`."""
    if preset not in PRESETS:
        raise WeightsmithError(f"--preset {preset} is no preset: {did_you_mean(preset, PRESETS)}")
    return PRESETS[preset]
