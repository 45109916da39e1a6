"""From requests to the corrections that an editor reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsmith.edit.contexts import by_answer_token, generated_prefixes, readings
from weightsmith.edit.corrections import Corrections
from weightsmith.edit.image_corrections import ImageCorrections
from weightsmith.edit.text_corrections import TextCorrections
from weightsmith.errors import WeightsmithError
from weightsmith.models import Model
from weightsmith.request import ImageRequest, Request, TextRequest, duplicates_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contexts:
    """What stands beside each request, so that a key belongs to the subject rather than to one wording or view.

    Attributes:
        prefix_lengths: (tokens, how many) of generated sentences before a prompt.
        lookup: token of a prompt at which it is edited, see `contexts.LOOKUPS`.
        half_bare: the prompt alone weighs as much as all prefixed ones together; else all weigh the same.
        bare_values: present values are those of the prompt alone, as the papers have them.
        views, view: augmented views beside an image, how many and of which kind.
        seed: of prefixes and views.
    """

    prefix_lengths: tuple[tuple[int, int], ...] = ()
    lookup: str = "subject_last"
    half_bare: bool = True
    bare_values: bool = False
    views: int = 0
    view: str = "light"
    seed: int = 0


def corrections_of(
    model: Model, requests: Sequence[Request], contexts: Contexts, cache_dir: Path | None = None
) -> Corrections:
    """Requests as the editor reads them.

    Raises:
        WeightsmithError: none, images for a language model or texts for a classifier, or a class or text that the
            model cannot give or read.
    """
    if not requests:
        raise WeightsmithError("there is nothing to correct: the list of requests is empty, give at least one")
    if model.family.reads == "text":
        texts = [request for request in requests if isinstance(request, TextRequest)]
        if len(texts) < len(requests):
            raise WeightsmithError(
                f"{model.name} reads text and request {_first_other(requests)} is an image: give prompts"
            )
        prefixes = generated_prefixes(model, contexts.prefix_lengths, contexts.seed, cache_dir)
        read = readings(model, texts, prefixes, contexts.lookup)
        asked = by_answer_token(read) if contexts.lookup == "last" else read
        return TextCorrections(read, asked, contexts.half_bare, contexts.bare_values)
    images = [request for request in requests if isinstance(request, ImageRequest)]
    if len(images) < len(requests):
        raise WeightsmithError(f"{model.name} reads images and one of the requests is text: give images")
    wrong = [request for request in images if request.target >= model.n_classes]
    if wrong:
        raise WeightsmithError(
            f"request {wrong[0].name} wants class {wrong[0].target}: {model.name} has classes 0 to {model.n_classes - 1}"
        )
    return ImageCorrections(images, contexts.views, contexts.view, contexts.seed)


def without_repeats(requests: Sequence[Request]) -> tuple[list[Request], list[tuple[str, str]]]:
    """(the requests, each once; names of those that say the same). Raises `WeightsmithError` for contradicting ones."""
    repeated, contradicting = duplicates_of(requests)
    if contradicting:
        (earlier, later), more = contradicting[0], len(contradicting) - 1
        raise WeightsmithError(
            f"the requests {requests[earlier].name} and {requests[later].name} contradict each other: the same prompt or "
            f"image is to become {requests[earlier].target} and {requests[later].target}"
            f"{f' ({more} more pairs do)' if more else ''}; leave one of them out"
        )
    for earlier, later in repeated:
        _log.warning("request %s asks the same as %s and is left out", requests[later].name, requests[earlier].name)
    later_ones = {later for _, later in repeated}
    kept = [request for position, request in enumerate(requests) if position not in later_ones]
    return kept, [(requests[earlier].name, requests[later].name) for earlier, later in repeated]


def _first_other(requests: Sequence[Request]) -> str:
    return next(request.name for request in requests if not isinstance(request, TextRequest))
