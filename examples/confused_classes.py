"""One class is taken for another: its errors alone are corrected, and every cell of the confusion matrix is looked at.

    python examples/confused_classes.py --model runs/cifar10 --data-path cifar10 --true cat --given dog
    python examples/confused_classes.py --model runs/cifar10 --data-path cifar10            # the pair that is confused most

Corrections come from validation images; the held-out part that the model's run recorded tells what they did to everything else.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

import weightsmith as ws
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate import answers_of, confusion_matrix
from weightsmith.run.recorded import recorded_split


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the run that trained the classifier")
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--true", help="the class that images have [of the pair confused most]")
    parser.add_argument("--given", help="the class that the model gives them")
    parser.add_argument("--max-edits", type=int, default=30)
    parser.add_argument("--out", default="confused.safetensors", help="the edit")
    given = parser.parse_args(arguments)

    model, source = ws.load(given.model), ws.data.open_data(given.data_path)
    recorded = recorded_split(given.model, source)
    if recorded is None or not recorded.held():
        raise SystemExit(
            f"{given.model} records no split of {given.data_path}: give the run that trained the classifier"
        )
    train, val = recorded.part("train", source), recorded.part("val", source)
    held_out = recorded.part(recorded.held()[0], source)

    errors = ws.misclassified(model, val)
    names = source.class_names
    pairs = [(request.target, request.predicted) for request in errors]
    wanted = (names.index(given.true), names.index(given.given)) if given.true else max(set(pairs), key=pairs.count)
    batch = [request for request, pair in zip(errors, pairs, strict=True) if pair == wanted][: given.max_edits]
    true, false = (names[label] for label in wanted)
    console = Console()
    console.print(
        f"{pairs.count(wanted)} validation images of {true} are taken for {false}; {len(batch)} are corrected"
    )

    delta = ws.edit.Patcher().solve(model, batch, preserve=train)
    before = answers_of(model, held_out)
    with delta.on(model):
        after = answers_of(model, held_out)
    delta.save(given.out)

    was, now = confusion_matrix(before), confusion_matrix(after)
    console.print(
        f"held out: {ws.evaluate.accuracy_change(before, after)} change of accuracy, {len(before.names)} images"
    )
    table = Table("true class", "given", "before", "after", title="The cells that changed most", box=None)
    order = np.argsort(-np.abs(now - was), axis=None, kind="stable")[:8]
    for label, answer in (divmod(int(place), len(names)) for place in order):
        table.add_row(names[label], names[answer], str(was[label, answer]), str(now[label, answer]))
    console.print(table)
    console.print(f"{true} taken for {false}: {was[wanted]} before, {now[wanted]} after; the edit is {given.out}")


if __name__ == "__main__":
    try:
        main()
    except WeightsmithError as error:
        raise SystemExit(f"error: {error}") from None
