"""Into other tools: `weightsmith export` (issue 8)."""

from __future__ import annotations

from tests.bad_inputs.rows import Group, flags

GROUPS = (
    Group(
        8,
        "export",
        ("export",),
        flags(
            (["merged"], ["--out is missing"]),
            (["merged", "{tmp}/none", "--out", "{out}"], ["does not exist"]),
            (["merged", "--out", "{out}"], ["needs a run or a model"]),
            (["merged", "{finished}", "--out", "{out}", "--method", "heda"], ["--method heda", "did you mean 'head'?"]),
            (["merged", "{finished}", "--out", "{out}", "--rank", "3"], ["--rank", "export peft"]),
            (["merged", "{finished}", "--out", "{out}", "--private"], ["--private", "--push OWNER/NAME"]),
            (["onnx", "{finished}", "--out", "{out}"], ["ends in .onnx"]),
            (["onnx", "{finished}", "--out", "{out}.onnx", "--push", "a/b"], ["--push is for folders"]),
            (
                ["merged", "{finished}", "--out", "{out}", "--push", "no owner"],
                ["no name of a repository", "OWNER/NAME"],
            ),
            (["merged", "{finished}", "--out", "{out}", "--push", "name"], ["OWNER/NAME"]),
            (["merged", "{finished}", "--out", "{out}", "--push", "a/b"], ["HF_HUB_OFFLINE=1", "hf upload a/b"]),
        ),
    ),
)
