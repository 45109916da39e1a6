"""Whose head the merged model gets, where models were fine-tuned with heads of their own.

A head is found by its role: the classifier that the family of the model's config names, never by a part of a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.merge.checkpoint import Checkpoint


@dataclass(frozen=True)
class HeadPolicy:
    """What becomes of the head.

    Attributes:
        way: merge it like any tensor, keep the base's, take a model's, or leave it out of the merged model.
        model: whose it is, from 0, where it is taken.
    """

    way: Literal["merge", "base", "take", "skip"] = "merge"
    model: int = 0

    @classmethod
    def parse(cls, text: str, models: int) -> HeadPolicy:
        """The policy that `--head` names: merge, base, take:I or skip.

        Raises:
            WeightsmithError: another word, or a model that is not there.
        """
        if text in ("merge", "base", "skip"):
            return cls(text)  # type: ignore[arg-type]
        word, _, number = text.partition(":")
        if word != "take" or not number.isdecimal():
            meant = did_you_mean(text, ["merge", "base", "skip", "take:0"])
            raise WeightsmithError(f"--head {text} is not understood, any I is good in take:I: {meant}")
        if int(number) >= models:
            raise WeightsmithError(
                f"--head {text} names no model: --models has {models}, counted from 0; give one of these"
            )
        return cls("take", int(number))

    def __str__(self) -> str:
        return f"take:{self.model}" if self.way == "take" else self.way


def head_names(checkpoint: Checkpoint) -> frozenset[str]:
    """The tensors of a checkpoint's head.

    Raises:
        WeightsmithError: no config says what architecture it is, no family describes it, or its head is tied to the embedding.
    """
    kind = checkpoint.config.get("model_type")
    if not kind:
        raise WeightsmithError(
            f"--head needs to know which tensors of {checkpoint.name} are its head, and no config.json beside its weights says "
            "what architecture it is: give the model's folder, or --head merge"
        )
    from weightsmith.models.family import families  # brings torch along, which a merge without --head does without

    found = next((family for family in families().values() if kind in family.model_types), None)
    if found is None:
        known = did_you_mean(str(kind), [kind for family in families().values() for kind in family.model_types])
        raise WeightsmithError(
            f"--head needs a family table for the model type {kind} of {checkpoint.name}, and there are {known}: give --head "
            "merge, or add a table to weightsmith/models/families"
        )
    inside = (name.removeprefix(f"{found.blocks}.") for name in checkpoint.names if name.startswith(f"{found.blocks}."))
    layers = len({name.partition(".")[0] for name in inside})
    paths = found.head_paths(layers, int(checkpoint.config.get("head_layers") or 1))
    names = frozenset(name for name in checkpoint.names if name.startswith(tuple(f"{path}." for path in paths)))
    if not names:
        raise WeightsmithError(
            f"{checkpoint.name} has no tensors of its own for {found.classifier}, which is tied to the embedding: give --head "
            "merge"
        )
    return names
