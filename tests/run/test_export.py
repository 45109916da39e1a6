"""`weightsmith export`: each form read back by other people's code, the card by the hub's, and bad input by its sentence."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants

from tests.run.conftest import Command, assert_refused, undrawn
from weightsmith import cli
from weightsmith.delta import Delta, LowRank
from weightsmith.models import load
from weightsmith.run.export import forms

NEEDED = "needs onnx, onnxscript and onnxruntime: pip install 'weightsmith[onnx]'"


@pytest.fixture(scope="session")
def told(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `weightsmith edit` with two methods."""
    runs = tmp_path_factory.mktemp("told")
    flags = {"--model": talker / "model", "--data-path": talker / "facts.json", "--preserve": talker / "text.txt"}
    places = {
        "--runs-dir": runs,
        "--run-name": "told",
        "--cache-dir": runs / "cache",
        "--device": "cpu",
        "--max-edits": 3,
    }
    words = [str(word) for pair in (flags | places).items() for word in pair]
    with undrawn():
        cli.main(["edit", *words, "--edit-method", "memit", "finetune", "--hparams", str(talker / "memit.yaml")])
    return runs / "told"


def parsed(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False).data


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


# --- merged -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["alphaedit", "head"])
def test_merged_is_the_model_under_the_edit_bit_for_bit(
    finished: Path, tmp_path: Path, weightsmith: Command, method: str
) -> None:
    from transformers import AutoModelForImageClassification

    out = tmp_path / "out"
    done = weightsmith("export", "merged", finished, "--out", out, "--method", method, "--license", "apache-2.0")
    assert done.status == 0, done.err
    assert f"the edit of {method}" in done.out
    assert "equal bit for bit" in done.out
    model = load(finished)
    deltas = {d.info["method"]: d for d in map(Delta.load, finished.glob("delta*.safetensors"))}
    plain = AutoModelForImageClassification.from_pretrained(out).eval()
    with torch.no_grad(), deltas[method].on(model):
        assert torch.equal(plain(images()).logits, model.logits(images()))
        weights = model.module.state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())
    data = parsed(out)
    assert (data.license, data.pipeline_tag, data.library_name) == (
        "apache-2.0",
        "image-classification",
        "transformers",
    )
    text = (out / "README.md").read_text()
    for wanted in (
        f"| {method} |",
        "accuracy before",
        "| edited | before | wanted | after |",
        "data.train",
        "packages.torch",
    ):
        assert wanted in text, wanted
    record = json.loads((out / "export.json").read_text())
    assert (record["form"], record["weights_before"]) == ("merged", deltas[method].base)


def test_a_run_without_an_edit_goes_as_it_was_trained(run_copy: Path, tmp_path: Path, weightsmith: Command) -> None:
    for path in run_copy.glob("delta*"):
        path.unlink()
    done = weightsmith("export", "merged", run_copy, "--out", tmp_path / "out")
    assert "without an edit" in done.out
    assert load(tmp_path / "out").fingerprint() == load(run_copy).fingerprint()
    assert_refused(weightsmith("export", "peft", run_copy, "--out", tmp_path / "no"), ["has no edit", "--delta"])
    assert_refused(
        weightsmith("export", "merged", run_copy, "--out", tmp_path / "no", "--method", "head"),
        ["--method head", "none yet"],
    )
    assert not (tmp_path / "no").exists()


def test_deltas_may_be_given_for_a_model_alone(finished: Path, tmp_path: Path, weightsmith: Command) -> None:
    model = load(finished / "model")
    names = ["vit.layers.0.mlp.fc2.weight", "vit.layers.1.mlp.fc1.weight"]
    shapes = [model.module.get_parameter(name).shape for name in names]
    deltas = [
        Delta({name: LowRank(torch.ones(rows, 1), 0.1 * torch.ones(1, columns))})
        for name, (rows, columns) in zip(names, shapes, strict=True)
    ]
    for number, delta in enumerate(deltas):
        delta.save(tmp_path / f"{number}.safetensors")
    files = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    done = weightsmith("export", "merged", finished / "model", "--out", tmp_path / "out", "--delta", *files)
    assert done.status == 0, done.err
    with (deltas[0] + deltas[1]).on(model), torch.no_grad():
        assert torch.equal(load(tmp_path / "out").logits(images()), model.logits(images()))
    assert parsed(tmp_path / "out").pipeline_tag == "image-classification"
    assert "| sum of deltas |" in (tmp_path / "out" / "README.md").read_text()
    assert weightsmith("export", "merged", finished / "model", "--out", tmp_path / "same").status == 0
    assert (tmp_path / "same" / "README.md").read_text() == (finished / "model" / "README.md").read_text()
    stranger = Delta(deltas[0].changes, base="0" * 64)
    stranger.save(tmp_path / "2.safetensors")
    refused = weightsmith("export", "merged", finished, "--out", tmp_path / "no", "--delta", tmp_path / "2.safetensors")
    assert_refused(refused, ["--delta", "2.safetensors", "made for other weights"])


def test_a_folder_that_does_not_read_back_is_not_left(
    finished: Path, tmp_path: Path, weightsmith: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "_same_bits", lambda one, other: False)
    refused = weightsmith("export", "merged", finished, "--out", tmp_path / "out")
    assert_refused(refused, ["does not read back"])
    assert not list(tmp_path.iterdir())


# --- peft -------------------------------------------------------------------------------------------------------------


def test_an_adapter_is_the_edit_in_plain_peft(finished: Path, tmp_path: Path, weightsmith: Command) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageClassification

    out = tmp_path / "adapter"
    done = weightsmith("export", "peft", finished, "--out", out, "--method", "alphaedit")
    assert done.status == 0, done.err
    model = load(finished)
    delta = Delta.load(finished / "delta.safetensors")
    plain = AutoModelForImageClassification.from_pretrained(finished / "model").eval()
    worn = PeftModel.from_pretrained(plain, out).eval()
    with torch.no_grad(), delta.on(model):
        torch.testing.assert_close(worn(images()).logits, model.logits(images()), rtol=1e-4, atol=1e-4)
    record = json.loads((out / "export.json").read_text())
    assert record["error_in_peft"] < 1e-5
    assert f"rank {record['rank']}" in done.out
    data = parsed(out)
    assert (data.library_name, data.pipeline_tag) == ("peft", "image-classification")
    assert "PeftModel.from_pretrained" in (out / "README.md").read_text()


def test_a_smaller_rank_tells_what_it_loses(finished: Path, tmp_path: Path, weightsmith: Command) -> None:
    done = weightsmith("export", "peft", finished, "--out", tmp_path / "a", "--method", "alphaedit", "--rank", 1)
    assert done.status == 0, done.err
    record = json.loads((tmp_path / "a" / "export.json").read_text())
    assert record["rank"] == 1
    assert 0 < record["lost_by_rank"] < 1
    assert f"{record['lost_by_rank']:.2%} is lost" in done.out
    assert_refused(weightsmith("export", "peft", finished, "--out", tmp_path / "b", "--rank", 0), ["rank", "1 or more"])


def test_facts_leave_in_every_form(told: Path, talker: Path, tmp_path: Path, weightsmith: Command) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    assert weightsmith("export", "merged", told, "--out", merged).status == 0
    assert weightsmith("export", "peft", told, "--out", adapter, "--base-model", "some/one").status == 0
    model, delta = load(talker / "model"), Delta.load(told / "delta.safetensors")
    ids = torch.tensor([AutoTokenizer.from_pretrained(merged)("Anna plays the")["input_ids"]])
    with torch.no_grad(), delta.on(model):
        assert torch.equal(AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits, model.token_logits(ids))
    for folder, library in ((merged, "transformers"), (adapter, "peft")):
        data = parsed(folder)
        assert (data.pipeline_tag, data.library_name) == ("text-generation", library)
        text = (folder / "README.md").read_text()
        for wanted in (
            "Anna plays the",
            "| efficacy |",
            "norm of the change",
            "data.facts",
            "preserve",
            "seed",
            "memit",
        ):
            assert wanted in text, wanted
    assert parsed(adapter).base_model == "some/one"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/one"
    edited = (told / "edited" / "README.md").read_text()
    assert edited == (merged / "README.md").read_text()


# --- onnx -------------------------------------------------------------------------------------------------------------


def test_onnx_is_the_edited_model_with_its_preprocessing(finished: Path, tmp_path: Path, weightsmith: Command) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=NEEDED)
    runtime = pytest.importorskip("onnxruntime", reason=NEEDED)
    path = tmp_path / "m.onnx"
    done = weightsmith("export", "onnx", finished, "--out", path, "--method", "alphaedit")
    assert done.status == 0, done.err
    assert "differ by up to" in done.out
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixel_values": images().numpy()})
    model = load(finished)
    with torch.no_grad(), Delta.load(finished / "delta.safetensors").on(model):
        torch.testing.assert_close(torch.from_numpy(found), model.logits(images()), rtol=1e-4, atol=1e-4)
    said = json.loads(session.get_modelmeta().custom_metadata_map["weightsmith"])
    assert said["class_names"] == list(model.class_names)
    assert said["preprocessing"]["image_mean"] == list(model.preprocess.mean)
    assert_refused(weightsmith("export", "onnx", finished, "--out", path), ["exists", "--overwrite"])


def test_logits_that_differ_are_refused(
    finished: Path, tmp_path: Path, weightsmith: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason=NEEDED)
    monkeypatch.setattr(forms, "save_onnx", lambda model, path, metadata: path.write_bytes(b"no network"))
    refused = weightsmith("export", "onnx", finished, "--out", tmp_path / "m.onnx")
    assert_refused(refused, ["onnxruntime cannot run"])
    assert not list(tmp_path.iterdir())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["merged", "{run}", "--out", "{run}"], ["exists"]),
        (["merged", "{run}", "--out", "{run}", "--overwrite"], ["holds something else than an export"]),
        (["peft", "{run}", "--out", "{run}/config.yaml"], ["is a file"]),
    ],
)
def test_a_run_is_no_place_for_an_export(
    finished: Path, tmp_path: Path, weightsmith: Command, words: list[str], told: list[str]
) -> None:
    before = sorted(path.name for path in finished.iterdir())
    places = {"run": finished}
    assert_refused(weightsmith("export", *(word.format(**places) for word in words)), told)
    assert not list(tmp_path.iterdir())
    assert sorted(path.name for path in finished.iterdir()) == before


def test_an_export_is_replaced_when_asked_and_only_then(finished: Path, tmp_path: Path, weightsmith: Command) -> None:
    out = tmp_path / "out"
    assert weightsmith("export", "merged", finished, "--out", out).status == 0
    assert_refused(weightsmith("export", "merged", finished, "--out", out), ["exists", "--overwrite"])
    (out / "left-over.txt").write_text("x")
    assert weightsmith("export", "merged", finished, "--out", out, "--method", "head", "--overwrite").status == 0
    assert not (out / "left-over.txt").exists()


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push asks for; what it was sent is in `server.sent`."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        server.sent.append((self.path, body, self.headers.get("Authorization")))
        if server.refuses:
            return self._answer(403, {"error": "You don't have the rights"})
        if self.path.endswith("/preupload/main"):
            files = [entry["path"] for entry in json.loads(body)["files"]]
            return self._answer(200, {"files": [self._mode(path) for path in files]})
        if "/commit/" in self.path:
            url = f"{constants.ENDPOINT}/some/one/commit/1"
            return self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""})
        if self.path == "/api/repos/create":
            return self._answer(200, {"url": f"{constants.ENDPOINT}/some/one", "id": "1"})
        return self._answer(200, {"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self._answer(200, {"sha": "1" * 40, "siblings": [], "id": "some/one", "private": False})

    def _mode(self, path: str) -> dict[str, Any]:
        return {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None}

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A hub on this machine."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.sent, server.refuses = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_makes_the_repository_and_sends_the_folder(
    finished: Path, tmp_path: Path, weightsmith: Command, hub: Any
) -> None:
    out = tmp_path / "out"
    done = weightsmith("export", "merged", finished, "--out", out, "--push", "some/one", "--private")
    assert done.status == 0, done.err
    assert f"pushed: {constants.ENDPOINT}/some/one/commit/1" in done.out
    made = next(json.loads(body) for path, body, _ in hub.sent if path == "/api/repos/create")
    assert (made["name"], made["organization"]) == ("one", "some")
    assert made.get("private") or made.get("visibility") == "private"  # older and newer releases of the hub's client
    commit = next(body for path, body, _ in hub.sent if "/commit/" in path)
    lines = [json.loads(line) for line in commit.decode().splitlines()]
    files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
    assert set(files) == {path.name for path in out.iterdir()}
    assert base64.b64decode(files["model.safetensors"]) == (out / "model.safetensors").read_bytes()
    assert all(token == "Bearer hf_secret" for _, _, token in hub.sent)


def test_a_push_that_the_hub_refuses_leaves_the_folder(
    finished: Path, tmp_path: Path, weightsmith: Command, hub: Any
) -> None:
    hub.refuses = True
    out = tmp_path / "out"
    refused = weightsmith("export", "merged", finished, "--out", out, "--push", "some/one")
    assert_refused(refused, ["--push some/one failed", "403", f"hf upload some/one {out}"])
    assert load(out).n_classes == 10


def test_without_a_token_nothing_is_begun(
    finished: Path, tmp_path: Path, weightsmith: Command, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    refused = weightsmith("export", "merged", finished, "--out", tmp_path / "out", "--push", "some/one")
    assert_refused(refused, ["--push some/one needs a token", "hf auth login"])
    assert not (tmp_path / "out").exists()
    assert not hub.sent


def test_a_run_of_several_models_names_them(run_copy: Path, tmp_path: Path, weightsmith: Command) -> None:
    several = tmp_path / "several"
    shutil.copytree(run_copy / "model", several / "optimized_models" / "acdc_threshold_0.05")
    (several / "config.yaml").write_text("mode: full\n")
    refused = weightsmith("export", "merged", several, "--out", tmp_path / "out")
    assert_refused(refused, ["holds several models", "optimized_models/acdc_threshold_0.05"])
