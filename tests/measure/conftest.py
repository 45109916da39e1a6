"""Tests of predictions are about images; those of key statistics run over every family."""

from __future__ import annotations

import pytest

from weightsmith.models import families


@pytest.fixture(params=sorted(name for name, family in families().items() if family.reads == "images"))
def family_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
