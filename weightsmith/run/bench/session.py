"""What a person does with a classifier's errors: look, preview an edit, keep it, undo it. No page is needed for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from weightsmith.data.images import ImageSet
from weightsmith.data.split import sample
from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.measure import predict
from weightsmith.request import ImageRequest
from weightsmith.run.bench.values import Line, Made, Moved, Picture, Preview, Summary, Tell, Which
from weightsmith.run.correct.corrections import Corrections
from weightsmith.stream import Batch, Proposal, Verdict

_BUSY = "wait until it is done and try again"


class Session:
    """One bench: everything that happens on it happens here, one thing after another, whoever asks.

    Args:
        held: the open corrections; their model is used by nobody else meanwhile.
        max_images: images with errors that are shown at most.

    Attributes:
        version: counts up with every change, so that a page can tell that it is behind.
    """

    def __init__(self, held: Corrections, max_images: int) -> None:
        self.held, self.stream, self.model = held, held.stream, held.job.trained
        self.class_names = held.job.source.class_names
        self._lock = threading.RLock()
        part, images = _shown(held)
        self.part, self._of_part = part, len(images)
        if part == "val":
            self.sets: tuple[ImageSet, ...] = (held.watched,)
        else:
            self.sets = (sample(images, max_images, held.job.options.seed), held.watched)
        self._starts = np.cumsum([0, *(len(each) for each in self.sets)])
        self.labels = np.concatenate([each.labels for each in self.sets])
        self._names = [name for each in self.sets for name in each.names()]
        self._at = {(self._set_of(i).source, name): i for i, name in enumerate(self._names)}
        aside = self.stream.trust.aside if self.stream.trust is not None else None
        judges = set(aside.names()) if isinstance(aside, ImageSet) and part == "val" else set()
        self._judges = {i for i, name in enumerate(self._names) if name in judges}
        with self.stream.unedited():
            others = [predict(self.model, each, title="images with errors").logits for each in self.sets[:-1]]
        first = _joined([*others, held.before.logits])
        self._first = first.argmax(1).numpy()
        self._take(first if not self.stream.batches else self._predicted())
        self._saved = self._is_saved()
        self.version = 0

    def locked(self) -> AbstractContextManager[object]:
        """Keep others from the model while something else is done with it."""
        return self._lock

    def stale(self) -> bool:
        """Whether another process has changed the journal; asked without waiting for what is being done now."""
        return self.stream.journal is not None and self.stream.journal.moved_on()

    def sync(self) -> bool:
        """Take over what `weightsmith edits` has done meanwhile; whether there was anything."""
        with self._lock, self.held.job.folder.in_use(_BUSY):
            return self._follow()

    def summary(self) -> Summary:
        """How things stand."""
        with self._lock:
            shown = slice(0, len(self.sets[0]))
            wanted = self._wanted()[shown]
            first, now = self._first[shown], self._given[shown]
            return Summary(
                len(self.sets[0]),
                self._of_part,
                self.part,
                int((first != wanted).sum()),
                int((now != wanted).sum()),
                len(self.stream.edits()),
                self._saved,
            )

    def listed(self, which: Which = "wrong", label: int | None = None) -> list[int]:
        """Numbers of images, those of which the model is surest first.

        Args:
            label: only those of which this is the class in the data set.
        """
        with self._lock:
            count = len(self.sets[0])
            wanted, edited = self._wanted()[:count], self._edited()
            first, now = self._first[:count], self._given[:count]
            here = np.array([i in edited for i in range(count)], dtype=bool)
            chosen = {
                "wrong": now != wanted,
                "broken": (now != wanted) & (first == wanted) & ~here,
                "repaired": (now == wanted) & (first != wanted) & ~here,
                "corrected": here,
                "all": np.ones(count, dtype=bool),
            }[which]
            if label is not None:
                chosen = chosen & (self.labels[:count] == label)
            return sorted(np.flatnonzero(chosen).tolist(), key=lambda i: (-round(float(self._sure[i]), 6), i))

    def shown_labels(self) -> list[int]:
        """The classes in the data set of the images that can be listed."""
        return sorted(set(self.labels[: len(self.sets[0])].tolist()))

    def picture(self, index: int) -> Picture:
        """What there is to know of an image. Raises `WeightsmithError` where there is none of this number."""
        if not 0 <= index < len(self._names):
            raise WeightsmithError(f"there is no image {index}: choose one of those on the page")
        with self._lock:
            edit = self._edited().get(index)
            locked = ""
            if index >= len(self.sets[0]) or index in self._judges:
                locked = "This image helps to judge the edits, so it is never edited itself."
            return Picture(
                index,
                self._names[index],
                self.part if index < len(self.sets[0]) else "val",
                int(self.labels[index]),
                int(self._wanted()[index]),
                int(self._first[index]),
                int(self._given[index]),
                float(self._sure[index]),
                None if edit is None else edit[0],
                locked,
            )

    def pixels(self, index: int) -> Tensor:
        """(channels, height, width) uint8, as the data set has it."""
        return self._set_of(index).pixels([index - self._start_of(index)])[0]

    def likely(self, index: int, count: int = 5) -> list[tuple[int, float]]:
        """The most likely classes now with their probabilities."""
        with self._lock:
            found = self._now[index].softmax(0).topk(min(count, self._now.shape[1]))
        return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))

    def request(self, index: int, wanted: int) -> ImageRequest:
        """A correction of one image.

        Raises:
            WeightsmithError: no such class, an image that may not be edited.
        """
        if not 0 <= wanted < len(self.class_names):
            raise WeightsmithError(f"there is no class {wanted}: choose one of the {len(self.class_names)} classes")
        seen = self.picture(index)
        if seen.locked:
            raise WeightsmithError(f"{seen.name} cannot be edited: {seen.locked}")
        return ImageRequest(seen.name, self.pixels(index), wanted, seen.now, self._set_of(index).source)

    def preview(self, asked: Mapping[int, int], tell: Tell = lambda _: None) -> Preview:
        """Solve, judge and measure an edit, and leave everything as it is.

        Args:
            asked: number of an image → the class that it should get.

        Raises:
            WeightsmithError: nothing asked, a class that the model gives already, or what the editor cannot do.
        """
        if not asked:
            raise WeightsmithError("no image is chosen: choose one, and name its class")
        with self._lock:
            self.sync()
            requests = [self.request(index, wanted) for index, wanted in asked.items()]
            done = [r for r in requests if r.predicted == r.target]
            if len(done) == len(requests):
                raise WeightsmithError(
                    f"the model says {self.class_names[done[0].target]} for {done[0].name} already: name another class"
                )
            tell("Solving for the change of weights")
            proposal = self.stream.propose(requests)
            if proposal.batch is None:
                verdict = proposal.verdict or Verdict(0.0, said="there is nothing left to do")
                return Preview(proposal, verdict, refused=f"This edit cannot be kept: {verdict.said}.")
            tell("Measuring what it repairs and breaks")
            with proposal.batch.delta.on(self.model, check=False):
                after = self._predicted()
            return self._measured(proposal, asked, after)

    def keep(self, preview: Preview) -> Batch:
        """Put a preview in force, in the journal first.

        Raises:
            WeightsmithError: it may not be kept, or other edits are in force than when it was made.
        """
        with self._lock, self.held.job.folder.in_use(_BUSY):
            self._follow()
            if preview.refused:
                raise WeightsmithError(preview.refused)
            batch = self.stream.keep(preview.proposal)
            self._changed()
            return batch

    def discard(self, preview: Preview) -> None:
        """Journal that a preview was looked at and not kept; nothing else changes."""
        with self._lock, self.held.job.folder.in_use(_BUSY):
            self._follow()
            self.stream.reject(preview.proposal, discarded=True)

    def undo(self, number: int) -> list[int]:
        """Make it as if an edit had never been made; numbers of others that went with it, because they are not trusted without.

        The last one is taken back bit by bit; of an earlier one, what came later is solved again.

        Raises:
            WeightsmithError: no such edit in force.
        """
        with self._lock, self.held.job.folder.in_use(_BUSY):
            self._follow()
            there = self._numbers()
            if number not in there:
                raise WeightsmithError(f"edit {number} is not in force any more: the list shows those that are")
            last = self.stream.batches[-1]
            if [edit.number for edit in last.edits] == [number]:
                self.stream.undo()
            else:
                self.stream.remove(number)
            self._changed()
            return sorted(set(there) - set(self._numbers()) - {number})

    def history(self) -> list[Line]:
        """The edits in force, the latest first."""
        with self._lock:
            both = [(batch, edit) for batch in self.stream.batches for edit in batch.edits]
            overruled = {edit.replaces: edit.number for _, edit in both if edit.replaces is not None}
            lines = []
            for batch, edit in reversed(both):
                assert isinstance(edit.request, ImageRequest)
                index = self._at.get((edit.request.source, edit.request.name))
                holds = edit.success if index is None else int(self._given[index]) == edit.request.target
                trust = (batch.info.get("trust") or {}).get("score")
                lines.append(
                    Line(
                        edit.number,
                        batch.number,
                        edit.request.name,
                        index,
                        edit.request.predicted,
                        edit.request.target,
                        holds,
                        overruled.get(edit.number),
                        trust,
                    )
                )
            return lines

    def save(self) -> None:
        """Write the corrected classifier of now into the run's folder."""
        with self._lock, self.held.job.folder.in_use(_BUSY):
            self._follow()
            self.held.leave()
            self._saved = self._is_saved()
            self.version += 1

    def _measured(self, proposal: Proposal, asked: Mapping[int, int], after: Tensor) -> Preview:
        assert proposal.batch is not None
        wanted, edited = self._wanted(), self._edited()
        now, then = self._given, after.argmax(1).numpy()
        free = np.array([i not in edited and i not in asked for i in range(len(wanted))], dtype=bool)
        right, stays = now == wanted, then == wanted
        made = tuple(
            Made(
                index,
                target,
                int(now[index]),
                int(then[index]),
                float(self._now[index].softmax(0)[target]),
                float(after[index].softmax(0)[target]),
            )
            for index, target in asked.items()
        )

        def moved(which: np.ndarray) -> tuple[Moved, ...]:
            places = np.flatnonzero(which).tolist()
            return tuple(Moved(i, int(wanted[i]), int(now[i]), int(then[i])) for i in places)

        slipped = [number for i, (number, target) in edited.items() if i not in asked and now[i] == target != then[i]]
        return Preview(
            proposal,
            proposal.verdict or Verdict(1.0),
            made,
            moved(free & ~right & stays),
            moved(free & right & ~stays),
            tuple(sorted(slipped)),
            int((free & ~right).sum()),
            int((free & ~stays).sum()),
            int(free.sum()),
        )

    def _predicted(self) -> Tensor:
        return _joined([predict(self.model, each, title="measuring").logits for each in self.sets])

    def _follow(self) -> bool:
        """Take over what others have journalled; the run is locked by the caller."""
        if not self.stream.follow():
            return False
        self._changed()
        return True

    def _changed(self) -> None:
        self.version += 1
        self._take(self._predicted())
        self._saved = self._is_saved()

    def _is_saved(self) -> bool:
        """Whether what is on disk is the classifier of now; without an edit there is nothing to be there."""
        return self.held.left() == (weights_hash(self.model) if self.stream.edits() else "")

    def _take(self, logits: Tensor) -> None:
        """What the model says now."""
        self._now, self._given = logits, logits.argmax(1).numpy()
        self._sure = logits.softmax(1).amax(1).numpy()

    def _numbers(self) -> list[int]:
        return [edit.number for batch in self.stream.batches for edit in batch.edits]

    def _edited(self) -> dict[int, tuple[int, int]]:
        """Number of an image → (number of the edit in force on it, wanted class)."""
        found = {}
        for edit in self.stream.edits():
            assert isinstance(edit.request, ImageRequest)
            index = self._at.get((edit.request.source, edit.request.name))
            if index is not None:
                found[index] = edit.number, edit.request.target
        return found

    def _wanted(self) -> np.ndarray:
        """(images,) the class that each should get: an edit's, else the data set's."""
        wanted = self.labels.copy()
        for index, (_, target) in self._edited().items():
            wanted[index] = target
        return wanted

    def _set_of(self, index: int) -> ImageSet:
        return self.sets[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def _start_of(self, index: int) -> int:
        return int(self._starts[np.searchsorted(self._starts, index, side="right") - 1])


def _shown(held: Corrections) -> tuple[str, ImageSet]:
    """Which images are browsed, and what their part is called."""
    job = held.job
    if job.new_site is not None:
        return "new site", job.new_site[0]
    name = job.options.edit_from
    return name, job.part(name)


def _joined(logits: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(logits))
