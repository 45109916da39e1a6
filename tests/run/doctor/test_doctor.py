"""`weightsmith doctor`: each check finds what it is for, and what is broken decides the exit status."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from importlib import metadata
from pathlib import Path

import pytest

from weightsmith.run.doctor import command, hardware, places, software
from weightsmith.run.doctor.check import Check
from weightsmith.run.doctor.child import Answer, asked
from weightsmith.run.options.doctor import DoctorOptions

CPU = {
    "version": "2.9.0",
    "cuda": None,
    "hip": None,
    "threads": 2,
    "gpu": False,
    "works": "",
    "mps": False,
    "names": [],
}


def test_a_torchvision_of_another_torch_is_found_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It breaks the child that imports it, not this process, and the remedy is told."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    info = tmp_path / "torchvision-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert software.installed("torchvision") == "0.1"
    found = software.torchvision(asked(software.TORCHVISION.replace("torch, ", "")))
    assert found.state == "broken"
    assert "operator torchvision::nms does not exist" in found.found
    assert "pip uninstall torchvision" in found.remedy


def test_without_torchvision_nothing_is_missing() -> None:
    assert software.torchvision(None).state == "fine"
    assert software.torchvision(Answer({"torchvision": "0.24"})).state == "fine"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import sys; sys.exit('no')", "no"),
        ("import os; os.abort()", "signal 6"),
        ("print('words')", "words"),
        ("import time; time.sleep(30)", "no answer in 1 s"),
    ],
)
def test_a_child_that_fails(code: str, error: str) -> None:
    assert error in asked(code, 1.0 if "sleep" in code else 60.0).error


def test_a_child_does_not_see_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    monkeypatch.chdir(tmp_path)
    assert asked("import json; print(json.dumps({'a': 1}))") == Answer({"a": 1})


@pytest.mark.parametrize(
    ("seen", "gpus", "state", "words"),
    [
        ({}, [], "fine", "built for CPU"),
        ({}, ["NVIDIA H200"], "slow", "there is NVIDIA H200"),
        ({"cuda": "12.8"}, ["NVIDIA H200"], "slow", "does not see NVIDIA H200"),
        ({"cuda": "12.8", "gpu": True, "names": ["NVIDIA H200"]}, ["NVIDIA H200"], "fine", "computes on NVIDIA H200"),
        (
            {"cuda": "12.8", "gpu": True, "names": ["Old"], "works": "no kernel image"},
            ["Old"],
            "broken",
            "no kernel image",
        ),
        ({"mps": True}, [], "fine", "mps"),
    ],
)
def test_the_build_of_torch_against_the_gpu(seen: dict, gpus: list[str], state: str, words: str) -> None:
    found = hardware.torch_build(Answer(CPU | seen), gpus)
    assert found.state == state
    assert words in found.found
    assert bool(found.remedy) == (state != "fine")


def test_torch_that_cannot_be_imported() -> None:
    answer = Answer(error="ImportError: libcudart.so.12")
    assert hardware.torch_build(answer, []).state == "broken"
    assert hardware.threads(answer, 4).state == "broken"


@pytest.mark.parametrize(
    ("threads", "cores", "asked_for", "state"),
    [(2, 2, None, "fine"), (8, 2, None, "slow"), (1, 4, "1", "slow"), (4, 4, "4", "fine"), (4, 8, None, "fine")],
)
def test_threads_against_cores(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, asked_for: str | None, state: str
) -> None:
    if asked_for is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", asked_for)
    found = hardware.threads(Answer(CPU | {"threads": threads}), cores)
    assert found.state == state
    assert (f"OMP_NUM_THREADS={cores}" in found.remedy) == (state == "slow")


def test_a_package_that_is_too_old_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.6.0+cpu", "transformers": "5.2.1", "weightsmith": "0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    lines = ["torch>=2.6", "transformers>=5.9", "peft>=0.17", "pyarrow>=15; extra == 'parquet'"]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    found = {one.name: one for one in software.needed()}
    assert found.keys() == {"transformers", "peft"}
    assert found["transformers"].remedy == 'pip install --upgrade "transformers>=5.9"'
    assert found["peft"].found == "not installed"
    versions |= {"transformers": "5.10.0", "peft": "0.17"}  # 5.10 is newer than 5.9
    assert [one.state for one in software.needed()] == ["fine"]


def test_optional_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "find_spec", lambda name: None if name in ("gradio", "onnxruntime") else object())
    monkeypatch.setattr(software, "installed", lambda _: "1.0")
    found = {one.name: one for one in software.optional()}
    assert found["extra parquet"].state == found["extra timm"].state == "fine"
    assert found["extra app"].state == found["extra onnx"].state == "absent"
    assert found["extra app"].remedy == 'pip install "weightsmith[app]"'
    assert "onnxruntime" in found["extra onnx"].found


def test_the_cache(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_bytes(b"x" * 20_000_000)
    found = places.cache(tmp_path / "here")
    assert found.state == "fine"
    assert "0.02 GB" in found.found
    assert list((tmp_path / "here").iterdir()) == [tmp_path / "here" / "a"]
    assert places.cache(tmp_path / "not" / "yet").state == "fine"
    assert not (tmp_path / "not").exists()
    blocked = places.cache(tmp_path / "here" / "a" / "cache")
    assert blocked.state == "broken"
    assert "--cache-dir" in blocked.remedy
    assert places.runs(tmp_path / "here" / "a").state == "broken"


@pytest.mark.parametrize(("free", "state"), [(10**8, "broken"), (10**9, "slow"), (10**11, "fine")])
def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    assert places.disk(tmp_path / "later", "runs").state == state


class _Says(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with an error: it is in reach."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), _Says) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert places.hub(20.0).state == "fine"


def test_a_hub_that_does_not_answer_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        found = places.hub(0.3)
    assert time.monotonic() - started < 20
    assert found.state == "absent"  # which is nothing broken
    assert "HF_HUB_OFFLINE=1" in found.remedy


def test_a_hub_that_is_not_wanted_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(places.urllib.request, "urlopen", lambda *_, **__: pytest.fail("it was asked"))
    found = places.hub(1.0)
    assert found.state == "fine"
    assert "offline" in found.found


@pytest.mark.parametrize(("state", "status"), [("fine", 0), ("absent", 0), ("slow", 0), ("broken", 1)])
def test_the_status(weightsmith, monkeypatch: pytest.MonkeyPatch, state, status: int) -> None:
    checks = [
        Check(name="torch", state="fine", found="2.9.0"),
        Check(name="thing", state=state, found="as it is", remedy="mend it"),
    ]
    monkeypatch.setattr(command, "checks", lambda _: checks)
    seen = weightsmith("doctor")
    assert seen.status == status
    assert "remedy: mend it" in seen.out
    assert ("Broken: thing." in seen.out) == bool(status)
    told = json.loads(weightsmith("doctor", "--json").out)
    assert told["status"] == status
    assert [one["state"] for one in told["figures"]["checks"]] == ["fine", state]


def test_a_bad_timeout(weightsmith) -> None:
    seen = weightsmith("doctor", "--timeout", 0)
    assert seen.status == 1
    assert "--timeout" in seen.err


def test_everything_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With children that answer at once: the checks themselves are those above."""
    answers = {
        hardware.TORCH: Answer(CPU),
        software.TRANSFORMERS: Answer({"transformers": "5.9", "peft": "0.17"}),
        software.TORCHVISION: Answer({"torchvision": "1"}),
    }
    monkeypatch.setattr(command, "asked", answers.__getitem__)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = command.checks(DoctorOptions(cache_dir=str(tmp_path), runs_dir=str(tmp_path / "runs")))
    names = [one.name for one in found]
    assert {"python", "torch", "GPU", "threads", "transformers", "torchvision", "cache", "runs", "hub"} <= set(names)
    assert {f"extra {name}" for name in software.OPTIONAL} <= set(names)
    assert all(one.remedy for one in found if one.state != "fine")
