from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import WeightsmithError
from weightsmith.site import KINDS, NAMED_TOKENS, Site

HEADED = ("attn.q", "attn.k", "attn.v", "attn.z")
LAYERLESS = ("classifier.key", "classifier.value")

positions = st.lists(st.integers(0, 40), min_size=1, max_size=12).map(tuple)
tokens = st.one_of(st.none(), st.sampled_from(NAMED_TOKENS), positions)


@st.composite
def sites(draw: st.DrawFn) -> Site:
    kind = draw(st.sampled_from(sorted(KINDS)))
    layer = None if kind in LAYERLESS else draw(st.integers(0, 200))
    head = draw(st.one_of(st.none(), st.integers(0, 30))) if kind in HEADED else None
    return Site(kind, layer, head, draw(tokens))


@given(sites())
def test_a_site_parses_from_what_it_prints(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert str(Site.parse(str(site))) == str(site)
    assert hash(Site.parse(str(site))) == hash(site)


@given(sites(), sites())
def test_two_sites_print_the_same_only_when_they_are_the_same(one: Site, other: Site) -> None:
    assert (str(one) == str(other)) == (one == other)


@given(positions)
def test_token_positions_are_a_set(some: tuple[int, ...]) -> None:
    site = Site("resid.out", 1, tokens=some)
    assert site.tokens == tuple(sorted(set(some)))
    assert site == Site("resid.out", 1, tokens=some[::-1] + some)
    listed = ",".join(map(str, some))
    assert Site.parse(f"resid.out[1]@{listed}") == site


@given(sites(), tokens)
def test_at_moves_to_other_tokens_and_nowhere_else(site: Site, other: str | tuple[int, ...] | None) -> None:
    moved = site.at(other)
    assert (moved.kind, moved.layer, moved.head) == (site.kind, site.layer, site.head)
    assert moved == Site(site.kind, site.layer, site.head, other)
    assert moved.at(site.tokens) == site


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (Site("mlp.key", 7, tokens="cls"), "mlp.key[7]@cls"),
        (Site("attn.z", 3, 5), "attn.z[3,5]"),
        (Site("attn.q", 0, tokens="patches"), "attn.q[0]@patches"),
        (Site("classifier.value"), "classifier.value"),
        (Site("resid.out", 4, tokens=(17, 0)), "resid.out[4]@0,17"),
        (Site("resid.out", 4, tokens=(6, 4, 5, 0)), "resid.out[4]@0,4:7"),
        (Site("resid.out", 4, tokens=(4, 5)), "resid.out[4]@4,5"),
    ],
)
def test_canonical_text(site: Site, text: str) -> None:
    assert str(site) == text
    assert Site.parse(f"  {text}\n") == site


def test_a_range_excludes_its_end_and_need_not_be_canonical() -> None:
    assert Site.parse("resid.in[0]@9,4:6,5").tokens == (4, 5, 9)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no site"),
        ("mlp.key[7", "is no site"),
        ("mlp.key[-1]", "is no site"),
        ("mlp.key[1,2,3]", "is no site"),
        ("mlp.key[7]@", "is no site"),
        ("mlp.key[7]@CLS", "is no site"),
        ("mlp.key[7] and more", "is no site"),
        ("mlp.kye[7]", r"no site 'mlp.kye': did you mean 'mlp.key'\?"),
        ("mlp.key", r"mlp.key takes a layer: write mlp.key\[7\]"),
        ("classifier.value[2]", "classifier.value takes no layer"),
        ("mlp.key[7,1]", "mlp.key has no heads"),
        ("resid.out[1]@first", "no tokens named 'first'"),
        ("resid.out[1]@1:2:3", "names no tokens"),
        ("resid.out[1]@1,", "names no tokens"),
        ("resid.out[1]@4:", "names no tokens"),
        ("resid.out[1]@0,cls", "names no tokens"),
        ("resid.out[1]@5:5", "positions from 0, at least one"),
    ],
)
def test_text_that_is_no_site_is_refused(text: str, told: str) -> None:
    with pytest.raises(WeightsmithError, match=told):
        Site.parse(text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("resid.out", -1), "cannot be negative"),
        (("attn.q", 1, -2), "cannot be negative"),
        (("resid.out", 1, None, (3, -1)), "positions from 0"),
        (("resid.out", 1, None, ()), "at least one"),
        (("resid.out", 1, None, "all"), "no tokens named 'all'"),
        (("resid.out",), "takes a layer"),
        (("classifier.key", 0), "takes no layer"),
    ],
)
def test_what_cannot_be_a_site_is_refused(arguments: tuple[object, ...], told: str) -> None:
    with pytest.raises(WeightsmithError, match=told):
        Site(*arguments)  # type: ignore[arg-type]
