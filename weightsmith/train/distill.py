"""Train a smaller classifier towards the distribution that the whole one gives: short recovery after removal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.measure import predict
from weightsmith.models import Model
from weightsmith.train.images import ImageTraining, TrainOptions
from weightsmith.train.loop import History


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainOptions):
    """Hyper-parameters of `distill`, beside those of `TrainOptions`.

    Attributes:
        temperature: T, by which both models' logits are divided before the softmax.
        label_weight: α in [0, 1], the share of the loss that the labels have.

    Raises:
        WeightsmithError: a temperature that is not positive, or a share outside [0, 1].
    """

    epochs: int = 3
    temperature: float = 1.0
    label_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise WeightsmithError(
                f"the temperature of distillation must be positive, not {self.temperature:g}: give 1"
            )
        if not 0 <= self.label_weight <= 1:
            raise WeightsmithError(
                f"the share of the labels in distillation must lie from 0 to 1, not {self.label_weight:g}: give 0"
            )


def distill(
    model: Model,
    teacher: Model,
    train: ImageSet,
    val: ImageSet,
    options: DistillOptions,
    checkpoint: Path,
    *,
    resume: bool = False,
    pin_memory: bool = True,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
) -> History:
    """Train `model` in place towards the teacher, and leave it with the weights of the epoch of best validation accuracy.

    Hinton, Vinyals and Dean 2015: the loss of an image is (1 − α) T² KL(p_T ‖ q_T) + α CE(label, q), where p_T and q_T
    are the teacher's and the model's distribution at temperature T, and α is `label_weight`. T² keeps the gradient's
    size the same at every T (their section 2). Both models see the same view of an image. Deviation: they give the
    cross-entropy to p_T in place of the KL divergence, whose gradient is the same.

    The weights as given are a candidate too, as epoch 0: on the validation images the model never gets worse. Checkpoints
    are those of `fit`.

    Returns:
        The history. Its first row is epoch 0, which has no training loss; each row has val_kl, the mean KL(p ‖ q) on the
        validation images in nats at T = 1.

    Raises:
        WeightsmithError: as `fit`; also models of different classes, and a checkpoint of another teacher.
        HeldOutError: a sealed part.
    """
    if teacher.n_classes != model.n_classes:
        raise WeightsmithError(
            f"{model.name} has {model.n_classes} classes and its teacher {teacher.name} {teacher.n_classes}: give a teacher "
            "of the same classes"
        )
    return _Distilling(model, teacher, train, val, options, checkpoint, pin_memory, on_epoch).go(resume)


class _Distilling(ImageTraining):
    rate_flag = "--recover-lr"
    data_words = {**ImageTraining.data_words, "teacher": "another model to learn from"}  # noqa: RUF012

    def __init__(
        self,
        model: Model,
        teacher: Model,
        train: ImageSet,
        val: ImageSet,
        options: DistillOptions,
        checkpoint: Path,
        pin_memory: bool,
        on_epoch: Callable[[list[dict[str, float]]], None] | None,
    ) -> None:
        beside = {"teacher": teacher.fingerprint()}
        super().__init__(model, train, val, options, checkpoint, pin_memory, on_epoch, beside)
        self.teacher, self.temperature, self.label_share = teacher, options.temperature, options.label_weight
        self.clean = predict(teacher, val, title="the whole model").logits.double().log_softmax(-1)
        before: dict[str, float] = {"epoch": 0, "train_loss": math.nan, "train_accuracy": math.nan}
        before |= {**self._measure(), "lr": 0.0, "seconds": 0.0}
        self.state.rows.append(before)
        self.state.best = self._score(before)
        self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in model.module.state_dict().items()}

    def _loss(self, logits: Tensor, wanted: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            given = self.teacher.logits(self.teacher.preprocess(pixels, self.teacher.device)).to(logits.device)
        wanted_distribution = (given.float() / self.temperature).log_softmax(-1)
        found = (logits.float() / self.temperature).log_softmax(-1)
        apart = self.temperature**2 * F.kl_div(found, wanted_distribution, reduction="batchmean", log_target=True)
        if self.label_share == 0:
            return apart
        return (1 - self.label_share) * apart + self.label_share * super()._loss(logits, wanted, pixels)

    def _measure(self) -> dict[str, float]:
        seen = predict(self.model, self.val, title="validation")
        apart = (self.clean.exp() * (self.clean - seen.logits.double().log_softmax(-1))).sum(-1)
        loss = F.cross_entropy(seen.logits, seen.labels)
        return {"val_loss": float(loss), "val_accuracy": seen.accuracy, "val_kl": float(apart.mean())}

    def _told(self, row: dict[str, float]) -> str:
        return f"val accuracy {row['val_accuracy']:.4f}, KL to the whole model {row['val_kl']:.4f}"
