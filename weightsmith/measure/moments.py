"""Second moments of keys: what the null space of preserved knowledge and the inverse covariance are made from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightsmith.data.images import ImageSet
from weightsmith.errors import WeightsmithError
from weightsmith.files import atomic_path, default_cache_dir, read_tensors
from weightsmith.models import Model, record
from weightsmith.progress import progress
from weightsmith.site import Site

_FORMAT = "weightsmith-moment-1"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Moment:
    """The uncentred second moment of the keys at a site.

    Attributes:
        site: where the keys were read.
        matrix: (d, d) float64, C = (1/count) Σ k kᵀ.
        count: number of keys.
    """

    site: Site
    matrix: Tensor
    count: int


def key_moment(
    model: Model, sites: Sequence[Site], images: ImageSet, cache_dir: Path | None = None, batch_size: int = 256
) -> dict[Site, Moment]:
    """Second moments of the keys at several sites over a set of images, in one pass, summed in float64.

    The result is cached by content: weights, images (source, part, positions), site and dtype. A second model, another
    subset or an edited weight has another key, and an entry that is damaged is measured again.

    Args:
        cache_dir: where cached moments lie; None takes the platform's cache folder.

    Raises:
        HeldOutError: the set is sealed.
        WeightsmithError: an empty set, or a site without keys.
    """
    if len(images) == 0:
        raise WeightsmithError("there are no images to take key statistics from: preserve at least one")
    folder = (cache_dir or default_cache_dir()) / "moments"
    weights, content = model.fingerprint(), images.digest()
    dtype = str(next(model.module.parameters()).dtype)
    images.check_open()  # also when everything comes from the cache
    paths = {site: folder / f"{_cache_key(weights, content, site, dtype)}.safetensors" for site in sites}
    found = {site: moment for site, path in paths.items() if (moment := _cached(path, site)) is not None}
    missing = [site for site in paths if site not in found]
    if missing:
        for site, moment in _measured(model, missing, images, batch_size).items():
            header = {"format": _FORMAT, "site": str(site), "count": moment.count}
            with atomic_path(paths[site]) as temporary:
                save_file({"matrix": moment.matrix}, temporary, metadata={"weightsmith": json.dumps(header)})
            found[site] = moment
    return {site: found[site] for site in paths}


@torch.no_grad()
def _measured(model: Model, sites: Sequence[Site], images: ImageSet, batch_size: int) -> dict[Site, Moment]:
    sums: dict[Site, Tensor] = {}
    counts = dict.fromkeys(sites, 0)
    with progress("key statistics", len(images)) as advance:
        for pixels, _ in images.batches(batch_size):
            seen = record(model, model.preprocess(pixels, model.device), sites)
            for site in sites:
                keys = seen[site].flatten(0, -2).cpu().double()
                product = keys.mT @ keys
                sums[site] = sums[site] + product if site in sums else product
                counts[site] += len(keys)
            advance(len(pixels))
    return {site: Moment(site, sums[site] / counts[site], counts[site]) for site in sites}


def _cache_key(weights: str, content: str, site: Site, dtype: str) -> str:
    return hashlib.sha256(f"{_FORMAT}:{weights}:{content}:{site}:{dtype}".encode()).hexdigest()


def _cached(path: Path, site: Site) -> Moment | None:
    if not path.exists():
        return None
    try:
        header, tensors = read_tensors(path, _FORMAT)
        matrix = tensors["matrix"]
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
        if header["site"] != str(site) or not square or not bool(torch.isfinite(matrix).all()):
            raise WeightsmithError(f"{path} is not the moment of {site}")
    except (WeightsmithError, KeyError) as error:
        _log.warning("cached key statistics are measured again: %s", error)
        return None
    return Moment(site, matrix, int(header["count"]))
