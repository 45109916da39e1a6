from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.edge import PROJECTIONS, Edge, Node
from weightsmith.errors import WeightsmithError

number = st.integers(0, 30)
senders = st.one_of(
    st.just(Node("embed")), st.builds(Node, st.just("mlp"), number), st.builds(Node, st.just("head"), number, number)
)
behind = st.one_of(
    st.just(Node("logits")),
    st.builds(Node, st.just("mlp"), number.map(lambda layer: layer + 31)),
    st.builds(Node, st.just("head"), number.map(lambda layer: layer + 31), number, st.sampled_from(PROJECTIONS)),
)


@given(senders, behind)
def test_an_edge_prints_as_what_parses(sender: Node, receiver: Node) -> None:
    edge = Edge(sender, receiver)
    assert Edge.parse(str(edge)) == edge
    assert Node.parse(str(sender)) == sender
    assert Node.parse(str(receiver)) == receiver


@pytest.mark.parametrize("text", ["head[0,1]->mlp[0]", "mlp[0]->head[1,0].k", "embed->head[0,0].v", "embed->logits"])
def test_what_lies_behind_is_read(text: str) -> None:
    assert str(Edge.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "embed", "embed->", "embed->embed", "logits->mlp[0]", "mlp[0]->mlp[0]", "mlp[1]->mlp[0]", "mlp[0]->head[0,0].q",
     "head[0,0]->head[0,1].q", "head[0,0]->head[1,0]", "head[0,0].q->mlp[1]", "head[0]->mlp[1]", "mlp->logits",
     "mlp[0,1]->logits", "embed[0]->logits", "embed->logits.q", "embed->head[0,0].z", "embed->mlp[0].q", "embed->mlp[-1]",
     "neck->logits"],
)  # fmt: skip
def test_what_is_no_edge_is_told(text: str) -> None:
    with pytest.raises(WeightsmithError):
        Edge.parse(text)


def test_a_part_with_numbers_that_it_has_not_is_told() -> None:
    for kind, layer, head, reads in (("mlp", -1, None, None), ("embed", 0, None, None), ("mlp", 0, None, "q")):
        with pytest.raises(WeightsmithError, match="is no part of a network"):
            Node(kind, layer, head, reads)
