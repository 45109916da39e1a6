"""`weightsmith export onnx | peft | merged`."""

from __future__ import annotations

from pathlib import Path

from weightsmith.errors import WeightsmithError
from weightsmith.files import user_path
from weightsmith.run.export import forms, hub
from weightsmith.run.export.source import source_of
from weightsmith.run.options.export import ExportOptions
from weightsmith.run.outcome import Outcome


def export(options: ExportOptions) -> Outcome:
    """Write what the options ask for.

    Raises:
        WeightsmithError: bad options, a run or model that is not there, or an export that does not read back; nothing is
            written then.
    """
    out = _place(options)
    api = hub.check_push(options.push) if options.push is not None else None
    source = source_of(options)
    licence = options.license or ""
    if options.form == "merged":
        told = forms.write_merged(source, out, licence)
    elif options.form == "peft":
        told = forms.write_peft(source, out, options.rank, options.base_model, licence)
    else:
        told = forms.write_onnx(source, out)
    summary = [f"{out} holds {source.told}: {told}"]
    address = ""
    if api is not None and options.push is not None:
        message = f"{source.told}, exported with weightsmith"
        address = hub.push(api, out, options.push, options.private, message)
        summary.append(f"pushed: {address}")
    return Outcome(
        command="export",
        folder=out,
        figures={"export": {"form": options.form, "holds": source.told, "compared": told, "pushed": address or None}},
        summary=summary,
        shown=summary[1:],
        closing=f"holds {source.told}: {told}",
    )


def _place(options: ExportOptions) -> Path:
    """Where to write; everything that can be known to be wrong before any work is done."""
    if options.out is None:
        shape = "FILE.onnx" if options.form == "onnx" else "FOLDER"
        raise WeightsmithError(f"--out is missing: give --out {shape}")
    out = user_path(options.out)
    if options.form == "onnx":
        if options.push is not None:
            raise WeightsmithError("--push is for folders: export merged or peft")
        if out.suffix != ".onnx":
            raise WeightsmithError(f"--out {options.out} is no name of an ONNX file: give one that ends in .onnx")
        if out.is_dir():
            raise WeightsmithError(f"--out {options.out} is a folder: give the name of a file in it")
    elif out.exists() and not out.is_dir():
        raise WeightsmithError(f"--out {options.out} is a file: give the name of a folder")
    if options.form != "peft" and (options.rank is not None or options.base_model is not None):
        raise WeightsmithError("--rank and --base-model are of adapters: leave them out, or export peft")
    if options.private and options.push is None:
        raise WeightsmithError("--private is of the repository that --push makes: give --push OWNER/NAME with it")
    if out.exists() and not options.overwrite:
        raise WeightsmithError(f"--out {options.out} exists: give --overwrite to replace it, or another name")
    if out.is_dir() and any(out.iterdir()) and not (out / forms.RECORD).is_file():
        raise WeightsmithError(
            f"--out {options.out} holds something else than an export, which --overwrite would delete: give another folder"
        )
    return out
