"""The three forms of an export. Each is written beside its place, read back by other people's code, and compared."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightsmith import __version__
from weightsmith.adapters import transposed_weights
from weightsmith.delta import Delta, weights_hash
from weightsmith.edit.lora_native import LoRAOptions, adapted
from weightsmith.errors import WeightsmithError
from weightsmith.files import as_bytes, atomic_folder, atomic_path, cause_of, remove_leftovers_of, write_json
from weightsmith.models import Model, save
from weightsmith.models.onnx_export import require_onnx, save_onnx
from weightsmith.models.store import quiet_transformers
from weightsmith.report.markdown import front_matter, plain
from weightsmith.run.export.source import Source

RECORD = "export.json"
"""What an export leaves in its folder: what it is of, and what the comparison gave. No folder without it is replaced."""

_CLOSE = 1e-3
"""Largest difference of an ONNX file's logits, as a share of the largest logit, that is rounding."""
_EXACT = 1e-5
"""Largest difference of an adapter's weights from the edit's, as a share of the change, that is rounding of float32."""


def write_merged(source: Source, out: Path, licence: str) -> str:
    """A Hugging Face folder whose weights are those under the edit, bit for bit; returns what to tell.

    Raises:
        WeightsmithError: what was written does not read back to the same bits, and nothing is left then.
    """
    model = source.model
    with atomic_folder(out) as temporary, _worn(source):
        save(model, temporary, source.card(licence))
        wanted = {name: tensor.detach().cpu() for name, tensor in model.module.state_dict().items()}
        with quiet_transformers():
            again: Any = type(model.module).from_pretrained(temporary)  # type: ignore[attr-defined]
        found = again.state_dict()
        unlike = [name for name in wanted if name not in found or not _same_bits(wanted[name], found[name])]
        if unlike:
            raise WeightsmithError(f"{unlike[0]} does not read back from the folder as it was written: check the disk")
        record = _record(source, "merged") | {"weights": weights_hash(model), "tensors_compared": len(wanted)}
        write_json(temporary / RECORD, record)
    return f"{len(wanted)} tensors, read back in plain transformers and equal bit for bit"


def write_peft(source: Source, out: Path, rank: int | None, base_model: str | None, licence: str) -> str:
    """A folder that plain PEFT loads on the unedited model; returns what to tell, the rank and the error.

    Raises:
        WeightsmithError: no edit, or one that no adapter holds; an adapter that PEFT does not read back to the edit.
    """
    if source.delta is None:
        raise WeightsmithError(
            f"{source.told} has no edit to make an adapter of: run the edit stage first, or give --delta"
        )
    delta, model = source.delta, source.model
    stored = transposed_weights(model.module)
    lost = 0.0
    if rank is not None:
        delta, rows = adapted(
            delta, LoRAOptions(rank=rank, tolerance=0.999999, allow_fallback=False), transposed=stored
        )
        lost = max((row["error"] for row in rows), default=0.0)
    with atomic_folder(out) as temporary:
        delta.to_lora(temporary, model, base_model=base_model or source.base)
        error = _adapter_error(model, delta, temporary)
        if not error <= _EXACT:
            raise WeightsmithError(
                f"PEFT reads the adapter back with an error of {error:.2g} of the change: this PEFT "
                "does not fit this network, so export merged, or install another peft"
            )
        ranks = _ranks(temporary)
        record = _record(source, "peft") | {"rank": max(ranks), "lost_by_rank": lost, "error_in_peft": error}
        write_json(temporary / RECORD, record)
        (temporary / "README.md").write_text(_adapter_card(source, base_model or source.base, record, licence), "utf-8")
    layers = f"{len(ranks)} layer" + "s" * (len(ranks) > 1)
    cut = f", of the edit {lost:.2%} is lost by it" if rank is not None else ", which is the edit's own"
    return f"{layers}, rank {max(ranks)}{cut}; loaded in plain PEFT, its weights differ by {error:.1e} of the change"


def write_onnx(source: Source, out: Path) -> str:
    """One ONNX file of the edited model, run by onnxruntime and compared; returns what to tell.

    Raises:
        WeightsmithError: packages that are missing, a network that cannot be exported, or logits that differ.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise WeightsmithError(f"onnxruntime is needed to check {out}: pip install 'weightsmith[onnx]'") from error
    require_onnx(str(out))
    model = source.model
    remove_leftovers_of(out)
    with _worn(source), atomic_path(out) as temporary:
        save_onnx(model, temporary, _metadata(source))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(temporary), options, providers=["CPUExecutionProvider"])
            difference, largest = _difference(model, session)
        except Exception as error:  # onnxruntime has many types of its own
            raise WeightsmithError(
                f"onnxruntime cannot run what was exported ({cause_of(error)}): export merged, or install another onnxruntime"
            ) from error
        if not difference <= _CLOSE * largest:
            raise WeightsmithError(
                f"onnxruntime's logits differ by up to {difference:.2g} from the model's, whose largest is {largest:.2g}: "
                "this network does not survive the export, so export merged"
            )
    return (
        f"run by onnxruntime on batches of 1 and 3, its logits, up to {largest:.3g}, differ by up to {difference:.1e}"
    )


def _worn(source: Source) -> Any:
    return source.delta.on(source.model) if source.delta is not None else nullcontext()


def _record(source: Source, form: str) -> dict[str, Any]:
    """Provenance: what the export is of."""
    base = source.delta.base if source.delta is not None else weights_hash(source.model)
    return {
        "form": form,
        "of": source.told,
        "weights_before": base,
        "weightsmith": __version__,
        "torch": torch.__version__,
    }


def _metadata(source: Source) -> dict[str, str]:
    """What an ONNX file carries: provenance, and what must be done with an image or a text before."""
    model = source.model
    encode = model.encode
    entries: dict[str, Any] = _record(source, "onnx") | {"input": encode.describe()}
    if model.family.reads == "images":
        entries["class_names"] = list(model.class_names)
        entries["preprocessing"] = model.preprocess.to_hugging_face()
    return {"weightsmith": json.dumps(entries, ensure_ascii=False)}


@torch.no_grad()
def _difference(model: Model, session: Any) -> tuple[float, float]:
    """(largest difference of logits, largest logit) over random inputs of several shapes."""
    draw, difference, largest = torch.Generator().manual_seed(0), 0.0, 0.0
    (name,) = (one.name for one in session.get_inputs())
    for count, tokens in ((1, 1), (3, model.n_tokens)):
        if model.family.reads == "text":
            inputs = torch.randint(0, model.n_classes, (count, max(1, min(tokens, 64))), generator=draw)
            wanted = model.token_logits(inputs.to(model.device))
        else:
            shape = (count, model.preprocess.channels, model.preprocess.size, model.preprocess.size)
            inputs = torch.randn(shape, generator=draw).to(next(model.module.parameters()).dtype)
            wanted = model.logits(inputs.to(model.device))
        (found,) = session.run(None, {name: inputs.numpy()})
        difference = max(difference, float((torch.from_numpy(found) - wanted.cpu()).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    return difference, largest


def _adapter_error(model: Model, delta: Delta, folder: Path) -> float:
    """‖W of PEFT − W of the delta‖ / ‖change‖ over all weights that change; PEFT's layers are taken out again."""
    from peft import PeftModel

    parameters = dict(model.module.named_parameters())
    before = {name: parameters[name].detach().clone() for name in delta.changes}
    with delta.on(model, check=False):
        wanted = {name: parameters[name].detach().clone() for name in delta.changes}
    try:
        with quiet_transformers():
            worn = PeftModel.from_pretrained(model.module, str(folder))
            merged = dict(worn.merge_and_unload().named_parameters())
        apart = sum(float((merged[name].double() - wanted[name].double()).square().sum()) for name in wanted)
    finally:
        with torch.no_grad():
            for name, parameter in model.module.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
    change = sum(float((wanted[name].double() - before[name].double()).square().sum()) for name in wanted)
    return float((apart / change) ** 0.5 if change else apart**0.5)


def _ranks(folder: Path) -> list[int]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return [int(rank) for rank in config["rank_pattern"].values()]


def _adapter_card(source: Source, base: str, record: dict[str, Any], licence: str) -> str:
    """The run's card under a header of PEFT's, with how the adapter is loaded in place of how the model is."""
    text = source.model.family.reads == "text"
    whole = source.card(licence)
    licence = licence or _licence_in(whole)
    header = front_matter("text-generation" if text else "image-classification", base, licence, True, "peft")
    auto = "AutoModelForCausalLM" if text else "AutoModelForImageClassification"
    code = (
        f"```python\nfrom peft import PeftModel\nfrom transformers import {auto}\n\n"
        f"base = {auto}.from_pretrained({base!r})\n"
        'model = PeftModel.from_pretrained(base, ".")  # where this card lies\n```'
    )
    how = (
        f"## How to load it\n\nA LoRA adapter of rank {record['rank']} for {plain(base)}, whose weights must have the hash "
        f"`{record['weights_before']}`; weightsmith is not needed.\n\n{code}"
    )
    _, _, body = whole.partition("\n---\n")
    if not body:
        return f"{header}\n\n# An edit as an adapter\n\n{how}\n"
    start, _, rest = body.partition("## How to load it")
    _, _, after = rest.partition("```\n")
    return f"{header}\n{start}{how}\n{after}"


def _licence_in(card: str) -> str:
    found = [line.partition(":")[2].strip() for line in card.splitlines()[:12] if line.startswith("license:")]
    return found[0] if found else ""


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = (as_bytes(tensor) for tensor in (one, other))
    return bool(torch.equal(*flat))
