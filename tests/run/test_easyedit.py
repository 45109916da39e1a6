"""EasyEdit's hyper-parameters from the command line, in the file as EasyEdit has it."""

from __future__ import annotations

from pathlib import Path

from tests.run.conftest import Command, assert_refused
from weightsmith.delta import Delta

ROME = """
alg_name: "ROME"
model_name: "./hugging_cache/gpt2-xl"
stats_dir: "./data/stats"
device: 0
layers: [{layer}]
fact_token: "subject_last"
v_num_grad_steps: 8
v_lr: 5e-1
v_loss_layer: 2
v_weight_decay: 1e-3
clamp_norm_factor: 4
kl_factor: 0.0625
mom2_adjustment: false
context_template_length_params: [[5, 2]]
rewrite_module_tmp: "transformer.h.{{}}.mlp.c_proj"
layer_module_tmp: "transformer.h.{{}}"
mlp_module_tmp: "transformer.h.{{}}.mlp"
attn_module_tmp: "transformer.h.{{}}.attn"
ln_f_module: "transformer.ln_f"
lm_head_module: "transformer.wte"
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
model_parallel: false
fp16: true
"""


def test_a_file_of_easyedit_edits_where_it_says(talker: Path, tmp_path: Path, weightsmith: Command) -> None:
    hparams = tmp_path / "gpt2-xl.yaml"
    hparams.write_text(ROME.format(layer=1))
    flags = ["--model", talker / "model", "--data-path", talker / "facts.json", "--preserve", talker / "text.txt"]
    places = ["--runs-dir", tmp_path / "runs", "--device", "cpu", "--cache-dir", tmp_path / "cache"]
    given = [*flags, *places, "--edit-method", "rome", "--max-edits", 1, "--hparams", hparams]
    done = weightsmith("edit", *given, "--run-name", "one")
    assert done.status == 0, done.err
    delta = Delta.load(tmp_path / "runs" / "one" / "delta.safetensors")
    assert list(delta.changes) == ["transformer.h.1.mlp.c_proj.weight"]
    assert (delta.info["method"], delta.info["layers"]) == ("rome", [1])
    assert "not read" in done.err, "what a file says and nothing here does is told"

    hparams.write_text(ROME.format(layer=17))
    refused = weightsmith("edit", *given, "--run-name", "two")
    assert_refused(refused, ["gpt2-xl.yaml", "layer 17", "0 to 2"])
