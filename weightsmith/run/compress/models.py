"""The smaller models of `weightsmith compress`: searched for, recovered, and kept with what is known of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from weightsmith import __version__, report
from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_folder, write_csv, write_json
from weightsmith.models import Model, load, registered_by, save
from weightsmith.models.onnx_export import save_onnx
from weightsmith.prune import Circuit
from weightsmith.run.cells import key_of, told
from weightsmith.run.compress.baseline import Baseline, baseline_there
from weightsmith.run.compress.goals import Goal, recovery
from weightsmith.run.compress.record import OPTIMIZED, RECORD, Optimized, notes_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.options.compress import CompressOptions
from weightsmith.run.session import flag
from weightsmith.run.spread import Failure, Measure, Settings, Sweep, check_folder, each
from weightsmith.train import distill

_log = logging.getLogger(__name__)


def elsewhere(options: CompressOptions, folder: RunFolder, fingerprint: str) -> Measure:
    """What makes models in a worker, which writes each into the run's folder. Raises as `baseline_there`."""
    check_folder(folder.path)
    return Workshop(options, folder, baseline_there(options, folder, fingerprint)).made


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where smaller models of one baseline are made."""

    options: CompressOptions
    folder: RunFolder
    baseline: Baseline

    def make(self, goals: Sequence[Goal], spread: Settings) -> list[tuple[str, str]]:
        """Make every model that is not there yet; (name, why) of those that cannot be made.

        Models that are as fast as asked are made in this process, after the others: what else runs would be in their times.

        Raises:
            WeightsmithError: one of other options is there, or none can be made, or with `overwrite` not all.
        """
        waiting = [goal for goal in goals if not self._is_there(goal)]
        if len(waiting) < len(goals):
            _log.info("%d of %d smaller models are there already", len(goals) - len(waiting), len(goals))
        failed: list[tuple[str, str]] = []
        timed = [goal for goal in waiting if goal.method == "latency"]
        others = [goal for goal in waiting if goal.method != "latency"]
        for some, settings in ((others, spread), (timed, Settings("processes", 1, spread.threads))):
            sweep = Sweep(
                cells=some,
                titles=[goal.name for goal in some],
                measure=self.made,
                make=partial(elsewhere, self.options, self.folder, self.baseline.model.fingerprint()),
                called="model",
            )
            for number, made in each(sweep, settings):
                name = some[number].name
                if isinstance(made, Failure):
                    failed.append((name, made.why))
                else:
                    self.folder.log_event("compress", "optimized", model=name, kl=made)
        # With --overwrite what was there would be lost for less.
        if failed and (len(failed) == len(goals) or self.options.overwrite):
            raise WeightsmithError(f"{failed[0][0]} cannot be made: {failed[0][1]}")
        broken = {name for name, _ in failed}
        if self.options.onnx:
            for goal in goals:
                path = self._place(goal) / "model.onnx"
                if goal.name not in broken and not path.exists():
                    _log.info("%s", path)
                    save_onnx(load(self._place(goal)), path)
        return failed

    def _place(self, goal: Goal) -> Path:
        return self.folder.path / OPTIMIZED / goal.name

    def _settings(self, goal: Goal) -> dict[str, Any]:
        """The options that a model depends on; those of the recovery only where there is one."""
        recover = ("recover_epochs", "recover_lr", "recover_temperature", "recover_label_weight")
        names = (
            "judging_images",
            "analysis_batches",
            "analysis_batch_size",
            *(recover if self.options.recover_epochs else ()),
        )
        return goal.settings(self.options) | {name: getattr(self.options, name) for name in names}

    def _key(self, goal: Goal, recovered: bool = True) -> str:
        split = self.baseline.split
        images, judging = goal.images(self.options, split), goal.judging(self.options, split)
        depends: dict[str, Any] = {
            "version": __version__,
            "baseline": self.baseline.model.fingerprint(),
            "images": images.digest(),
            "judging": judging.digest(),
        }
        depends |= {"method": goal.method, "value": goal.value, **goal.settings(self.options)}
        if recovered and self.options.recover_epochs:
            parts = {part: images.digest() for part, images in self.baseline.split.parts().items()}
            depends |= {"recovery": asdict(recovery(self.options)), "parts": parts}
        return key_of(depends)

    def _is_there(self, goal: Goal) -> bool:
        place = self._place(goal)
        there = Optimized.load(place)
        if there is None:
            return False  # nothing, or something that was damaged and is made again
        if there.key == self._key(goal):
            return True
        mine = self._settings(goal)
        other = [name for name in (*mine, *there.settings) if mine.get(name) != there.settings.get(name)]
        said = (
            ", ".join(f"{flag(name)} {there.settings.get(name)}" for name in dict.fromkeys(other)) or "another baseline"
        )
        raise WeightsmithError(
            f"{place} was made with other options ({said}): give the same, --overwrite to make it anew, or another "
            f"{flag(f'{goal.method}_base_name') if goal.method != 'latency' else '--run-name'}"
        )

    def made(self, goal: Goal) -> float:
        """Make one model, whole in its folder; the KL divergence from the baseline that its search came to.

        Raises:
            WeightsmithError: nothing reaches the goal.
        """
        options, baseline = self.options, self.baseline
        found, model, circuit = self._searched(goal)
        rows: list[dict[str, float]] = []
        if options.recover_epochs:
            history = distill(
                model,
                baseline.model,
                baseline.split.train,
                baseline.split.val,
                recovery(options),
                self._state(goal.name) / "recovery.pt",
                resume=True,  # a search that was stopped begins anew by itself, so does not what follows it
                pin_memory=options.pin_memory,
            )
            rows = list(history.rows)
            before, after = rows[0], rows[history.best_epoch]
            change: dict[str, Any] = {"epochs": options.recover_epochs, "best_epoch": history.best_epoch}
            change |= {f"{name}_before": before[name] for name in ("val_accuracy", "val_kl")}
            change |= {f"{name}_after": after[name] for name in ("val_accuracy", "val_kl")}
            found = replace(found, key=self._key(goal), recovery=change)
        self._save(found, model, self._place(goal), circuit, rows)
        self.folder.remove(self._state(goal.name))
        return found.kl.value

    def _state(self, name: str) -> Path:
        """Where a model waits between search and recovery."""
        return self.folder.checkpoints / name

    def _searched(self, goal: Goal) -> tuple[Optimized, Model, Circuit | None]:
        """(what was found, the model, the circuit); no circuit where a run that was stopped in the recovery had searched."""
        waiting = self._state(goal.name) / "searched"
        key = self._key(goal, recovered=False)
        known = Optimized.load(waiting)
        if self.options.recover_epochs and known is not None and known.key == key:
            _log.info("%s: the search is done already", goal.name)
            return known, load(waiting, device=str(self.baseline.model.device)), None
        self.folder.remove(self._state(goal.name))
        circuit = goal.circuit(self.options, self.baseline.model, self.baseline.split)
        found = Optimized(
            name=goal.name,
            method=goal.method,
            goal=goal.value,
            kept=circuit.kept,
            whole=self.baseline.shape,
            kl=circuit.kl,
            info=circuit.info,
            key=key,
            baseline=self.baseline.model.fingerprint(),
            settings=self._settings(goal),
        )
        if self.options.recover_epochs:
            self._save(found, circuit.model, waiting, circuit, [])
        return found, circuit.model, circuit

    def _save(
        self, found: Optimized, model: Model, place: Path, circuit: Circuit | None, rows: Sequence[dict[str, float]]
    ) -> None:
        """The model's folder, whole or not at all: weights, card, what is kept, and the trail of the search."""
        waiting = self._state(found.name) / "searched"
        with atomic_folder(place) as temporary:
            save(model, temporary, self._card(found, model))
            write_json(temporary / RECORD, found.to_json())
            if circuit is None:  # searched before the run was stopped
                for name in ("search.csv", "scores.csv"):
                    if (waiting / name).exists():
                        (temporary / name).write_bytes((waiting / name).read_bytes())
            else:
                columns = list(dict.fromkeys(name for row in circuit.rows for name in row))
                write_csv(temporary / "search.csv", circuit.rows, columns)
                if circuit.scores is not None:
                    write_csv(temporary / "scores.csv", circuit.scores.rows())
            if rows:
                write_csv(temporary / "recovery.csv", [{name: told(one) for name, one in row.items()} for row in rows])

    def _card(self, found: Optimized, model: Model) -> str:
        baseline = self.baseline
        return report.model_card(
            title=f"{baseline.source.name} classifier, made smaller",
            base_model=baseline.origin,
            architecture=f"ViT with {sum(map(len, found.kept.heads))} heads and {sum(map(len, found.kept.neurons))} neurons",
            data=baseline.source.name,
            class_names=baseline.source.class_names,
            channels=baseline.source.part("train").channels,
            split_rows=baseline.split.info(),
            notes=notes_of(found),
            provenance={"made from": found.baseline, "search": found.info, "settings": found.settings},
            registered_by=registered_by(model),
        )
