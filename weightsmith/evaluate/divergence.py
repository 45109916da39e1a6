"""How far one classifier's answers are from another's on the same images."""

from __future__ import annotations

from weightsmith.errors import WeightsmithError
from weightsmith.measure import Interval, Predictions
from weightsmith.measure.intervals import means


def divergence(whole: Predictions, other: Predictions) -> Interval:
    """Mean over images of KL(p ‖ q) = Σ_c p_c (log p_c − log q_c) in nats, with a bootstrap interval over images.

    Args:
        whole: p, the answers that count; other: q.

    Raises:
        WeightsmithError: answers on different images, or of different classes.
    """
    if whole.names != other.names or whole.logits.shape != other.logits.shape:
        raise WeightsmithError("these answers are on different images or classes: compare models on the same ones")
    p, q = (seen.logits.double().log_softmax(-1) for seen in (whole, other))
    values = (p.exp() * (p - q)).sum(-1).clamp_min(0.0)  # rounding alone goes below
    return means(values[:, None].numpy())[0]
