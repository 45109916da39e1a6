"""`weightsmith locate` end to end: what each way leaves, on images and prompts; resuming, overwriting, held-out images."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import weightsmith as ws
from tests.forked import forked
from tests.run.conftest import undrawn
from weightsmith import cli, files
from weightsmith.cli.commands import ways as ways_of
from weightsmith.delta import weights_hash
from weightsmith.effects import Effects
from weightsmith.errors import HeldOutError, WeightsmithError
from weightsmith.locate import METRICS, ImageCases, grids, sweep
from weightsmith.locate.metrics import FLOORS
from weightsmith.models import save
from weightsmith.models.store import wrap
from weightsmith.run.findings import layers_of
from weightsmith.run.folder import RunFolder
from weightsmith.run.locate import inputs
from weightsmith.run.options.locate import PatchOptions, TraceOptions
from weightsmith.site import Site

BLUR = ["--data-path", "digits", "--corruption", "blur", "--device", "cpu"]
LEAN = ["--no-heads", "--map-samples", "0", "--window", "1"]
COMMANDS = ("trace", "patch", "attribution", "astra")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def events(run: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [(line["stage"], line["event"]) for line in lines]


def contents(run: Path) -> dict[str, bytes]:
    """Every file that says what was measured."""
    found = (path for path in run.rglob("*") if path.is_file())
    told = ("events.jsonl", "log.txt", ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in found if path.name not in told}


@pytest.fixture(scope="session")
def located(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of each way to locate, of the finished run's model; do not write into them."""
    runs = tmp_path_factory.mktemp("located")
    every = ["--model", str(finished), "--runs-dir", str(runs), "--max-samples", "6", "--device", "cpu"]
    blur = ["--data-path", "digits", "--corruption", "blur"]
    flags = {
        "trace": ["--num-ablations", "2", "--map-samples", "2"],
        "patch": [*blur, "--window", "2", "--sever", "mlp.out", "--map-samples", "2", "--token-block", "4"],
        "attribution": [*blur, "--verify", "6", "--audit", "3"],
        "astra": ["--masks", "8"],
    }
    for command, given in flags.items():
        cli.main(["locate", command, *every, *given, "--run-name", command])
    return {command: runs / command for command in flags}


# --- what a run leaves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_is_one_folder(located: dict[str, Path], command: str) -> None:
    run = located[command]
    asked = yaml.safe_load((run / "config.yaml").read_text())
    assert asked["max_samples"] == 6
    assert json.loads((run / "env.json").read_text()).keys() >= {"python", "packages", "device", "weights", "seed"}
    assert events(run) == [(command, "start"), (command, "done")]
    assert json.loads((run / "summary.json").read_text())["command"] == command
    assert (run / "refused.csv").read_text().splitlines()[0] == "sample,why"
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_figure_has_its_numbers_and_is_on_the_page(located: dict[str, Path], command: str) -> None:
    run = located[command]
    page = (run / "report.html").read_text(encoding="utf-8")
    drawn = sorted(path.stem for path in (run / "figures").iterdir())
    assert drawn
    assert len(set(re.findall(r">Figure (\d+)\. ", page))) == len(drawn)
    for stem in drawn:
        assert (run / "figures" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert rows_of(run / f"{stem}.csv")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_needs_nothing_else(located: dict[str, Path], command: str) -> None:
    page = (located[command] / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    for sentence in json.loads((located[command] / "summary.json").read_text())["summary"]:
        assert sentence[:40] in page


def test_the_terminal_tells_what_was_found(weightsmith, finished: Path, tmp_path: Path) -> None:
    flags = ["--model", finished, "--runs-dir", tmp_path, "--max-samples", 3, *BLUR, *LEAN, "--sites", "mlp.out"]
    outcome = weightsmith("locate", "patch", *flags)
    assert outcome.status == 0, outcome.err
    assert "mlp.out[2]@cls" in outcome.out
    assert "Restored 4 places in layers in " in outcome.out
    assert str(tmp_path / "digits-patch" / "report.html") in outcome.out


def test_layer_importance_is_what_effects_hold(located: dict[str, Path]) -> None:
    for command in ("trace", "patch"):
        effects = Effects.load(located[command] / "effects.safetensors")
        rows = rows_of(located[command] / "layer_importance.csv")
        assert [row["sample"] for row in rows] == list(effects.samples)
        table = [[float(row[str(site)]) for site in effects.sites] for row in rows]
        assert torch.allclose(torch.tensor(table, dtype=torch.float64), effects.values, atol=1e-6)
        gaps = torch.tensor([float(row["clean"]) - float(row["corrupted"]) for row in rows], dtype=torch.float64)
        assert torch.allclose(gaps, effects.gaps, atol=2e-6)
        assert bool((effects.gaps.abs() >= FLOORS["logit_difference"]).all())


@pytest.mark.parametrize(
    ("command", "name"),
    [("trace", "layers"), ("trace", "heads"), ("patch", "layers"), ("patch", "severed"), ("attribution", "verified")],
)
def test_statistics_are_in_three_metrics_raw_and_normalised(located: dict[str, Path], command: str, name: str) -> None:
    run = located[command]
    rows = rows_of(run / f"{name}_statistics.csv")
    stem = {"layers": "effects", "verified": "effects"}.get(name, f"effects_{name}")
    effects = Effects.load(run / f"{stem}.safetensors")
    forms = {(row["metric"], row["form"]) for row in rows}
    assert forms == {(metric, form) for metric in METRICS for form in ("raw", "share of the gap")}
    assert len(rows) == len(forms) * len(effects.sites)
    raw = {row["site"]: row for row in rows if (row["metric"], row["form"]) == ("logit_difference", "raw")}
    share = {
        row["site"]: row for row in rows if (row["metric"], row["form"]) == ("logit_difference", "share of the gap")
    }
    for entry, normal in zip(effects.table(), effects.normalised().table(), strict=True):
        assert float(raw[entry["site"]]["mean"]) == pytest.approx(entry["mean"], abs=1e-6)
        assert (
            float(raw[entry["site"]]["low"]) <= float(raw[entry["site"]]["mean"]) <= float(raw[entry["site"]]["high"])
        )
        assert float(share[entry["site"]]["mean"]) == pytest.approx(normal["mean"], abs=1e-5)


def test_windows_stand_beside_single_layers(located: dict[str, Path]) -> None:
    """The run asked for windows of 2 only."""
    sites = Effects.load(located["patch"] / "effects.safetensors").sites
    for kind in ("resid.out", "attn.out", "mlp.out"):
        assert [site.layer for site in sites if site.kind == kind and site.span == 1] == [0, 1, 2, 3]
        assert [site.layer for site in sites if site.kind == kind and site.span == 2] == [0, 1, 2]
    drawn = rows_of(located["patch"] / "layer_curves.csv")
    assert {row["window"] for row in drawn} == {"1", "2"}


def test_heads_severed_paths_and_maps(located: dict[str, Path]) -> None:
    heads = Effects.load(located["trace"] / "effects_heads.safetensors")
    assert [(site.kind, site.layer, site.head) for site in heads.sites] == [
        ("attn.z", layer, head) for layer in range(4) for head in range(2)
    ]
    whole = Effects.load(located["patch"] / "effects.safetensors")
    severed = Effects.load(located["patch"] / "effects_severed.safetensors")
    assert severed.info["sever"] == ["mlp.out"]
    assert severed.sites == whole.sites
    assert not torch.equal(severed.values, whole.values)
    last = Site("resid.out", 3, tokens="cls")  # nothing is left to be severed behind the last block
    assert torch.allclose(severed.at([last]).values, whole.at([last]).values, atol=1e-5)
    single = Effects.load(located["trace"] / "effects_tokens.safetensors")
    assert {site.tokens for site in single.sites} == {(0,), (1,), (2,), (3,), (4,)}
    stretches = Effects.load(located["patch"] / "effects_tokens.safetensors")
    assert {site.tokens for site in stretches.sites} == {(0,), (1, 2, 3, 4)}
    assert len(stretches.samples) == 2


def test_a_map_and_the_sweep_say_the_same_of_one_place(located: dict[str, Path]) -> None:
    """Refused images stand between those that are drawn, and the noise of each is still its own."""
    for command in ("trace", "patch"):
        swept = Effects.load(located[command] / "effects.safetensors")
        drawn = Effects.load(located[command] / "effects_tokens.safetensors")
        assert set(drawn.samples) <= set(swept.samples)
        rows = [swept.samples.index(name) for name in drawn.samples]
        for layer in range(4):
            at_cls = swept.at([Site("resid.out", layer, tokens="cls")]).values[rows]
            assert torch.allclose(at_cls, drawn.at([Site("resid.out", layer, tokens=(0,))]).values, atol=1e-5)


def test_a_screen_is_checked_against_the_truth(located: dict[str, Path]) -> None:
    run = located["attribution"]
    verified, screen, audit = (Effects.load(run / f"{stem}.safetensors") for stem in ("effects", "screen", "audit"))
    assert len(verified.sites) == 6
    assert len(screen.sites) == len(audit.sites) == 12 + 8
    assert len(audit.samples) == 3
    best = torch.argsort(screen.mean().abs(), descending=True)[:6]
    assert {screen.sites[i] for i in best} == set(verified.sites)
    same = audit.at(verified.sites).values
    rows = [verified.samples.index(name) for name in audit.samples]
    assert torch.allclose(same, verified.values[rows], atol=1e-5)
    assert [int(row["exact_rank"]) for row in rows_of(run / "verified.csv")] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= float(row["recall"]) <= 1 for row in rows_of(run / "recall.csv"))


def test_astra_leaves_weights_and_steering(located: dict[str, Path]) -> None:
    run = located["astra"]
    assert (run / "attribution.safetensors").exists()
    assert (run / "steering.safetensors").exists()
    weights = rows_of(run / "patch_weights_all.csv")
    assert len({row["sample"] for row in weights}) == 6
    assert len(weights) == 6 * 4
    assert {row["images"] for row in rows_of(run / "steering.csv")} == {"attributed", "right"}


# --- options --------------------------------------------------------------------------------------------------------


@pytest.fixture
def patch_run(weightsmith, finished: Path, tmp_path: Path) -> Callable[..., Path]:
    """`patch_run(*flags)`: the folder of a lean patching run of the finished run's model."""

    def run(*flags: object, name: str = "r") -> Path:
        given = ["--model", finished, "--runs-dir", tmp_path, "--max-samples", 4, "--run-name", name, *BLUR, *LEAN]
        outcome = weightsmith("locate", "patch", *given, *flags)
        assert outcome.status == 0, outcome.err
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    ("given", "tokens"), [("cls", "cls"), ("all", None), ("0,2", (0, 2)), ("patches", "patches"), ("last", "last")]
)
def test_tokens(patch_run, given: str, tokens: str | tuple[int, ...] | None) -> None:
    effects = Effects.load(patch_run("--tokens", given, "--sites", "resid.out") / "effects.safetensors")
    assert {site.tokens for site in effects.sites} == {tokens}
    if given == "all":  # the whole residual stream brings everything back
        assert torch.allclose(effects.normalised().values, torch.ones_like(effects.values))


def test_each_token_by_itself_or_in_stretches(patch_run) -> None:
    run = patch_run("--tokens", "cls", "each", "--token-block", 3, "--sites", "attn.out")
    sites = Effects.load(run / "effects.safetensors").sites
    assert {site.tokens for site in sites} == {"cls", (0,), (1, 2, 3), (4,)}
    assert len(sites) == 4 * 4


def test_neither_heads_nor_maps_unless_asked(patch_run) -> None:
    run = patch_run()
    assert sorted(path.name for path in run.glob("*.safetensors")) == ["effects.safetensors"]
    assert sorted(path.name for path in (run / "figures").iterdir()) == ["layer_curves.png"]


@pytest.mark.parametrize("metric", METRICS)
def test_the_metric_is_the_one_asked_for(patch_run, metric: str) -> None:
    run = patch_run("--metric", metric)
    assert Effects.load(run / "effects.safetensors").metric == metric
    assert rows_of(run / "layers_statistics.csv")[0]["metric"] == metric


def test_underscores_and_config_files(patch_run, tmp_path: Path) -> None:
    first = patch_run("--max_samples", 3, "--min_gap", 0.01, "--no_heads", name="under")
    asked = {"max_samples": 3, "min-gap": 0.01, "tokens": "cls", "sites": ["mlp.out"]}
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(asked))
    flags = ["--config", tmp_path / "asked.yaml", "--sites", "resid.out", "attn.out", "mlp.out", "--max-samples", 3]
    second = patch_run(*flags, name="file")
    assert yaml.safe_load((second / "config.yaml").read_text())["min_gap"] == 0.01
    same = "effects.safetensors"
    assert Effects.load(first / same).samples == Effects.load(second / same).samples
    assert torch.equal(Effects.load(first / same).values, Effects.load(second / same).values)


def test_a_plain_mlp_is_swept_without_tokens(weightsmith, tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    save(tiny_model("mlp", classes=10), tmp_path / "mlp")
    flags = [
        "--model",
        tmp_path / "mlp",
        "--runs-dir",
        tmp_path,
        "--select",
        "all",
        "--max-samples",
        3,
        "--run-name",
        "m",
    ]
    sites = ["--sites", "resid.out", "mlp.key", "--window", 1, "--map-samples", 2, "--min-gap", 0]
    outcome = weightsmith("locate", "patch", *flags, *BLUR, *sites)
    assert outcome.status == 0, outcome.err
    assert {site.tokens for site in Effects.load(tmp_path / "m" / "effects.safetensors").sites} == {None}


def test_pairs_from_a_second_data_set(weightsmith, finished: Path, tmp_path: Path) -> None:
    """Blurred by hand and given as the second file: the same as the corruption by name."""
    from weightsmith.data import digits
    from weightsmith.data.corruptions import corruption

    train = digits().part("train").subset(range(200))
    blurred = corruption("blur")(train.pixels(), torch.from_numpy(train.labels), 42)
    for name, pixels in (("clean", train.pixels()), ("blurred", blurred)):
        np.savez(tmp_path / f"{name}.npz", train_images=pixels[:, 0].numpy(), train_labels=train.labels[:, None])
    shared = [
        "--model",
        finished,
        "--runs-dir",
        tmp_path,
        "--part",
        "train",
        "--max-samples",
        4,
        "--device",
        "cpu",
        *LEAN,
    ]
    first = [
        "--data-path",
        tmp_path / "clean.npz",
        "--run-name",
        "by-file",
        "--corrupted-from",
        tmp_path / "blurred.npz",
    ]
    second = ["--data-path", tmp_path / "clean.npz", "--run-name", "by-name", "--corruption", "blur"]
    for given in (first, second):
        outcome = weightsmith("locate", "patch", *shared, *given)
        assert outcome.status == 0, outcome.err
    found = [Effects.load(tmp_path / name / "effects.safetensors") for name in ("by-file", "by-name")]
    assert found[0].samples == found[1].samples
    assert torch.equal(found[0].values, found[1].values)


def test_names_of_runs_count_up(patch_run, weightsmith, finished: Path, tmp_path: Path) -> None:
    flags = ["--model", finished, "--runs-dir", tmp_path, "--max-samples", 3, *BLUR, *LEAN]
    for name in ("digits-patch", "digits-patch-2"):
        assert weightsmith("locate", "patch", *flags).status == 0
        assert (tmp_path / name / "report.html").exists()


def test_folders_of_their_own(patch_run, tmp_path: Path) -> None:
    places = {flag: tmp_path / flag for flag in ("checkpoint-dir", "log-dir", "results-dir")}
    run = patch_run(*(word for flag, place in places.items() for word in (f"--{flag}", place)), name="spread")
    assert (places["results-dir"] / "spread" / "effects.safetensors").exists()
    assert (places["results-dir"] / "spread" / "figures" / "layer_curves.png").exists()
    assert (places["checkpoint-dir"] / "spread" / "sweep-layers").is_dir()
    assert (places["log-dir"] / "spread" / "log.txt").exists()
    assert {path.name for path in run.iterdir()} - {".lock"} == {"config.yaml", "env.json", "events.jsonl"}


# --- language models ------------------------------------------------------------------------------------------------

PLACES = (
    ("Mount Everest", "is located in the continent of", "Asia"),
    ("The Eiffel Tower", "stands in the city of", "Paris"),
    ("Ada", "was born in", "London"),
)
KNOWN = [
    {
        "known_id": i,
        "subject": subject,
        "attribute": attribute,
        "template": f"{{}} {rest}",
        "prompt": f"{subject} {rest}",
    }
    for i, (subject, rest, attribute) in enumerate(PLACES)
]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny GPT-2 with a tokenizer, a tiny Llama without one, and prompts for both."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("texts")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([fact["prompt"] for fact in KNOWN], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(fast), n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0,
                initializer_range=0.4,
            )
        )  # fmt: skip
        llama = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=29, max_position_embeddings=16, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
                num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, initializer_range=0.5,
            )
        )  # fmt: skip
    save(wrap(gpt2.eval(), None, {}, "gpt2", fast), folder / "gpt2")
    save(wrap(llama.eval(), None, {}, "llama"), folder / "llama")
    (folder / "facts.json").write_text(json.dumps(KNOWN))
    numbers = [
        {"name": "a", "ids": [1, 5, 9, 2, 7], "subject": [1, 3]},
        {"name": "a", "ids": [3, 8, 6, 6, 11, 4], "subject": [2, 5], "target": 3},
    ]
    (folder / "ids.json").write_text(json.dumps(numbers))
    return folder


@pytest.fixture
def of_text(weightsmith, texts: Path, tmp_path: Path) -> Callable[..., Path]:
    """`of_text("trace", "gpt2", "facts.json", *flags)`: the folder of a run on prompts."""

    def run(command: str, model: str, prompts: str, *flags: object) -> Path:
        given = ["--model", texts / model, "--data-path", texts / prompts, "--runs-dir", tmp_path, "--run-name", "r"]
        outcome = weightsmith(
            "locate", command, *given, "--num-ablations", 2, "--min-gap", 0, "--device", "cpu", *flags
        )
        assert outcome.status == 0, outcome.err
        return tmp_path / "r"

    return run


def test_facts_are_traced_in_a_language_model(of_text, texts: Path) -> None:
    run = of_text("trace", "gpt2", "facts.json", "--sites", "resid.out")
    effects = Effects.load(run / "effects.safetensors")
    assert effects.samples == ("0", "1", "2")
    assert {site.tokens for site in effects.sites} == set(grids.SUBJECT_GRID)
    assert len(effects.sites) == 6 * 3
    assert len(Effects.load(run / "effects_heads.safetensors").sites) == 3 * 2
    tokenize = ws.load(texts / "gpt2").tokenize
    for number, fact in enumerate(KNOWN):
        first, end = tokenize.subject(fact["prompt"], fact["subject"])
        rows = rows_of(run / f"prompt_{number}.csv")
        starred = sorted({int(row["tokens"]) for row in rows if row["subject"] == "True"})
        assert starred == list(range(first, end))
        # The map of a prompt and the sweep over all prompts measured the same under the same noise.
        drawn = Effects.load(run / f"effects_prompt_{number}.safetensors")
        for layer in range(3):
            named = effects.at([Site("resid.out", layer, tokens="subject_last")]).values[number]
            placed = drawn.at([Site("resid.out", layer, tokens=(end - 1,))]).values[0]
            assert float(named) == pytest.approx(float(placed), abs=1e-5)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert len(set(re.findall(r">Figure (\d+)\. ", page))) == len(list((run / "figures").iterdir())) == 3 + 3


def test_facts_are_screened_in_a_language_model(of_text) -> None:
    run = of_text("attribution", "gpt2", "facts.json", "--audit", 2, "--verify", 5)
    assert len(Effects.load(run / "effects.safetensors").sites) == 5
    assert len(Effects.load(run / "audit.safetensors").samples) == 2


def test_a_model_without_a_tokenizer_takes_ids(of_text) -> None:
    """Two records of one name stay two prompts."""
    run = of_text("trace", "llama", "ids.json", "--map-samples", 1, "--sites", "resid.out", "--no-heads")
    effects = Effects.load(run / "effects.safetensors")
    assert effects.samples == ("a", "a (record 1)")
    assert effects.info["target_classes"][1] == 3
    assert [row["label"] for row in rows_of(run / "prompt_0.csv")][:5]


@pytest.mark.parametrize(
    ("given", "tokens"), [("all", None), ("last", "last"), ("0,2", (0, 2)), ("subject_last", "subject_last")]
)
def test_tokens_of_prompts(of_text, given: str, tokens: object) -> None:
    run = of_text("trace", "gpt2", "facts.json", "--tokens", given, *LEAN, "--sites", "resid.out")
    effects = Effects.load(run / "effects.safetensors")
    assert {site.tokens for site in effects.sites} == {tokens}


# --- the layers that an edit takes ----------------------------------------------------------------------------------


def test_layers_from_a_run(weightsmith, run_copy: Path, located: dict[str, Path]) -> None:
    """The largest single-layer effects of any kind; windows, though larger, do not count."""
    effects = Effects.load(located["patch"] / "effects.safetensors")
    single = effects.at([site for site in effects.sites if site.span == 1])
    best: dict[int, float] = {}
    for site, value in zip(single.sites, single.mean().tolist(), strict=True):
        best[site.layer] = max(value, best.get(site.layer, -np.inf))
    wanted = sorted(sorted(best, key=lambda layer: -best[layer])[:2])
    flags = [
        "--runs-dir",
        run_copy.parent,
        "--run-name",
        "base",
        "--stage",
        "edit",
        "--overwrite",
        "--num-edit-layers",
        2,
    ]
    for place in (located["patch"], located["patch"] / "effects.safetensors"):
        outcome = weightsmith("run", *flags, "--layers-from", place, "--edit-method", "alphaedit")
        assert outcome.status == 0, outcome.err
        assert list(ws.Delta.load(run_copy / "delta.safetensors").info["layers"]) == wanted
        assert "those of largest effect in" in (run_copy / "notes.json").read_text()


def test_layers_that_cannot_be_taken(located: dict[str, Path], tmp_path: Path) -> None:
    run, path = located["patch"], tmp_path / "some.safetensors"
    effects = Effects.load(run / "effects.safetensors")
    windows = effects.at([site for site in effects.sites if site.span == 2])
    windows.save(path)
    for place, count, layers, words in (
        (tmp_path / "nowhere", 1, 4, ["--layers-from", "nowhere", "does not exist"]),
        (tmp_path, 1, 4, ["--layers-from", "effects.safetensors"]),
        (run / "layer_curves.csv", 1, 4, ["--layers-from", "layer_curves.csv"]),
        (run / "effects_heads.safetensors", 1, 4, ["--layers-from", "single layers"]),
        (path, 1, 4, ["--layers-from", "single layers"]),
        (run, 1, 3, ["--layers-from", "layer 3", "has 3"]),
        (run, 5, 6, ["--num-edit-layers 5", "4 layers"]),
        (run, 0, 4, ["--num-edit-layers 0"]),
    ):
        with pytest.raises(WeightsmithError) as refused:
            layers_of(str(place), count, layers)
        assert all(word in str(refused.value) for word in words), refused.value


# --- stopping, resuming, overwriting --------------------------------------------------------------------------------

MANY = ["--max-samples", "250", "--batch-memory", "1", "--sites", "mlp.out"]
"""Several pieces: one megabyte holds the runs of 51 images."""


def many(finished: Path, runs: Path, name: str) -> list[str]:
    return ["--model", str(finished), "--runs-dir", str(runs), "--run-name", name, *MANY, *BLUR, *LEAN]


@pytest.fixture(scope="session")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    with undrawn():
        cli.main(["locate", "patch", *many(finished, runs, "whole")])
    assert len(list((runs / "whole" / "checkpoints" / "sweep-layers").iterdir())) == 5
    return runs / "whole"


def stays_behind_the_second_piece() -> None:
    real, written = files.move_into_place, []

    def move(source: Path, target: Path) -> None:
        real(source, target)
        written.append(target.name)
        while sum(name.startswith("cases-") for name in written) == 2:
            time.sleep(1)

    files.move_into_place = move  # in its process alone


def test_a_killed_sweep_goes_on_where_it_was(weightsmith, finished: Path, undisturbed: Path, tmp_path: Path) -> None:
    flags = many(finished, tmp_path, "killed")
    pieces = tmp_path / "killed" / "checkpoints" / "sweep-layers"
    with forked(tmp_path / "said", "locate", "patch", *flags, slowed=stays_behind_the_second_piece) as command:
        command.until(lambda: len(list(pieces.glob("cases-*"))) == 2)
        command.kill()
    done = {path: path.stat().st_mtime_ns for path in pieces.glob("cases-*")}
    assert len(done) == 2
    assert not (tmp_path / "killed" / "effects.safetensors").exists()
    # Nothing but the name is needed to go on.
    outcome = weightsmith("locate", "patch", "--runs-dir", tmp_path, "--run-name", "killed", "--resume")
    assert outcome.status == 0, outcome.err
    assert f"{len(done)} finished pieces" in (tmp_path / "killed" / "log.txt").read_text()
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(pieces.glob("cases-*"))) == 5
    for name in ("effects.safetensors", "layer_importance.csv", "layers_statistics.csv", "layer_curves.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_ctrl_c_keeps_what_is_finished(
    weightsmith, finished: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = files.move_into_place, []

    def stopping(source: Path, target: Path) -> None:
        real(source, target)
        written.append(target.name)
        if sum(name.startswith("cases-") for name in written) == 3:
            raise KeyboardInterrupt

    flags = many(finished, tmp_path, "stopped")
    with monkeypatch.context() as patched:
        patched.setattr(files, "move_into_place", stopping)
        stopped = weightsmith("locate", "patch", *flags)
    assert stopped.status == 130
    assert "--resume" in stopped.err
    assert "--run-name" in stopped.err
    assert "Traceback" not in stopped.err
    assert events(tmp_path / "stopped") == [("patch", "start"), ("patch", "interrupted")]
    assert not list((tmp_path / "stopped").rglob("*.tmp"))
    again = weightsmith("locate", "patch", *flags)
    assert again.status == 1
    assert all(word in again.err for word in ("--resume", "--overwrite", "--run-name"))
    assert weightsmith("locate", "patch", *flags, "--resume").status == 0
    same = "effects.safetensors"
    assert (tmp_path / "stopped" / same).read_bytes() == (undisturbed / same).read_bytes()


@pytest.fixture
def patched_copy(located: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the patching run that a test may change."""
    return Path(shutil.copytree(located["patch"], tmp_path / "again"))


def of_copy(run: Path) -> list[object]:
    return ["--runs-dir", run.parent, "--run-name", run.name]


def test_a_finished_run_is_gone_on_with_to_itself(weightsmith, patch_run) -> None:
    run = patch_run()
    before = contents(run)
    assert weightsmith("locate", "patch", *of_copy(run), "--resume").status == 0
    after = contents(run)
    assert after.keys() == before.keys()
    told = ("config.yaml", "report.html")  # that it was resumed
    assert {name for name in after if after[name] != before[name]} <= set(told)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--metric", "kl"], "--metric logit_difference"),
        (["--sites", "resid.out"], "--sites resid.out attn.out mlp.out"),
        (["--seed", "3"], "--seed 42"),
        (["--no-heads"], "--heads"),
        (["--max-samples", "5"], "--max-samples 6"),
        (["--strength", "0.3"], "no --strength"),
        (["--window", "1"], "--window 2"),
        (["--part", "train", "--target", "label"], "--part val, --target predicted"),
    ],
)
def test_other_options_are_not_mixed_in(weightsmith, patched_copy: Path, flags: list[str], said: str) -> None:
    before = contents(patched_copy)
    refused = weightsmith("locate", "patch", *of_copy(patched_copy), "--resume", *flags)
    assert refused.status == 1
    assert said in refused.err
    assert "--overwrite" in refused.err
    assert contents(patched_copy) == before


def test_another_way_to_locate_is_not_mixed_in(weightsmith, finished: Path, patched_copy: Path) -> None:
    before = contents(patched_copy)
    given = ["--model", finished, "--max-samples", 6, *of_copy(patched_copy)]
    for command in ("trace", "attribution", "astra"):
        refused = weightsmith("locate", command, *given, "--resume")
        assert refused.status == 1
        assert "another way to locate" in refused.err
        assert "--overwrite" in refused.err
    assert contents(patched_copy) == before
    assert weightsmith("locate", "astra", *given, "--masks", 4, "--overwrite").status == 0
    assert not (patched_copy / "effects.safetensors").exists()
    assert not list((patched_copy / "checkpoints").iterdir())
    assert (patched_copy / "steering.csv").exists()


def test_pieces_of_a_model_that_changed_meanwhile(
    weightsmith, finished: Path, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    model = Path(shutil.copytree(finished / "model", tmp_path / "model"))
    flags = ["--model", model, "--runs-dir", tmp_path, "--run-name", "r", "--select", "all", *BLUR, *LEAN]
    flags += ["--max-samples", 3, "--min-gap", 0]
    assert weightsmith("locate", "patch", *flags).status == 0
    changed = ws.load(model)
    with torch.no_grad():
        changed.module.get_submodule(changed.family.classifier).weight.mul_(1.5)
    save(changed, model)
    refused = weightsmith("locate", "patch", *flags, "--resume")
    assert refused.status == 1
    assert "sweep-layers" in refused.err
    assert "--overwrite" in refused.err
    assert weightsmith("locate", "patch", *flags, "--overwrite").status == 0
    piece = next((tmp_path / "r" / "checkpoints" / "sweep-layers").iterdir())
    whole, measured = piece.read_bytes(), contents(tmp_path / "r")
    piece.write_bytes(whole[:100])
    again = weightsmith("locate", "patch", *flags, "--resume")
    assert again.status == 0, again.err
    assert f"{piece.name} is damaged" in again.err
    assert piece.read_bytes() == whole
    assert contents(tmp_path / "r")["effects.safetensors"] == measured["effects.safetensors"]


def test_a_run_of_the_correction_is_left_alone(weightsmith, finished: Path, run_copy: Path) -> None:
    before = contents(run_copy)
    for flag in ("--resume", "--overwrite"):
        refused = weightsmith("locate", "trace", "--model", finished, *of_copy(run_copy), flag)
        assert refused.status == 1
        assert "--run-name" in refused.err
        assert contents(run_copy) == before


def test_resume_needs_a_name(weightsmith, located: dict[str, Path]) -> None:
    refused = weightsmith("locate", "patch", "--runs-dir", located["patch"].parent, "--resume")
    assert refused.status == 1
    assert "--run-name" in refused.err
    assert "patch" in refused.err


def test_overwrite_redoes(weightsmith, patched_copy: Path, finished: Path) -> None:
    (patched_copy / "mine.txt").write_text("a note of the user")
    flags = ["--model", finished, *BLUR, *LEAN, "--max-samples", 3, "--metric", "kl", *of_copy(patched_copy)]
    assert weightsmith("locate", "patch", *flags, "--overwrite").status == 0
    effects = Effects.load(patched_copy / "effects.safetensors")
    assert effects.metric == "kl"
    # What only the old run had is gone, and the user's own is not.
    assert not (patched_copy / "effects_severed.safetensors").exists()
    assert sorted(path.name for path in (patched_copy / "figures").iterdir()) == ["layer_curves.png"]
    assert sorted(path.name for path in (patched_copy / "checkpoints").iterdir()) == ["sweep-layers"]
    assert (patched_copy / "mine.txt").exists()
    assert not (patched_copy / ".replaced").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), WeightsmithError("no page today"), OSError(28, "full")])
def test_overwrite_that_fails_keeps_the_old_run(
    weightsmith, patched_copy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """Config included, and without a file of the new one among them."""
    before = contents(patched_copy)
    flags = ["--model", finished, *BLUR, "--max-samples", 3, "--map-samples", 0, "--window", 1, *of_copy(patched_copy)]

    def failing(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr("weightsmith.report.build_locate", failing)
        outcome = weightsmith("locate", "patch", *flags, "--overwrite", "--sever", "attn.out", "--seed", 7)
    assert outcome.status == (130 if isinstance(failure, KeyboardInterrupt) else 1)
    assert contents(patched_copy) == before
    assert events(patched_copy)[-1] == ("patch", "interrupted" if isinstance(failure, KeyboardInterrupt) else "failed")


def test_what_a_killed_overwrite_left_aside_comes_back(weightsmith, patched_copy: Path) -> None:
    before = contents(patched_copy)
    folder = RunFolder.named(PatchOptions(runs_dir=str(patched_copy.parent)), patched_copy.name)
    aside = folder.set_aside(
        [path for path in patched_copy.iterdir() if path.suffix in (".yaml", ".safetensors", ".csv")]
    )
    aside.__enter__()  # and no more: the process was killed
    assert not (patched_copy / "effects.safetensors").exists()
    assert weightsmith("locate", "patch", *of_copy(patched_copy)).status == 1
    assert contents(patched_copy) == before


def test_a_full_disk(weightsmith, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, nothing half-written; with space again the run goes on with what is finished."""
    import errno

    real, flags = os.replace, many(finished, tmp_path, "full")

    def full(source: object, target: object) -> None:
        if Path(str(target)).name == "cases-000102-000153.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(str(source), str(target))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        outcome = weightsmith("locate", "patch", *flags)
    assert outcome.status == 1
    assert "full" in outcome.err
    assert "--overwrite" not in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(list((tmp_path / "full" / "checkpoints" / "sweep-layers").iterdir())) == 2
    assert weightsmith("locate", "patch", *flags, "--resume").status == 0


def test_two_processes_do_not_share_a_run(weightsmith, finished: Path, patched_copy: Path) -> None:
    with RunFolder.named(PatchOptions(runs_dir=str(patched_copy.parent)), patched_copy.name).in_use():
        outcome = weightsmith("locate", "patch", *of_copy(patched_copy), "--resume")
    assert outcome.status == 1
    assert "another process" in outcome.err


# --- what is held out -----------------------------------------------------------------------------------------------


def recorded(run: Path, part: str) -> list[str]:
    with np.load(run / "data_split_indices.npz") as stored:
        return [f"train/{place}" for place in sorted(stored[part])]


def looked_at(model: Path, part: str, **more: Any) -> list[str]:
    asked = PatchOptions(model=str(model), data_path="digits", part=part, select="all", max_samples=10_000, **more)
    return list(inputs.chosen_images(asked, ws.load(model)).names)


@pytest.mark.parametrize("inside", ["", "model", "edited"])
def test_only_the_recorded_parts_are_looked_at(finished: Path, inside: str) -> None:
    """Whichever way the run's model is named."""
    for part in ("train", "val"):
        assert looked_at(finished / inside, part) == recorded(finished, part)
    with pytest.raises(HeldOutError, match=r"--part held_out.*--part train or val"):
        looked_at(finished / inside, "held_out")


def test_a_record_in_another_folder_counts(run_copy: Path, tmp_path: Path) -> None:
    """As `--results-dir` leaves it; and where it is gone nobody guesses."""
    elsewhere = tmp_path / "results" / "base"
    elsewhere.mkdir(parents=True)
    wanted = recorded(run_copy, "val")
    for name in ("data_split.json", "data_split_indices.npz"):
        (run_copy / name).rename(elsewhere / name)
    config = yaml.safe_load((run_copy / "config.yaml").read_text()) | {"results_dir": str(elsewhere.parent)}
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert looked_at(run_copy, "val") == wanted
    with pytest.raises(HeldOutError):
        looked_at(run_copy, "held_out")
    (elsewhere / "data_split_indices.npz").write_bytes(b"nonsense")
    with pytest.raises(WeightsmithError, match="damaged"):
        looked_at(run_copy, "val")
    shutil.rmtree(elsewhere)
    with pytest.raises(WeightsmithError, match=r"copy data_split\.json"):
        looked_at(run_copy, "val")


def test_a_test_part_that_is_held_out_is_refused(weightsmith, tiny, tmp_path: Path) -> None:
    from weightsmith.data import digits

    train = digits().part("train")
    cut = {"train": slice(0, 300), "val": slice(300, 400), "test": slice(400, 500)}
    pixels, labels = train.pixels()[:, 0].numpy(), train.labels[:, None]
    stored = {f"{part}_images": pixels[where] for part, where in cut.items()}
    np.savez(tmp_path / "d.npz", **stored, **{f"{part}_labels": labels[where] for part, where in cut.items()})
    flags = [*tiny(tmp_path), "--data-path", tmp_path / "d.npz", "--held-out-from", "test", "--epochs", 1]
    for stage in ("data", "train"):
        assert weightsmith("run", "--stage", stage, *flags, "--run-name", "m").status == 0
    given = ["--model", tmp_path / "runs" / "m", "--data-path", tmp_path / "d.npz", "--runs-dir", tmp_path / "runs"]
    refused = weightsmith("locate", "trace", *given, "--part", "test")
    assert refused.status == 1
    assert "holds out" in refused.err
    assert "--part train or val" in refused.err
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"m"}


def test_a_model_trained_on_the_spot(weightsmith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its split is recorded beside it; another seed is another model, never the old one on new images."""
    presets = inputs.presets()
    presets["digits"]["training"]["epochs"] = 1
    monkeypatch.setattr(inputs, "presets", lambda: presets)
    flags = ["--runs-dir", tmp_path, "--run-name", "auto", "--max-samples", 3, *BLUR, *LEAN, "--select", "all"]
    flags += ["--min-gap", 0]
    assert weightsmith("locate", "patch", *flags, "--sites", "resid.mid").status == 1
    assert (tmp_path / "auto" / "model" / "config.json").exists()  # kept, for it took its time
    assert not (tmp_path / "auto" / "config.yaml").exists()  # what was refused is nobody's default
    assert weightsmith("locate", "patch", *flags).status == 0
    assert "training skipped" in (tmp_path / "auto" / "log.txt").read_text()
    first = weights_hash(ws.load(tmp_path / "auto"))
    part = looked_at(tmp_path / "auto", "val")
    assert part == recorded(tmp_path / "auto", "val")
    with pytest.raises(HeldOutError):
        looked_at(tmp_path / "auto", "held_out")
    refused = weightsmith("locate", "patch", *flags, "--resume", "--seed", 7)
    assert refused.status == 1
    assert "--seed 42" in refused.err
    assert weightsmith("locate", "patch", *flags, "--overwrite", "--seed", 7).status == 0
    assert weights_hash(ws.load(tmp_path / "auto")) != first
    assert looked_at(tmp_path / "auto", "val") != part


# --- in Python, and the help ----------------------------------------------------------------------------------------


def test_in_python(finished: Path, located: dict[str, Path]) -> None:
    """What the command measured, measured by hand."""
    effects = Effects.load(located["trace"] / "effects.safetensors")
    model = ws.load(finished)
    asked = TraceOptions(model=str(finished), max_samples=6)
    chosen = inputs.chosen_images(asked, model)
    cases = ImageCases(
        model, chosen.names, chosen.pixels, ws.views.embedding_noise(3.0, 2, seed=42), chosen.predicted, chosen.labels
    )
    found = ws.locate.sweep(model, cases, ws.locate.grids.layers(model, "resid.out", "cls"))
    assert found.samples == effects.samples
    assert torch.allclose(found.effects().values, effects.at(found.sites).values, atol=1e-5)
    assert sweep is ws.locate.sweep


def test_help_needs_no_torch() -> None:
    script = f"""
import sys
from weightsmith.cli import main
for words in (["locate"], *(["locate", name] for name in {COMMANDS!r})):
    try:
        main([*words, "--help"])
    except SystemExit as stop:
        assert stop.code in (0, None)
heavy = {{"torch", "numpy", "transformers", "matplotlib", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    for name in COMMANDS:
        assert name in answer.stdout
    for flag in ("--max-samples", "--sites", "--corruption", "--verify", "--masks"):
        assert flag in answer.stdout


def test_each_way_has_a_page() -> None:
    ways = importlib.import_module("weightsmith.report.locate_page").COMMANDS
    assert tuple(ways) == COMMANDS == tuple(ways_of("locate"))
