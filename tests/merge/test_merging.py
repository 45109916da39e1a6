"""A merge as a whole: what comes out, what is refused, and what is told."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from weightsmith.delta import weights_hash
from weightsmith.errors import WeightsmithError
from weightsmith.merge import Checkpoint, merge, merging
from weightsmith.merge.storage import writer
from weightsmith.models import load, save


def files_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def refused(words: str, *arguments: Any, **options: Any) -> None:
    out = arguments[3]
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(WeightsmithError, match=words) as caught:
        merge(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in out.parent.iterdir()) == before


@pytest.fixture
def pair(tensors, changed, write) -> tuple[Path, Path]:
    """A base and a model as files."""
    base = tensors()
    return write(base, "base"), write(changed(base, 1), "model")


@pytest.fixture
def tuned(tiny_model, tmp_path: Path):
    """`tuned(family, classes=4)`: folders of a base and of two models near it, the second with another count of classes."""

    def made(family: str, classes: int = 4) -> tuple[Path, Path, Path]:
        folders = []
        for name, count, step in (("base", 4, 0.0), ("one", 4, 0.02), ("two", classes, -0.02)):
            model = tiny_model(family, classes=count)
            body = {n: p for n, p in tiny_model(family).module.named_parameters() if "classifier" not in n}
            with torch.no_grad():
                for name_there, parameter in model.module.named_parameters():
                    parameter.copy_(body.get(name_there, parameter)).add_(step)
            save(model, tmp_path / name)
            folders.append(tmp_path / name)
        return tuple(folders)

    return made


def test_what_a_merged_folder_holds(tuned, tmp_path: Path, family_name: str) -> None:
    base, one, two = tuned(family_name)
    done = merge(
        "task_arithmetic",
        base,
        [one, two],
        tmp_path / "out",
        weights=[0.5, 0.25],
        more={"search": 1},
        beside=lambda folder, _: (folder / "README.md").write_text("a card"),
    )
    assert (tmp_path / "out" / "README.md").read_text() == "a card"
    theirs, mine = files_of(base), files_of(tmp_path / "out")
    assert {name: (t.shape, t.dtype) for name, t in theirs.items()} == {n: (t.shape, t.dtype) for n, t in mine.items()}
    model = load(tmp_path / "out")
    expected = load(base).module.state_dict()
    for name, tensor in model.module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, expected[name] + 0.5 * 0.02 - 0.25 * 0.02, atol=1e-6), name
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report == done.report
    for entry, folder in zip((report["base"], *report["models"]), (base, one, two), strict=True):
        assert entry["fingerprint"] == Checkpoint.open(folder).fingerprint()
    assert report["output"]["fingerprint"] == Checkpoint.open(tmp_path / "out").fingerprint()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["weightsmith"])
        assert file.metadata()["format"] == "pt"
    assert stored["models"][1]["weight"] == 0.25
    assert stored["base"]["fingerprint"] == report["base"]["fingerprint"]


def test_a_vit_of_transformers_keeps_all_200_tensors(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=24, num_attention_heads=2, intermediate_size=32, image_size=32, num_labels=7)
    for name in ("base", "model"):
        ViTForImageClassification(config).save_pretrained(tmp_path / name)
    done = merge("ties", tmp_path / "base", [tmp_path / "model"], tmp_path / "out")
    assert done.report["output"]["tensors"] == len(files_of(tmp_path / "out")) == 200
    assert load(tmp_path / "out").n_classes == 7


@pytest.mark.parametrize("limit", ["300", "1KB", "1GB"])
def test_shards(pair, tmp_path: Path, limit: str) -> None:
    whole = files_of(merge("task_arithmetic", pair[0], [pair[1]], tmp_path / "whole").path)
    done = merge("task_arithmetic", pair[0], [pair[1]], tmp_path / "out", max_shard_size=limit)
    mine = files_of(done.path)
    assert whole.keys() == mine.keys()
    assert all(torch.equal(whole[name], mine[name]) for name in whole)
    shards = sorted(done.path.glob("*.safetensors"))
    index = done.path / "model.safetensors.index.json"
    assert [path.name for path in shards] == sorted(done.report["output"]["files"])
    if len(shards) == 1:
        assert not index.exists()
        assert limit == "1GB"
        return
    weight_map = json.loads(index.read_text())["weight_map"]
    assert {name: file for file in shards for name in load_file(file)} == {
        n: done.path / f for n, f in weight_map.items()
    }
    for file in shards:
        sizes = [tensor.nbytes for tensor in load_file(file).values()]
        assert len(sizes) == 1 or sum(sizes) <= writer.shard_size(limit)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("2GiB", 2**31), ("1.5 mb", 1_500_000), ("77", 77), ("3kb", 3000)]
)
def test_sizes(text: str, size: int) -> None:
    assert writer.shard_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5 apples", "0", "nan"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(WeightsmithError, match="--max-shard-size"):
        writer.shard_size(text)


def _without(tensors: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_tensors_that_do_not_fit(pair, tensors, write, tmp_path: Path) -> None:
    base, out = tensors(), tmp_path / "out"
    big = base["embed.weight"]
    for name, changed, words in (
        ("missing", _without(base, "scale", "mask"), r"lacks 2 of the base's 8 tensors, mask first"),
        ("extra", base | {"more": torch.ones(3)}, r"has 1 that the base does not have, more first"),
        (
            "renamed",
            _without(base, "scale") | {"factor": torch.ones(())},
            r"otherwise than the base .*factor where the base has scale",
        ),
        (
            "prefixed",
            {f"model.{n}": t for n, t in base.items()},
            r"otherwise than .* \(model\.blocks.* where the base has blocks",
        ),
        (
            "shaped",
            base | {"embed.weight": big.mT.contiguous()},
            r"embed\.weight of shape \[8, 13\] where .* \[13, 8\]",
        ),
        ("kinds", base | {"embed.weight": big.int()}, r"embed\.weight as int32, which cannot be merged"),
        ("eight", base | {"embed.weight": big.to(torch.float8_e4m3fn)}, r"embed\.weight as float8_e4m3fn"),
        ("nan", base | {"scale": torch.tensor(float("nan"))}, r"nan\.safetensors holds NaN or infinity in scale"),
        ("inf", base | {"embed.weight": big.clone().fill_(float("inf"))}, r"holds NaN or infinity in embed\.weight"),
    ):
        for method in ("task_arithmetic", "ties"):
            refused(words, method, pair[0], [pair[1], write(changed, name)], out)
    refused(r"nan\.safetensors holds NaN", "slerp", tmp_path / "nan.safetensors", [pair[1]], out)


def test_another_architecture(tuned, tiny_model, tmp_path: Path) -> None:
    base, one, _ = tuned("gpt2")
    save(tiny_model("llama"), tmp_path / "llama")
    refused(
        "is a model of the type llama and the base .* gpt2", "ties", base, [one, tmp_path / "llama"], tmp_path / "out"
    )


def test_options_that_do_not_fit(pair, tmp_path: Path) -> None:
    base, model = pair
    out = tmp_path / "out"
    refused("--weights has 1 numbers for 2 models", "ties", base, [model, model], out, weights=[1.0])
    refused("--models needs at least one", "ties", base, [], out)
    refused("--models names the base", "ties", base, [model, base], out)
    refused("--head best is not understood", "ties", base, [model], out, head="best")
    refused("--head take:1 names no model", "ties", base, [model], out, head="take:1")
    refused("no config.json beside its weights", "ties", base, [model], out, head="base")
    refused("--dtype int8 is not known", "ties", base, [model], out, dtype="int8")
    assert not out.exists()


def test_the_base_counts_among_the_models_of_a_mean(pair, tmp_path: Path) -> None:
    base, model = pair
    mean = files_of(merge("linear", base, [base, model], tmp_path / "out").path)
    expected = (load_file(base)["embed.weight"] + load_file(model)["embed.weight"]) / 2
    assert torch.allclose(mean["embed.weight"], expected, atol=1e-6)


def test_folders_that_exist(pair, tmp_path: Path) -> None:
    base, model = pair
    out = tmp_path / "out"
    done = merge("task_arithmetic", base, [model], out)
    before = (out / "merge_report.json").read_bytes()
    refused("exists: give --overwrite", "ties", base, [model], out)
    assert (out / "merge_report.json").read_bytes() == before
    again = merge("ties", base, [model], out, overwrite=True)
    assert again.report["output"]["fingerprint"] != done.report["output"]["fingerprint"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    refused("holds something else than a merged model", "ties", base, [model], other, overwrite=True)
    refused("is a file", "ties", base, [model], other / "letter.txt")
    refused("names a file", "ties", base, [model], tmp_path / "out.safetensors")
    refused("which is to be merged", "ties", out, [model], out, overwrite=True)
    assert (other / "letter.txt").read_text() == "dear"


def test_a_full_disk_leaves_nothing(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    kept = merge("task_arithmetic", pair[0], [pair[1]], out).report["output"]["fingerprint"]
    calls = []

    def full(handle: object, data: bytes) -> None:
        calls.append(data)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_write", full)
    refused("disk that holds .* is full", "ties", pair[0], [pair[1]], out, overwrite=True)
    assert len(calls) == 4
    assert Checkpoint.open(out).fingerprint() == kept
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    refused("is full: the merged model takes", "ties", pair[0], [pair[1]], tmp_path / "new")


def test_what_cannot_be_read_back_is_told(pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_header = merging.write_header

    def spoiled(folder: Path, shard: Any, metadata: Any) -> None:
        write_header(folder, shard, metadata)
        with open(folder / shard.file, "r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)
            file.seek(-1, 2)
            file.write(bytes([last[0] ^ 1]))

    monkeypatch.setattr(merging, "write_header", spoiled)
    refused("cannot be read back from", "ties", pair[0], [pair[1]], tmp_path / "out")


def test_integer_buffers_that_differ_are_the_bases(pair, tensors, changed, write, tmp_path: Path) -> None:
    model = changed(tensors(), 1) | {"position_ids": torch.arange(7) + 1, "mask": torch.ones(3, dtype=torch.bool)}
    done = merge("ties", pair[0], [pair[1], write(model, "shifted")], tmp_path / "out")
    merged = files_of(done.path)
    assert merged["position_ids"].tolist() == list(range(7))
    assert merged["mask"].tolist() == [True, False, True]
    told = [note for note in done.notes if "which are no weights" in note]
    assert len(told) == 2
    assert all("shifted" in note for note in told)
    assert done.report["copied_tensors"] == ["mask", "position_ids"]


def test_widths_that_differ_are_told_and_what_rounding_took(tensors, changed, write, tmp_path: Path) -> None:
    base = tensors(0, torch.bfloat16)
    model = {n: t.float() if t.is_floating_point() else t for n, t in base.items()}
    model = changed(model, 1, step=1e-3)  # less than a step of bfloat16 for most
    done = merge("task_arithmetic", write(base, "narrow"), [write(model, "wide")], tmp_path / "out")
    assert {t.dtype for t in files_of(done.path).values()} == {torch.bfloat16, torch.int64, torch.bool}
    assert done.report["lost_to_rounding"] > 0.3
    assert any("tensors in float32 where the base has bfloat16" in note for note in done.notes)
    assert any("rounding to the numbers that are stored took" in note for note in done.notes)
    kept = merge("task_arithmetic", tmp_path / "narrow.safetensors", [model], tmp_path / "kept", dtype="float32")
    assert kept.report["lost_to_rounding"] == 0
    assert torch.equal(files_of(kept.path)["embed.weight"], base["embed.weight"].float() + (model["embed.weight"] - base["embed.weight"].float()))  # fmt: skip  # noqa: E501


def test_what_overflows_is_refused(tensors, write, tmp_path: Path) -> None:
    base = {"w": torch.full((3,), 6e4)}
    refused(
        "w overflows float16",
        "task_arithmetic",
        write(base, "b"),
        [{"w": torch.full((3,), 7e4)}],
        tmp_path / "o",
        dtype="float16",
    )


def test_lineage(tensors, changed, write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tensors()
    models = [write(changed(base, 1, 0.01), "near"), write(tensors(9), "stranger"), write(base, "same")]
    with caplog.at_level("WARNING", "weightsmith"):
        done = merge("task_arithmetic", write(base, "base"), models, tmp_path / "out")
    near, stranger, same = (entry["change_over_base"] for entry in done.report["models"])
    assert 0 < near < 0.05
    assert 1 < stranger < 2
    assert same == 0
    assert next(note for note in done.notes if "stranger" in note) in caplog.text
    assert any("same.safetensors is equal to the base" in note for note in done.notes)
    assert not any("near" in note for note in done.notes if "norm" in note)


@pytest.mark.parametrize("family", ["vit", "narrow_vit", "mlp"])
def test_heads_by_role(tuned, tmp_path: Path, family: str) -> None:
    base, one, two = tuned(family, classes=7)
    refused(r"has classifier.*--head base", "task_arithmetic", base, [one, two], tmp_path / "out")
    for head, owner in (("base", base), ("take:0", one), ("take:1", two)):
        done = merge("task_arithmetic", base, [one, two], tmp_path / f"out-{head[-1]}", head=head)
        merged, theirs = files_of(done.path), files_of(owner)
        heads = [name for name in merged if name.startswith("classifier.")]
        assert len(heads) == 2
        assert all(torch.equal(merged[name], theirs[name]) for name in heads)
        assert load(done.path).n_classes == (7 if owner == two else 4)
        body = [name for name in merged if name not in heads and merged[name].is_floating_point()]
        assert all(torch.allclose(merged[name], files_of(base)[name], atol=1e-6) for name in body)  # 0.02 − 0.02
    skipped = merge("task_arithmetic", base, [one, two], tmp_path / "skip", head="skip")
    assert set(files_of(skipped.path)) == set(files_of(base)) - set(heads)
    assert skipped.report["left_out"] == sorted(heads)
    assert any("has no head" in note for note in skipped.notes)


def test_a_head_that_is_tied(tuned, tmp_path: Path) -> None:
    base, one, two = tuned("gpt2")
    refused("tied to the embedding", "task_arithmetic", base, [one, two], tmp_path / "out", head="base")


def test_tied_tensors_stay_tied(tiny_model, tuned, tmp_path: Path) -> None:
    """Stored twice, once, or in memory under both names."""
    base, one, _ = tuned("gpt2")
    for name in (base, one):
        held = load_file(name / "model.safetensors")
        save_file(held | {"lm_head.weight": held["transformer.wte.weight"].clone()}, f"{name}-twice.safetensors")
    twice = [Path(f"{name}-twice.safetensors") for name in (base, one)]
    merged = files_of(merge("dare_linear", twice[0], [twice[1]], tmp_path / "a").path)
    assert torch.equal(merged["lm_head.weight"], merged["transformer.wte.weight"])
    once = merge("dare_linear", twice[0], [one], tmp_path / "b")
    assert all(torch.equal(files_of(once.path)[name], merged[name]) for name in merged)
    assert any("stores lm_head.weight once" in note for note in once.notes)
    extra = merge("dare_linear", base, [twice[1]], tmp_path / "c")
    assert "lm_head.weight" not in files_of(extra.path)
    assert any("stores lm_head.weight twice" in note for note in extra.notes)
    memory = files_of(merge("dare_linear", load(base), [load(one)], tmp_path / "d").path)
    assert all(torch.equal(memory[name], merged[name]) for name in merged)


def test_what_lies_beside_the_base_goes_along(tuned, tmp_path: Path) -> None:
    base, one, _ = tuned("vit")
    (base / "labels.txt").write_text("a")
    (base / "modeling.py").write_text("raise SystemExit")
    done = merge("ties", base, [one], tmp_path / "out", dtype="bfloat16")
    there = {path.name for path in done.path.iterdir()}
    assert {"config.json", "preprocessor_config.json", "labels.txt", "modeling.py", "merge_report.json"} <= there
    assert any("modeling.py is code that lies beside the base" in note for note in done.notes)
    assert json.loads((done.path / "config.json").read_text())["dtype"] == "bfloat16"


def test_hashes_of_the_sources(tiny_model, tmp_path: Path) -> None:
    base, model = tiny_model("vit", 0), tiny_model("vit", 1)
    report = merge("ties", base, [model], tmp_path / "out", sha256=True).report
    assert report["base"]["sha256"] == weights_hash(base)
    assert report["models"][0]["sha256"] == weights_hash(model)
