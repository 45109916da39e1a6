"""Edges against a slow pass that gives every receiver its stream one sender at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightsmith.circuit import Kept, Unit
from weightsmith.data.images import ImageSet
from weightsmith.edge import Edge, Node
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.models import Model
from weightsmith.prune import EdgeGraph, cls_only, edge_scores, removed, run_edges, shape_of
from weightsmith.prune.edges.corruption import CorruptedSet
from weightsmith.prune.edges.network import EdgeNetwork
from weightsmith.prune.edges.scores import edge_attributions

FORMS = ("vit", "narrow_vit", "partial", "cls_only")
EPSILON = 1e-5


@pytest.fixture
def some(images: ImageSet) -> ImageSet:
    return images.subset(range(5))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, double: Callable[[str], Model]) -> Model:
    """A model of each form in float64: whole, of unlike widths, without some sublayers, with CLS alone at the end."""
    if request.param == "partial":
        whole = double("vit")
        units = (Unit("attn", 1), Unit("mlp", 0), Unit("head", 2, (0,)), Unit("mlp", 2))
        return removed(whole, Kept.everything(shape_of(whole)).without(*units), None, fold="none")
    return cls_only(double("vit")) if request.param == "cls_only" else double(request.param)


def slow(
    model: Model,
    hidden: Tensor,
    cut: Collection[Edge] = (),
    corrupted: Mapping[Node, Tensor] | None = None,
    added: Mapping[Edge, Tensor] | None = None,
) -> tuple[Tensor, dict[Node, Tensor]]:
    """Logits and what each sender wrote, every receiver's stream summed sender by sender."""
    written, biases = {Node("embed"): hidden}, torch.zeros_like(hidden)

    def read(receiver: Node) -> Tensor:
        stream = biases
        for sender, wrote in written.items():
            edge = Edge(sender, receiver)
            stream = stream + (corrupted[sender] if edge in cut else wrote) + (added or {}).get(edge, 0.0)
        return stream

    for layer, block in enumerate(model.blocks):
        if model.has("attn.z", layer):
            width, now = block.attention.head_dim, {}
            for head in range(model.n_heads(layer)):
                rows = slice(head * width, (head + 1) * width)
                part = {}
                for name in "qkv":
                    map_ = getattr(block.attention, f"{name}_proj")
                    normed = block.layernorm_before(read(Node("head", layer, head, name)))
                    part[name] = normed @ map_.weight[rows].T + map_.bias[rows]
                weights = (part["q"] @ part["k"].mT * block.attention.scaling).softmax(-1)
                now[Node("head", layer, head)] = weights @ part["v"] @ block.attention.o_proj.weight[:, rows].T
            written |= now
            biases = biases + block.attention.o_proj.bias
        if model.has("mlp.key", layer):
            written[Node("mlp", layer)] = block.mlp(block.layernorm_after(read(Node("mlp", layer))))
    return model.read_out(read(Node("logits"))), written


def batch_of(model: Model, images: ImageSet, corruption: str) -> tuple[EdgeNetwork, Tensor, Tensor, Tensor]:
    network = EdgeNetwork.of(model)
    (some,) = CorruptedSet.of(network, images, corruption).each(lambda some: some, "reading")
    return network, some.hidden, some.labels, some.written


def logits_of(model: Model, images: ImageSet) -> Tensor:
    return model.logits(model.preprocess(images.pixels()).double())


def test_every_edge_of_a_network(double: Callable[[str], Model]) -> None:
    """Counted as the papers do: of a whole network, (1 + Σ before) senders for each of 3 H + 1 receivers a block."""
    graph = EdgeGraph.of(double("vit"))
    before = [1, 4, 7]  # senders before each block of two heads and an MLP
    assert len(graph.edges) == sum(6 * count + count + 2 for count in before) + 10
    assert len(set(graph.edges)) == len(graph.edges)
    assert all(Edge.parse(str(edge)) == edge for edge in graph.edges)
    assert Edge.parse("head[1,0]->mlp[1]") in graph.edges
    assert bool((graph.mask(graph.edges) == graph.there).all())
    assert int(graph.mask(graph.edges[3:5]).sum()) == 2
    widths = shape_of(double("narrow_vit")).heads
    assert sum(node.kind == "head" for node in EdgeGraph.of(double("narrow_vit")).receivers) == 3 * sum(widths)


@pytest.mark.parametrize("corruption", ["mean", "swap"])
@torch.no_grad()
def test_with_all_edges_the_network_is_the_model(form: Model, some: ImageSet, corruption: str) -> None:
    torch.testing.assert_close(
        run_edges(form, some, EdgeGraph.of(form).edges, corruption), logits_of(form, some), rtol=1e-9, atol=1e-9
    )


@torch.no_grad()
def test_a_network_may_project_without_biases(double: Callable[[str], Model], some: ImageSet) -> None:
    model = double("vit")
    for block in model.blocks:
        for name in "qkv":
            getattr(block.attention, f"{name}_proj").bias = None
    logits = run_edges(model, some, EdgeGraph.of(model).edges)
    torch.testing.assert_close(logits, logits_of(model, some), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_without_edges_only_the_corrupted_runs_speak(form: Model, some: ImageSet) -> None:
    """Of a mean nothing depends on the image; of a swap each image gets another's logits."""
    constant = run_edges(form, some, [])
    torch.testing.assert_close(constant, constant[:1].expand_as(constant), rtol=0, atol=1e-12)
    clean, swapped = logits_of(form, some), run_edges(form, some, [], "swap", seed=3)
    near = (swapped[:, None] - clean[None]).abs().amax(-1) < 1e-9
    assert near.sum(0).tolist() == near.sum(1).tolist() == [1] * 5
    assert not near.diagonal().any()
    assert not torch.equal(run_edges(form, some, [], "swap", seed=4), swapped)


@pytest.mark.parametrize("corruption", ["mean", "swap"])
@torch.no_grad()
def test_some_edges_against_the_slow_pass(form: Model, some: ImageSet, corruption: str) -> None:
    network, hidden, _, corrupted = batch_of(form, some, corruption)
    edges = network.graph.edges
    theirs = {node: corrupted[:, i] for i, node in enumerate(network.graph.senders)}
    if corruption == "swap":
        runs = CorruptedSet.of(network, some, corruption)
        assert runs.partners is not None
        _, wrote = slow(form, hidden[runs.partners.tolist()])
        for node, tensor in theirs.items():
            torch.testing.assert_close(wrote[node], tensor, rtol=1e-9, atol=1e-9)
    for seed in range(3):
        kept = [edges[i] for i in np.random.default_rng(seed).permutation(len(edges))[: len(edges) // 2]]
        wanted, _ = slow(form, hidden, set(edges) - set(kept), theirs)
        torch.testing.assert_close(run_edges(form, some, kept, corruption), wanted, rtol=1e-9, atol=1e-9)
        assert (wanted - logits_of(form, some)).abs().max() > 1e-3


@torch.no_grad()
def test_the_mean_is_what_a_sender_writes_on_average(double: Callable[[str], Model], images: ImageSet) -> None:
    """Over tokens and images; of the last attention and what is behind it over CLS, all that is read of them."""
    model, some, calibration = double("vit"), images.subset([1, 2]), images.subset(range(20, 60))
    network = EdgeNetwork.of(model)
    hidden = network.embed(calibration.pixels())
    _, wrote = slow(model, hidden)
    wanted = [
        (tensor[:, 0] if node.layer == 2 else tensor.flatten(0, 1)).mean(0)[None, None].expand(2, 1, -1)
        for node, tensor in wrote.items()
    ]
    theirs = dict(zip(network.graph.senders, wanted, strict=True))
    found, _ = slow(model, network.embed(some.pixels()), set(network.graph.edges[5:]), theirs)
    kept = network.graph.edges[:5]
    torch.testing.assert_close(run_edges(model, some, kept, calibration=calibration), found, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(run_edges(model, some, kept), found)


@pytest.mark.parametrize(("method", "loss"), [("eap", "task"), ("eap-ig", "task"), ("eap-ig", "kl")])
@torch.no_grad()
def test_first_order_scores_are_finite_differences_of_one_edge(
    form: Model, some: ImageSet, method: str, loss: str
) -> None:
    corruption, some = "mean" if loss == "kl" else "swap", some.subset([0, 1, 3])
    every = 1 if form.family.name == "vit" else 4  # of each edge in one network, of some in the others
    network, hidden, labels, corrupted = batch_of(form, some, corruption)
    clean, written = slow(form, hidden)
    points = [hidden] if method == "eap" else [corrupted[:, 0] + at * (hidden - corrupted[:, 0]) for at in (0.25, 0.75)]

    def measure(logits: Tensor) -> Tensor:
        if loss == "task":
            return F.cross_entropy(logits, labels, reduction="none")
        return (clean.softmax(-1) * (clean.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)

    found = edge_attributions(network, hidden, labels, corrupted, method, loss, 2, torch.zeros(3, 2, 4))
    assert found[:, ~network.graph.there].abs().max() == 0
    by_edge = found[:, network.graph.there]
    for number, edge in list(enumerate(network.graph.edges))[::every]:
        step = EPSILON * (corrupted[:, network.graph.senders.index(edge.sender)] - written[edge.sender])
        wanted = torch.zeros(3, dtype=torch.float64)
        for point in points:
            up, down = (slow(form, point, added={edge: sign * step})[0] for sign in (1, -1))
            wanted += (measure(up) - measure(down)) / (2 * EPSILON * len(points))
        torch.testing.assert_close(by_edge[:, number], wanted, rtol=1e-4, atol=1e-8, msg=str(edge))


@torch.no_grad()
def test_gauss_newton_is_the_curvature_of_kl_along_one_edge(double: Callable[[str], Model], some: ImageSet) -> None:
    """KL(clean ‖ run with a little of the edge corrupted) / little², over all combinations of the signs of four classes."""
    model = double("vit")
    network, hidden, labels, corrupted = batch_of(model, some, "mean")
    clean, written = slow(model, hidden)
    little, signs = 1e-3, torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4).expand(5, -1, -1)
    found = edge_attributions(network, hidden, labels, corrupted, "gauss-newton", "kl", 16, signs)
    by_edge = found[:, network.graph.there]
    wanted = torch.zeros_like(by_edge)
    for number, edge in enumerate(network.graph.edges):
        step = little * (corrupted[:, network.graph.senders.index(edge.sender)] - written[edge.sender])
        for sign in (1, -1):  # the third order falls out
            logits, _ = slow(model, hidden, added={edge: sign * step})
            kl = (clean.softmax(-1) * (clean.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
            wanted[:, number] += kl / (2 * little**2)
    torch.testing.assert_close(by_edge, wanted, rtol=1e-3, atol=float(1e-6 * wanted.max()))


@pytest.mark.parametrize("loss", ["kl", "task"])
@torch.no_grad()
def test_what_the_embedding_sends_adds_up(form: Model, some: ImageSet, loss: str) -> None:
    """Along its path the embedding alone is moved, so its edges' integrated scores sum to what the whole path changes."""
    network, hidden, labels, corrupted = batch_of(form, some, "swap")
    clean, end = (form.run_from(0, at).log_softmax(-1) for at in (hidden, corrupted[:, 0]))
    weights = clean.exp() if loss == "kl" else F.one_hot(labels, 4).double()
    change = (weights * (clean - end)).sum(-1)
    found = edge_attributions(network, hidden, labels, corrupted, "eap-ig", loss, 200, torch.zeros(5, 200, 4))
    torch.testing.assert_close(found[:, :, 0].sum(1), change, rtol=1e-3, atol=1e-5)
    assert change.abs().min() > 1e-3


@pytest.mark.parametrize(
    ("method", "loss", "corruption"),
    [("eap", "task", "swap"), ("eap-ig", "kl", "mean"), ("gauss-newton", "kl", "swap")],
)
def test_scores_are_means_of_sizes_however_images_are_batched(
    double: Callable[[str], Model],
    some: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    loss: str,
    corruption: str,
) -> None:
    model = double("vit")
    scores = edge_scores(model, some, method=method, loss=loss, corruption=corruption, steps=3, seed=1)
    network = EdgeNetwork.of(model)
    (read,) = CorruptedSet.of(network, some, corruption, seed=1).each(lambda part: part, "reading")
    hidden, labels, corrupted = read.hidden, read.labels, read.written
    signs = 2 * torch.randint(2, (5, 3, 4), generator=torch.Generator().manual_seed(1)) - 1
    signed = edge_attributions(network, hidden, labels, corrupted, method, loss, 3, signs)[:, network.graph.there]
    torch.testing.assert_close(scores.values, signed.abs().mean(0), rtol=1e-9, atol=1e-12)
    if method != "gauss-newton":
        assert bool((scores.values > 1.01 * signed.mean(0).abs()).any()), "signs never differ: nothing was tested"
    monkeypatch.setattr(EdgeNetwork, "batch_size", lambda self: 2)
    again = edge_scores(model, some, method=method, loss=loss, corruption=corruption, steps=3, seed=1)
    torch.testing.assert_close(again.values, scores.values, rtol=1e-9, atol=1e-12)
    assert scores.best(2) == tuple(Edge.parse(str(row["edge"])) for row in scores.rows()[:2])
    assert scores.values.dtype == torch.float64
    assert scores.info["images"] == 5


def test_scoring_leaves_the_model_as_it_is(
    tiny_model: Callable[..., Model], some: ImageSet, hook_count: Callable[[nn.Module], int]
) -> None:
    model = tiny_model("vit")
    before = model.fingerprint()
    edge_scores(model, some, steps=2)
    assert model.fingerprint() == before
    assert hook_count(model.module) == 0
    assert all(parameter.grad is None for parameter in model.module.parameters())


@pytest.mark.parametrize(
    ("given", "told"),
    [({"method": "eap"}, "eap-ig.*gauss-newton.*task"), ({"method": "epa"}, "did you mean 'eap'"),
     ({"loss": "ce"}, "loss='ce'"), ({"steps": 0}, "steps=0"), ({"corruption": "zero"}, "corruption='zero'"),
     ({"method": "gauss-newton", "loss": "task"}, "reads no labels")],
)  # fmt: skip
def test_options_that_score_nothing_are_told(
    tiny_model: Callable[..., Model], some: ImageSet, given: dict[str, object], told: str
) -> None:
    with pytest.raises(WeightsmithError, match=told):
        edge_scores(tiny_model("vit"), some, **given)


def test_images_that_score_nothing_are_told(
    tiny_model: Callable[..., Model], some: ImageSet, random_set: Callable[..., ImageSet]
) -> None:
    model, graph = tiny_model("vit"), EdgeGraph.of(tiny_model("vit"))
    empty = some.subset([])
    for run in (lambda: edge_scores(model, empty), lambda: run_edges(model, empty, graph.edges)):
        with pytest.raises(WeightsmithError, match="at least one"):
            run()
    for images, given in ((some.subset([0]), {}), (some, {"calibration": some})):
        with pytest.raises(WeightsmithError, match="corruption='swap' takes another image"):
            run_edges(model, images, [], "swap", **given)
    for run in (lambda: edge_scores(model, some.seal()), lambda: run_edges(model, some, [], calibration=some.seal())):
        with pytest.raises(HeldOutError):
            run()
    with pytest.raises(WeightsmithError, match="4 classes and the images 7"):
        edge_scores(model, random_set(7, classes=7), loss="task")
    edge_scores(model, random_set(7, classes=7), loss="kl", steps=1)


def test_edges_and_models_that_have_none_are_told(tiny_model: Callable[..., Model], some: ImageSet) -> None:
    with pytest.raises(WeightsmithError, match=r"no edge head\[0,7\]->logits"):
        run_edges(tiny_model("vit"), some, [Edge.parse("head[0,7]->logits")])
    for family_name in ("deit", "mlp", "gpt2"):
        with pytest.raises(WeightsmithError, match="ViT image classifiers only"):
            EdgeGraph.of(tiny_model(family_name))
    model = tiny_model("vit")
    attention = model.blocks[1].attention
    attention.q_proj = nn.utils.parametrizations.weight_norm(attention.q_proj)
    with pytest.raises(WeightsmithError, match="merge adapters"):
        EdgeNetwork.of(model)
