"""Networks whose weights stay in their file: the same bits as in memory, and no more of them there than a block."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from weightsmith import cli, mapped
from weightsmith.data.texts import TextSet
from weightsmith.delta import Delta, Dense, LowRank, weights_hash
from weightsmith.edit import make_editor
from weightsmith.errors import WeightsmithError
from weightsmith.measure import key_moment
from weightsmith.models import Model, load, save
from weightsmith.models.paged import at_a_time, bytes_of, weights_of
from weightsmith.site import Site

pytestmark = pytest.mark.skipif(not mapped.can_map(), reason="only Linux tells which pages of a file were written to")
UP, DOWN = "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of four blocks of 1.6 MB each."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=192, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)
    place = tmp_path_factory.mktemp("gpt")
    GPT2LMHeadModel(config).save_pretrained(place)
    return place


@pytest.fixture
def paged(folder: Path) -> Model:
    return load(folder, device="disk")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Model:
    return load(folder, device="cpu")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has hardly any memory left."""
    monkeypatch.setattr(mapped, "free_memory", lambda: 2**20)


def ids() -> Tensor:
    return torch.arange(24).reshape(2, 12) % 300


def resident(model: Model) -> int:
    """Bytes of the weights whose pages are in this process's memory."""
    count = 0
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        for weight in weights_of(model.module):
            first, last = weight.data_ptr() // mapped.PAGE, (weight.data_ptr() + weight.nbytes) // mapped.PAGE
            file.seek(8 * first)
            entries = file.read(8 * (last - first))
            count += sum(entries[place + 7] >> 7 for place in range(0, len(entries), 8))
    return count * mapped.PAGE


def test_a_pass_gives_the_same_bits_and_leaves_a_block_at_most(paged: Model, whole: Model) -> None:
    with torch.no_grad():
        assert torch.equal(paged.token_logits(ids()), whole.token_logits(ids()))
    assert resident(paged) < 0.3 * bytes_of(paged.module)
    assert at_a_time(paged) < 0.65 * bytes_of(paged.module) == 0.65 * at_a_time(whole)


def test_gradients_are_the_same_and_blocks_are_forgotten_on_the_way_back(paged: Model, whole: Model) -> None:
    found, left = [], []
    for model in (paged, whole):
        start = model.embed(ids()).detach().requires_grad_()
        out = model.run_from(0, start)
        before = resident(model)
        (gradient,) = torch.autograd.grad(out.square().sum(), start)
        found.append(gradient)
        left.append((before, resident(model)))
    assert torch.equal(*found)
    assert max(left[0]) < 0.5 * bytes_of(paged.module)


def test_the_hash_is_that_of_the_weights_in_memory_and_is_read_once(
    paged: Model, whole: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights_hash(paged) == weights_hash(whole)
    monkeypatch.setattr(mapped, "release", None)  # which reading them again would call
    assert weights_hash(paged) == weights_hash(whole)


def test_what_is_written_to_a_weight_is_never_forgotten(paged: Model, whole: Model) -> None:
    weight = paged.module.get_parameter(DOWN)
    with torch.no_grad():
        weight[5] += 1.0
    expected = whole.module.get_parameter(DOWN).detach().clone()
    expected[5] += 1.0
    for _ in range(2):
        with torch.no_grad():
            paged.logits(ids())
    assert torch.equal(weight, expected)
    assert weights_hash(paged) != weights_hash(whole)


def test_deltas_go_on_and_come_off_to_the_bit_in_any_order(paged: Model, whole: Model) -> None:
    random = torch.Generator().manual_seed(0)
    one = Delta({DOWN: LowRank(torch.randn(768, 2, generator=random), torch.randn(2, 192, generator=random))})
    two = Delta({DOWN: Dense(torch.randn(768, 192, generator=random)), UP: Dense(torch.ones(192, 768))})
    given: list[list[Tensor]] = []
    for model in (paged, whole):
        found: list[Tensor] = []
        first, second = one.on(model), two.on(model)
        with torch.no_grad():
            for change in (first.__enter__, second.__enter__, lambda f=first: f.__exit__(None, None, None)):
                change()
                found.append(model.logits(ids()))
            second.__exit__(None, None, None)
            found.append(model.logits(ids()))
        given.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*given, strict=True))
    assert not torch.equal(given[0][0], given[0][3])
    assert all(mapped.unchanged(paged.module.get_parameter(name)) for name in (UP, DOWN))
    assert weights_hash(paged) == weights_hash(whole)


def test_taking_back_one_weight_leaves_what_was_written_to_its_neighbours(paged: Model) -> None:
    """Weights lie one behind the other in the file, so the first page of one may be the last of another."""
    inside = sorted(weights_of(paged.module), key=lambda weight: weight.data_ptr())
    with torch.no_grad():
        for weight in inside:
            weight += 1.0
    kept = [weight.detach().clone() for weight in inside]
    middle = len(inside) // 2
    mapped.forget(inside[middle])
    for number, (weight, before) in enumerate(zip(inside, kept, strict=True)):
        assert torch.equal(weight, before) == (number != middle), number


def test_a_hash_while_an_edit_is_on_is_not_taken_for_that_of_the_file(paged: Model, whole: Model) -> None:
    with Delta({UP: Dense(torch.ones(192, 768))}).on(paged):
        edited = weights_hash(paged)
    assert weights_hash(paged) == weights_hash(whole) != edited


def test_an_edited_network_is_saved_in_shards_and_opens_as_it_was(paged: Model, tmp_path: Path) -> None:
    with Delta({UP: Dense(torch.ones(192, 768))}).on(paged):
        save(paged, tmp_path / "edited")
        wanted = weights_hash(paged)
    assert len(list((tmp_path / "edited").glob("*.safetensors"))) > 1
    assert weights_hash(load(tmp_path / "edited")) == wanted


def test_weights_stay_in_their_file_where_memory_is_short(
    folder: Path, short: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert mapped.stays(load(folder).module)
    assert "they stay in their file" in caplog.text


def test_weights_are_in_memory_where_there_is_room(folder: Path) -> None:
    assert not mapped.stays(load(folder).module)


def editing(folder: Path, cache: Path, device: str) -> Delta:
    """MEMIT of two blocks on tokens as they come; the tokenizer is none."""
    model = load(folder, device=device)
    text = TextSet.from_ids(torch.arange(640).reshape(40, 16) % 300)
    moments = key_moment(model, [Site("mlp.key", layer) for layer in (1, 2)], text, cache)
    editor = make_editor("memit", layers=(1, 2))
    places = editor.places(model, text, (), cache)
    assert [place.layer for place in places] == [1, 2]
    random = torch.Generator().manual_seed(1)
    keys = torch.randn(768, 3, generator=random)
    changes = {}
    for place in places:
        assert torch.equal(place.moment, moments[Site("mlp.key", place.layer)].matrix)
        changes[f"{place.layer}"] = Dense(place.metric.times(keys.double()))
        place.release()
    return Delta(changes)


def test_statistics_and_metrics_go_layer_by_layer_where_memory_is_short(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = editing(folder, tmp_path / "roomy", "cpu")
    monkeypatch.setattr(mapped, "free_memory", lambda: 2 * 2 * 8 * 768**2)
    aside: list[Path] = []
    put = mapped.put_aside
    monkeypatch.setattr(mapped, "put_aside", lambda tensor, place: (aside.append(place), put(tensor, place))[1])
    with caplog.at_level(logging.INFO):
        found = editing(folder, tmp_path / "tight", "disk")
    assert "Key statistics of 2 sites do not fit into memory: 2 passes of 1." in caplog.text
    assert len(aside) >= 4
    assert set(aside) == {tmp_path / "tight"}
    assert not list((tmp_path / "tight").glob(".aside*")), "files put aside are gone with their names at once"
    assert all(torch.equal(found.changes[name].dense(), expected.changes[name].dense()) for name in expected.changes)


def test_a_full_disk_under_matrices_put_aside_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    def full(_: Tensor, __: Path) -> Tensor:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped, "put_aside", full)
    with pytest.raises(WeightsmithError, match=r"No space left.*free space there, or give another --cache-dir"):
        editing(folder, tmp_path, "cpu")


def test_free_memory_is_less_than_the_machine_has() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = mapped.free_memory()
    assert free is not None
    assert 0 < free <= 1024 * int(lines[0].split()[1])


def test_weights_that_are_converted_cannot_stay(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "half")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsmithError, match="cannot stay in their file: save the model as safetensors"):
        load(tmp_path / "half", device="disk")


def test_a_network_in_memory_cannot_stay_on_the_disk(whole: Model) -> None:
    with pytest.raises(WeightsmithError, match="give the folder that it was saved to"):
        load(whole.module, device="disk")


@pytest.mark.parametrize(
    "words",
    [("run", "--data-path", "digits"), ("locate", "trace", "--data-path", "digits"), ("facts",)],
    ids=lambda w: w[0],
)
def test_commands_that_make_a_network_say_that_it_is_not_for_them(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--device", "disk", "--runs-dir", str(tmp_path / "runs")])
    assert stop.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "--device disk leaves a trained model's weights in its file" in said
    assert said.endswith("give auto or cpu")


def test_what_lies_in_no_file_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(10_000.0)
    mapped.release([numbers])
    assert torch.equal(numbers, torch.arange(10_000.0))
    monkeypatch.setattr(mapped, "can_map", lambda: False)
    monkeypatch.setattr(mapped, "_own", None)
    mapped.release([numbers])  # another system: nothing is asked


def test_loading_does_not_hold_a_network_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied to another address is forgotten where it was read."""
    forgotten: list[Tensor] = []
    monkeypatch.setattr(mapped, "release", forgotten.extend)
    weights = weights_of(load(folder, device="cpu").module)
    copied = bytes_of(load(folder, device="cpu").module) - mapped.in_files(weights)
    assert copied > 0, "all weights of this file lie where torch would have put them: add a letter to its metadata"
    assert sum(tensor.nbytes for tensor in forgotten) == 2 * copied
