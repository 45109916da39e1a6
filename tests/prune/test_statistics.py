from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from weightsmith.data.images import ImageSet
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.models import Model, record
from weightsmith.prune import key_statistics
from weightsmith.site import Site


@pytest.mark.parametrize("family_name", ["vit", "narrow_vit"])
@torch.no_grad()
def test_statistics_are_those_of_the_keys_themselves(model: Model, images: ImageSet) -> None:
    found = key_statistics(model, images, batch_size=7)
    sites = [Site(kind, layer) for kind in ("attn.z", "mlp.key") for layer in range(3)]
    assert set(found.by_site) == {place for site in sites for place in (site, site.at("cls"))}
    run = record(model, model.preprocess(images.pixels()), list(found.by_site))
    for site, statistic in found.by_site.items():
        keys = run[site].flatten(0, -2).double()
        torch.testing.assert_close(statistic.mean, keys.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(statistic.covariance, torch.cov(keys.T, correction=0), rtol=1e-4, atol=1e-6)
        assert statistic.count == len(keys)
    assert found.fingerprint == model.fingerprint()


def test_images_that_cannot_be_used_are_told(tiny_model: Callable[..., Model], images: ImageSet) -> None:
    with pytest.raises(HeldOutError):
        key_statistics(tiny_model("vit"), images.seal())
    with pytest.raises(WeightsmithError, match="no calibration images"):
        key_statistics(tiny_model("vit"), images.subset([]))
