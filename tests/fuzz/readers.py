"""Every reader of a file that a user, another program or a dying disk may have written, with a good file of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from weightsmith.adapters import Adapter, read_adapter, write_adapter
from weightsmith.data.facts import read_facts
from weightsmith.data.prompts import read_prompts
from weightsmith.data.sources import open_data
from weightsmith.data.split import from_arrays
from weightsmith.data.tables import open_table
from weightsmith.delta import Delta
from weightsmith.edit.hyperparameters import read_hyperparameters
from weightsmith.effects import Effects
from weightsmith.errors import WeightsmithError
from weightsmith.evaluate.examples import Examples, load_examples, save_examples
from weightsmith.factors import Dense, LowRank
from weightsmith.locate.astra import Attribution
from weightsmith.locate.steering import Steering
from weightsmith.measure import Interval
from weightsmith.measure.kept import _json_sum, keep_json, keep_tensors, kept_json, kept_tensors
from weightsmith.merge import Checkpoint
from weightsmith.merge.mergekit import read_recipe
from weightsmith.models import load
from weightsmith.request import ImageRequest, TextRequest, load_requests, save_requests
from weightsmith.run.ablate.trials import Trial
from weightsmith.run.cells import Cell
from weightsmith.run.compare.draws import Plan
from weightsmith.run.options.correct import RunOptions
from weightsmith.run.options.files import read_yaml, to_yaml
from weightsmith.run.recorded import recorded_split
from weightsmith.site import Site
from weightsmith.stream import Journal
from weightsmith.stream.journal import Batch, Edit, _line
from weightsmith.train import TrainOptions, fit

Writes = Callable[[Path], Path]
"""From an empty folder to the file in it that is to be damaged, the rest lying beside it."""


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: of what it reads.
        writes: a good file of it.
        reads: reads it, given that file.
        costs: how many times as long as the quick ones it takes.
        seals: makes the checksums of a damaged file right, so that what lies behind them is reached as well.
    """

    name: str
    writes: Writes
    reads: Callable[[Path], Any]
    costs: int = 1
    seals: Callable[[bytes], bytes] = bytes


def _tensors() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=made),
        "b": torch.randn(5, generator=made).to(torch.bfloat16),
        "steps": torch.tensor([7]),
    }


def _safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def _state_dict(folder: Path) -> Path:
    torch.save(_tensors(), folder / "model.pt")
    return folder / "model.pt"


def _index(folder: Path) -> Path:
    from safetensors.torch import save_file

    shards = {"model-1.safetensors": ["a.weight"], "model-2.safetensors": ["b", "steps"]}
    for shard, names in shards.items():
        save_file({name: _tensors()[name] for name in names}, folder / shard)
    where = {name: shard for shard, names in shards.items() for name in names}
    return _json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 66}, "weight_map": where})


def _json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def _delta(folder: Path) -> Path:
    made = torch.Generator().manual_seed(0)
    change = LowRank(torch.randn(3, 2, generator=made).double(), torch.randn(2, 4, generator=made).double())
    Delta({"w": change, "b": Dense(torch.ones(3))}, base="0" * 64, info={"editor": "head"}).save(
        folder / "edit.safetensors"
    )
    return folder / "edit.safetensors"


def _adapter(file: str) -> Writes:
    def write(folder: Path) -> Path:
        made = torch.Generator().manual_seed(0)
        change = LowRank(torch.randn(3, 2, generator=made), torch.randn(4, 2, generator=made).T)
        write_adapter(
            folder / "adapter", Adapter({"h.0.fc": (change.right.contiguous(), change.left)}, {"h.0.fc": torch.ones(3)})
        )
        return folder / "adapter" / file

    return write


def _arrays() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for part, count in (("train", 6), ("val", 4), ("test", 4)):
        made[f"{part}_images"] = chance.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        made[f"{part}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    return made


def _npz(folder: Path) -> Path:
    np.savez(folder / "cells.npz", **_arrays())
    return folder / "cells.npz"


def _packed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "cells.npz", **_arrays())
    return folder / "cells.npz"


def _image(ending: str, mode: str = "RGB") -> Writes:
    def write(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        for name in ("cat", "dog"):
            (folder / "pets" / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(pixels).convert(mode).save(folder / "pets" / name / f"{number}.{ending}")
        return folder / "pets" / "cat" / f"0.{ending}"

    return write


def _parquet(folder: Path) -> Path:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), 90, np.uint8)).save(encoded, "PNG")
    rows = [{"bytes": encoded.getvalue(), "path": None}] * 4
    (folder / "set").mkdir()
    for part in ("train", "test"):
        table = pa.table({"img": pa.array(rows), "label": pa.array([0, 1, 0, 1])})
        pq.write_table(table, folder / "set" / f"{part}-00000-of-00001.parquet")
    return folder / "set" / "train-00000-of-00001.parquet"


def _tiny_imagenet(folder: Path) -> Path:
    root = folder / "tiny-imagenet-2"
    for wnid in ("n01", "n02"):
        for place, count in ((root / "train" / wnid / "images", 2), (root / "val" / "images", 1)):
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.new("RGB", (8, 8), 40 * number).save(place / f"{wnid}_{number}.JPEG")
    (root / "wnids.txt").write_text("n01\nn02\n")
    (root / "words.txt").write_text("n01\tgoldfish\nn02\tcrane\n")
    (root / "val" / "val_annotations.txt").write_text("n01_0.JPEG\tn01\t0\t0\t7\t7\nn02_0.JPEG\tn02\t0\t0\t7\t7\n")
    return root / "val" / "val_annotations.txt"


def _pixels(place: Path) -> None:
    source = open_data(str(place), cache_dir=place.parent / "cache")
    for part in source.parts.values():
        part.pixels()


def _facts(folder: Path) -> Path:
    entry = {
        "prompt": "Anna plays the", "subject": "Anna", "target_new": "flute", "ground_truth": "drum",
        "rephrase_prompt": "The instrument of Anna is the", "locality_prompt": "Bert plays the",
        "locality_ground_truth": "horn",
    }  # fmt: skip
    other = {
        "prompt": "{} lives in",
        "subject": "Clara",
        "target": "Oslo",
        "paraphrases": ["Clara's home is"],
        "neighbours": [],
    }
    return _json(folder / "facts.json", [entry, other])


def _prompts(folder: Path) -> Path:
    return _json(
        folder / "prompts.json",
        [{"prompt": "Anna plays the", "subject": "Anna", "answer": "flute", "attribute": "flute"}] * 2,
    )


def _recipe(folder: Path) -> Path:
    path = folder / "recipe.yml"
    path.write_text(
        "merge_method: ties\nbase_model: base\nmodels:\n  - model: one\n    parameters: {weight: 0.5, density: 0.3}\n"
        "  - model: two\n    parameters: {weight: 0.5, density: 0.3}\nparameters: {lambda: 1.0, normalize: true}\n"
        "dtype: float32\n"
    )
    return path


def _options(folder: Path) -> Path:
    path = folder / "options.yaml"
    path.write_text(to_yaml(RunOptions(data_path="digits", run_name="x")))
    return path


def _hyperparameters(folder: Path) -> Path:
    path = folder / "hparams.yaml"
    path.write_text(
        "alg_name: MEMIT\nmodel_name: gpt2-xl\nlayers: [13, 14]\nclamp_norm_factor: 0.75\nlayer_selection: all\nfact_token: "
        "subject_last\nv_num_grad_steps: 20\nv_lr: 0.5\nv_loss_layer: 47\nv_weight_decay: 0.5\nkl_factor: 0.0625\n"
        "mom2_adjustment: true\nmom2_update_weight: 20000\nrewrite_module_tmp: transformer.h.{}.mlp.c_proj\n"
        "mom2_dataset: wikipedia\nmom2_n_samples: 100000\nmom2_dtype: float32\n"
    )
    return path


def _journal(file: str) -> Writes:
    def write(folder: Path) -> Path:
        journal = Journal.create(folder / "edits", {"base": "abc", "method": "head"})
        request = TextRequest("a", "Anna plays the", "Anna", "flute")
        change = Delta({"b": Dense(torch.ones(3))})
        for number in (1, 2):
            journal.append([Batch(number, (Edit(number, request, True, 0.5),), change, {}, {})])
        found = sorted(path for path in (folder / "edits").rglob("*") if path.is_file() and path.suffix == file)
        return found[0]

    return write


def _journal_of(path: Path) -> None:
    place = next(parent for parent in path.parents if parent.name == "edits")
    Journal.open(place)


def _sealed(content: bytes) -> bytes:
    """Every line that is JSON with the checksum of its record."""
    found = b""
    for line in content.splitlines(keepends=True):
        try:
            found += _line(json.loads(line)["record"]).encode()
        except (ValueError, KeyError, TypeError):
            found += line
    return found


def _requests(folder: Path) -> Path:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    save_requests(folder / "requests.safetensors", [ImageRequest("a", image, 1, 0), ImageRequest("b", image + 1, 0, 1)])
    return folder / "requests.safetensors"


def _effects(folder: Path) -> Path:
    sites = (Site.parse("mlp.key[0]@cls"), Site.parse("attn.z[1,0]@0"))
    Effects(sites, torch.rand(3, 2), ("a", "b", "c"), "probability", {"seed": 1}).save(folder / "effects.safetensors")
    return folder / "effects.safetensors"


def _steering(folder: Path) -> Path:
    Steering((0, 1), torch.rand(2, 4), torch.rand(2, 4), "cls", {}).save(folder / "steering.safetensors")
    return folder / "steering.safetensors"


def _attribution(folder: Path) -> Path:
    Attribution(
        samples=("a",), targets=torch.tensor([1]), weights=torch.rand(1, 4), fit=torch.rand(1), fit_fresh=torch.rand(1),
        top=((0, 1),), uninformative=(), info={},
    ).save(folder / "attribution.safetensors")  # fmt: skip
    return folder / "attribution.safetensors"


def _examples(folder: Path) -> Path:
    rows = torch.rand(2, 3).softmax(-1)
    one = Examples(
        "edited",
        "head",
        "val",
        2,
        ("a", "b"),
        torch.tensor([0, 1]),
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        rows,
        rows.flip(0),
    )
    save_examples(folder / "examples.safetensors", [one])
    return folder / "examples.safetensors"


def _network() -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    return ViTForImageClassification(config)


def _model(file: str) -> Writes:
    def write(folder: Path) -> Path:
        from transformers import ViTImageProcessor

        _network().save_pretrained(folder / "model")
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "model")
        return folder / "model" / file

    return write


def _split(file: str) -> Writes:
    def write(folder: Path) -> Path:
        source = open_data(str(_npz(folder)), cache_dir=folder / "cache")
        parts = {
            "train": {"source": source.part("train").source, "part": "train", "held_out": False},
            "held_out": {"source": source.part("train").source, "part": "test", "held_out": True},
        }
        run = folder / "run"
        (run / "model").mkdir(parents=True)
        _json(run / "data_split.json", {"parts": parts})
        np.savez(run / "data_split_indices.npz", train=np.arange(6), held_out=np.arange(4))
        return run / file

    return write


def _trained(path: Path) -> None:
    """One epoch where there is no checkpoint, and what the checkpoint holds where there is one."""
    chance = np.random.default_rng(0)
    parts = [
        from_arrays(
            chance.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), np.array([0, 1, 0, 1]), ("cat", "dog"), part, part
        )
        for part in ("train", "val")
    ]
    fit(load(_network()), *parts, TrainOptions(epochs=1, batch_size=4), path, resume=True)


def _training(folder: Path) -> Path:
    _trained(folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def _kept_tensors(folder: Path) -> Path:
    keep_tensors(folder / "moment.safetensors", {"sum": torch.ones(3, 3)}, {"format": "sums", "count": 4})
    return folder / "moment.safetensors"


def _kept_json(folder: Path) -> Path:
    keep_json(folder / "accuracy.json", {"accuracy": [0.5, 0.25], "images": 8})
    return folder / "accuracy.json"


def _json_sealed(content: bytes) -> bytes:
    """A kept value whose checksum is right."""
    try:
        entries = json.loads(content)
        return json.dumps(entries | {"sum": _json_sum(entries["value"])}).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return content


def _table(folder: Path) -> Path:
    path = folder / "flowers.csv"
    path.write_text("petal,sepal,label\n" + "".join(f"{row / 3:.3f},{-row:.1f},{row % 3}\n" for row in range(9)))
    return path


def _comparison(folder: Path) -> Path:
    Plan(
        "text", "gpt2", "f" * 64, "facts.json", "p" * 64, "", {"memit": {"layers": [3, 4]}}, (1, 2), (0,),
        {0: (("a", "1" * 64), ("b", "2" * 64))}, ("a note",),
    ).save(folder / "comparison.json")  # fmt: skip
    return folder / "comparison.json"


def _cell(folder: Path) -> Path:
    cell = Cell("memit", 2, 0, "k" * 64, {"efficacy": Interval(1.0, 0.5, 1.0, 4)}, 1.5, 0.1, 1.0)
    cell.save(folder)
    return folder / cell.file


def _trial(folder: Path) -> Path:
    Trial({"rank": 4}, "k" * 64, {"efficacy": Interval(1.0, 0.5, 1.0, 4)}, {"kept": 3}, [[(2, 2)]]).save(folder)
    return next(folder.iterdir())


def _or_refused(found: object) -> None:
    """Of a reader that measures again what it cannot take: not taken is refused."""
    if found is None:
        raise WeightsmithError("what was measured before is not taken: it is measured again")


def _recorded(path: Path) -> None:
    folder = path.parent.parent
    found = recorded_split(str(path.parent), open_data(str(folder / "cells.npz"), cache_dir=folder / "cache"))
    for name in found.entries if found else ():
        found.part(name, open_data(str(folder / "cells.npz"), cache_dir=folder / "cache"))  # type: ignore[union-attr]


def _checkpoint(path: Path) -> None:
    with Checkpoint.open(path.parent if path.name.endswith(".json") else path) as checkpoint:
        checkpoint.fingerprint()
        for name in checkpoint.names:
            checkpoint.whole(name)


READERS = (
    Reader("safetensors", _safetensors, _checkpoint),
    Reader("shards", _index, _checkpoint),
    Reader("state dict", _state_dict, _checkpoint),
    Reader("delta", _delta, Delta.load),
    Reader("adapter config", _adapter("adapter_config.json"), lambda path: read_adapter(path.parent)),
    Reader("adapter weights", _adapter("adapter_model.safetensors"), lambda path: read_adapter(path.parent)),
    Reader("npz", _npz, _pixels),
    Reader("packed npz", _packed_npz, _pixels),
    Reader("png", _image("png"), lambda path: _pixels(path.parents[1])),
    Reader("jpeg", _image("jpg"), lambda path: _pixels(path.parents[1])),
    Reader("tiff", _image("tif"), lambda path: _pixels(path.parents[1])),
    Reader("palette gif", _image("gif", "P"), lambda path: _pixels(path.parents[1])),
    Reader("parquet", _parquet, lambda path: _pixels(path.parent), 3),
    Reader("annotations", _tiny_imagenet, lambda path: _pixels(path.parents[1]), 3),
    Reader("facts", _facts, read_facts),
    Reader("prompts", _prompts, read_prompts),
    Reader("recipe", _recipe, read_recipe),
    Reader("options", _options, lambda path: read_yaml(path, RunOptions())),
    Reader("hyper-parameters", _hyperparameters, read_hyperparameters),
    Reader("journal", _journal(".jsonl"), _journal_of),
    Reader("journal with checksums", _journal(".jsonl"), _journal_of, seals=_sealed),
    Reader("journal's tensors", _journal(".safetensors"), _journal_of),
    Reader("requests", _requests, load_requests),
    Reader("effects", _effects, Effects.load),
    Reader("steering", _steering, Steering.load),
    Reader("attribution", _attribution, Attribution.load),
    Reader("examples", _examples, load_examples),
    Reader("model config", _model("config.json"), lambda path: load(path.parent), 20),
    Reader("model weights", _model("model.safetensors"), lambda path: load(path.parent), 20),
    Reader("preprocessor", _model("preprocessor_config.json"), lambda path: load(path.parent), 20),
    Reader("training", _training, _trained, 20),
    Reader("kept tensors", _kept_tensors, lambda path: kept_tensors(path, "sums")),
    Reader("kept value", _kept_json, lambda path: _or_refused(kept_json(path))),
    Reader("kept value with its checksum", _kept_json, lambda path: _or_refused(kept_json(path)), seals=_json_sealed),
    Reader("table", _table, open_table),
    Reader("comparison", _comparison, Plan.load),
    Reader("cell", _cell, lambda path: _or_refused(Cell.load(path, "k" * 64))),
    Reader("trial", _trial, lambda path: _or_refused(Trial.load(path, "k" * 64))),
    Reader("split record", _split("data_split.json"), _recorded),
    Reader("split indices", _split("data_split_indices.npz"), _recorded),
)
"""All of them; a reader of a new kind of file is a row here."""


def fresh(reader: Reader, folder: Path) -> tuple[Path, bytes]:
    """A good file of a reader in an emptied folder, and what it holds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = reader.writes(folder)
    return path, path.read_bytes()
