"""Models in and out: hub names, Hugging Face folders, run folders, presets and networks already in memory."""

from __future__ import annotations

import json
import logging
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightsmith import mapped
from weightsmith.errors import WeightsmithError, did_you_mean, near_path
from weightsmith.files import atomic_folder, cause_of, understood
from weightsmith.models.family import Family, families, family_of
from weightsmith.models.model import Model
from weightsmith.models.paged import DISK, page, saved_in_shards, stays_in_file, weights_of
from weightsmith.models.preprocess import Features, Preprocess
from weightsmith.models.text import Tokenize
from weightsmith.models.timm import MODEL_TYPE as TIMM
from weightsmith.models.timm import (
    PREFIX,
    check_saves,
    completed,
    is_timm,
    preprocessing,
    pretrained,
    require_timm,
    wrapped,
)

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "tokenizer_config.json")
_OLD_MASKS = re.compile(r"\.attn\.(masked_)?bias$")
"""Causal masks that older checkpoints hold beside their weights, GPT-J's published ones among them; nothing reads them."""
PRETRAINED = "google/vit-base-patch16-224"
"""The starting point of A3: a ViT-B/16 trained on ImageNet-21k and fine-tuned on ImageNet-1k."""


def presets(reads: str = "images") -> dict[str, dict[str, Any]]:
    """The shipped descriptions of networks by name: of image classifiers, or of language models where they read "text"."""
    every = tomllib.loads((resources.files("weightsmith.models") / "presets.toml").read_text(encoding="utf-8"))
    return {
        name: entries
        for name, entries in every.items()
        if (entries["model_type"] in _text_types()) == (reads == "text")
    }


def load(what: str | Path | nn.Module | Model, family: Family | None = None, device: str | None = None) -> Model:
    """A trained image classifier or language model as a `Model`.

    Args:
        what: a hub name, a Hugging Face folder, a run folder (its trained model), `timm:NAME`, or a network in memory, of
            transformers or a vision transformer of timm, which is wrapped (`weightsmith.models.timm`).
        family: how to read an architecture that weightsmith does not know.
        device: where to put it; None leaves a network in memory where it is and loads others to the CPU. With "disk" it is
            computed on the CPU and its weights stay in their files, read block by block (`weightsmith.models.paged`); that
            also happens on a CPU where they take more than half of the memory that is free.

    Raises:
        WeightsmithError: nothing there, files that are damaged or do not fit their config, weights that cannot stay there, a
            network that was compiled in place.
        UnknownArchitectureError: no family table describes the network.
    """
    if isinstance(what, Model):
        return what
    in_file = False
    if isinstance(what, nn.Module):
        if device == DISK:
            raise WeightsmithError(
                f"a network in memory cannot stay on the {DISK}: give the folder that it was saved to"
            )
        network = _not_compiled(what)
        name, entries, tokenizer = type(network).__name__, {}, None
        module = wrapped(network) if is_timm(network) else network
    else:
        name = str(what)
        folder = _model_folder(name)
        module = _pretrained(str(folder) if folder else name)
        entries = _processor_entries(folder)
        tokenizer = _tokenizer(str(folder) if folder else name, module)
        in_file = device in (None, "cpu", DISK) and stays_in_file(module, device == DISK, name)
        if not in_file:
            _align(module)
    if device is not None and not in_file:
        module.to(device)
    model = wrap(module.eval(), family, entries, name, tokenizer)
    return page(model) if in_file else model


def _not_compiled(module: nn.Module) -> nn.Module:
    """The network itself of what `torch.compile` gave: a compiled one calls no hook that is put on it afterwards."""
    plain: nn.Module = getattr(module, "_orig_mod", module)
    for name, part in plain.named_modules():
        if getattr(part, "_compiled_call_impl", None) is not None:
            raise WeightsmithError(
                f"{name or type(plain).__name__} was compiled in place (Module.compile), and then calls no hook that looks at "
                "its sites: give the network as it was before"
            )
    return plain


def wrap(
    module: nn.Module, family: Family | None, processor: dict[str, object], name: str, tokenizer: Any | None = None
) -> Model:
    """A network in memory as a `Model`; class names, size and channels come from its config."""
    if getattr(getattr(module, "config", None), "model_type", None) == TIMM:
        processor = processor or _of_timm(module)
    family = family or family_of(module)
    family.check(module)
    config: Any = module.config
    if family.reads == "text":
        return Model(module, family, Tokenize(tokenizer), (), name)
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    labels = config.id2label or {}
    names = tuple(str(labels.get(i, f"class {i}")) for i in range(config.num_labels))
    if getattr(config, "reads", "images") == "features":
        return Model(module, family, Features(channels=config.num_channels), names, name)
    with understood(f"preprocessor_config.json of {name}", "save the model again"):
        return Model(module, family, Preprocess.from_hugging_face(processor, size, config.num_channels), names, name)


def create(what: str, class_names: tuple[str, ...], seed: int, channels: int = 3) -> Model:
    """A classifier to train: a preset, a config file (JSON) with fresh weights, or a pretrained model with a new head.

    Args:
        what: a preset's name, a path to a JSON file of config entries, a Hugging Face folder, or a hub name.
        class_names: one a class.
        seed: of the fresh weights.
        channels: of the images, for a preset that does not say.

    Raises:
        WeightsmithError: none of these is there; sizes that do not fit one another.
    """
    check_new(what)
    known = presets()
    path = Path(what).expanduser()
    labels = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if what in known or (path.suffix == ".json" and path.is_file()):
            entries = known[what] if what in known else _config_file(path)
            entries = {key: value for key, value in entries.items() if key != "training"}
            module = _from_config({"num_channels": channels} | entries | labels, what)
            return wrap(module.eval(), None, {}, what)
        folder = _model_folder(what)
        module = _with_new_head(_pretrained(str(folder) if folder else what), labels)
    return wrap(module.eval(), None, _processor_entries(folder), what)


def check_new(what: str) -> None:
    """Raise `WeightsmithError` for a name that nothing answers to from which `create` could make a network."""
    known, path = presets(), Path(what).expanduser()
    if what in known or (path.suffix == ".json" and path.is_file()) or what.startswith(PREFIX):
        return
    if _model_folder(what) is None and not _looks_like_hub_name(what):
        raise WeightsmithError(
            f"--model {what} is no preset, no config file and no folder: {did_you_mean(what, [*known, PRETRAINED])}"
        )


def check_there(what: str) -> None:
    """Raise `WeightsmithError` for a name that nothing answers to from which `load` could read a network."""
    if not what.startswith(PREFIX) and _model_folder(what) is None and not _looks_like_hub_name(what):
        raise WeightsmithError(
            f"{what} does not exist: give a Hugging Face folder, a run folder, a hub name or timm:NAME{near_path(Path(what))}"
        )


def create_language(what: str | Mapping[str, Any], tokenizer: Any, seed: int) -> Model:
    """A language model to train, with fresh weights and as many tokens as its tokenizer has.

    Args:
        what: a preset's name, or entries as a preset has them.
        tokenizer: of transformers, a fast one with an end token.
        seed: of the fresh weights.

    Raises:
        WeightsmithError: no such preset, or sizes that do not fit one another.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    known = presets("text")
    if isinstance(what, str) and what not in known:
        raise WeightsmithError(f"{what} is no preset of a language model: {did_you_mean(what, known)}")
    entries = dict(known[what] if isinstance(what, str) else what)
    kind, end = entries.pop("model_type"), tokenizer.eos_token_id
    network = {key: value for key, value in entries.items() if key not in ("training", "vocabulary")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            config = AutoConfig.for_model(
                kind, vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **network
            )
            module = AutoModelForCausalLM.from_config(config)
        except Exception as error:
            raise WeightsmithError(f"these entries describe no network that can be built: {cause_of(error)}") from error
    return wrap(module.eval(), None, {}, what if isinstance(what, str) else str(kind), tokenizer)


def save(model: Model, folder: Path | str, card: str = "") -> None:
    """Write a Hugging Face folder (config, safetensors, processor, model card), atomically.

    The folder loads in plain transformers: `AutoModelForImageClassification.from_pretrained(folder)`, or
    `AutoModelForCausalLM` and `AutoTokenizer`.
    """
    module: Any = model.module
    if getattr(module.config, "model_type", None) == TIMM:
        check_saves(module)
    how = saved_in_shards(model) if mapped.stays(module) else {}
    with atomic_folder(folder) as temporary, quiet_transformers():
        module.save_pretrained(temporary, **how)
        if isinstance(model.encode, Preprocess):
            processor = json.dumps(model.encode.to_hugging_face(), indent=2)
            (temporary / "preprocessor_config.json").write_text(processor + "\n", encoding="utf-8")
        elif model.encode.tokenizer is not None:
            model.encode.tokenizer.save_pretrained(temporary)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")


def registered_by(model: Model) -> str:
    """The module of ours that plain transformers must import before it can load the model; "" where it knows it itself."""
    home = type(model.module).__module__
    return home if home.partition(".")[0] == "weightsmith" else ""


def wrapper_of(model: Model) -> tuple[str, ...]:
    """Packages that plain transformers needs beside itself to load the model."""
    return ("timm", "torchvision") if getattr(model.module.config, "model_type", None) == TIMM else ()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off a user's screen while it loads or saves."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


def _model_folder(name: str) -> Path | None:
    """The Hugging Face folder behind a path: itself, or a run folder's `model`; None where no folder is."""
    path = Path(name).expanduser()
    if not path.exists():
        return None
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise WeightsmithError(
        f"{name} holds no model: expected config.json and model.safetensors in it, or model/ of a run folder; give such a one"
    )


def _looks_like_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _pretrained(name: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

    import weightsmith.models.mlp  # registers the plain MLP with the Auto classes
    import weightsmith.models.narrow_vit  # noqa: F401

    if name.startswith(PREFIX):
        return pretrained(name.removeprefix(PREFIX))
    check_there(name)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with quiet_transformers():
            kind = AutoConfig.from_pretrained(name).model_type
            auto = AutoModelForCausalLM if kind in _text_types() else AutoModelForImageClassification
            module, report = auto.from_pretrained(name, output_loading_info=True)
    except Exception as error:  # OSError, ValueError, safetensors' and the hub's own types: all mean "not loadable"
        if isinstance(error, ImportError) and "timm" in str(error):
            require_timm(f"the model in {name}")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if Path(name).is_dir():
            raise WeightsmithError(f"the model in {name} cannot be loaded ({reason}): save it again") from error
        raise WeightsmithError(
            f"--model {name} could not be fetched from the hub ({reason}): fetch it where there is internet with "
            f"`hf download {name} --local-dir DIR` and give --model DIR, or train from a preset: "
            f"{', '.join(presets())}"
        ) from error
    missing = sorted(report["missing_keys"])
    left_over = sorted(key for key in report["unexpected_keys"] if not _OLD_MASKS.search(key))
    if missing or left_over:
        what = (
            f"lack {len(missing)} tensors that its config asks for ({missing[0]} first)"
            if missing
            else f"hold {len(left_over)} tensors that its config does not ask for ({left_over[0]} first)"
        )
        raise WeightsmithError(
            f"the weights in {name} {what}: they belong to another architecture, depth or class count, save or "
            "fetch weights and config anew"
        )
    return module  # type: ignore[no-any-return]


def _align(module: nn.Module) -> None:
    """Put weights that begin at an odd address, as maps of files do, where torch would have put them.

    Products of the same numbers may differ in the last bit with the address. A network that was loaded then gives what it
    gave when it was trained, and gives it in every process.
    """
    for weight in weights_of(module):
        if weight.device.type == "cpu" and weight.data_ptr() % _ALIGNMENT:
            in_file = weight.data
            weight.data = in_file.clone()
            mapped.release([in_file])  # else a network is in memory twice while it is loaded


_ALIGNMENT = 64
"""Bytes, of torch's own allocations on a CPU."""


def _of_timm(module: nn.Module) -> dict[str, object]:
    """The pixels' mean and std of a wrapped timm network, whose config is completed with what ours read of one."""
    if is_timm(module.get_submodule("timm_model")):
        completed(module)
    return preprocessing(module)


def _text_types() -> set[str]:
    """The model types, as configs name them, of the language models that a family describes."""
    return {kind for family in families().values() if family.reads == "text" for kind in family.model_types}


def _tokenizer(name: str, module: nn.Module) -> Any | None:
    """The tokenizer saved beside a language model, None where there is none."""
    config: Any = module.config
    if config.model_type not in _text_types():
        return None
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        reason = cause_of(error)
        raise WeightsmithError(f"the tokenizer in {name} cannot be loaded ({reason}): save it again") from error


def _from_config(entries: dict[str, Any], what: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    import weightsmith.models.mlp
    import weightsmith.models.narrow_vit  # noqa: F401

    entries = dict(entries)
    kind = entries.pop("model_type", "vit")
    try:
        config = AutoConfig.for_model(kind, **entries)
        if "image_size" in entries and "patch_size" in entries and config.image_size % config.patch_size:
            raise ValueError(f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}")
        if "num_attention_heads" in entries and config.hidden_size % config.num_attention_heads:
            raise ValueError(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
        module: nn.Module = AutoModelForImageClassification.from_config(config)
    except Exception as error:
        raise WeightsmithError(
            f"--model {what} describes no network that can be built ({cause_of(error)}): correct it"
        ) from error
    return module


def _config_file(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsmithError(
            f"--model {path} is no JSON file of config entries ({cause_of(error)}): correct it"
        ) from error
    if not isinstance(entries, dict):
        raise WeightsmithError(
            f'--model {path} must hold one JSON object of config entries: write it like {{"model_type": "vit"}}'
        )
    return entries


def _with_new_head(module: nn.Module, labels: dict[str, Any]) -> nn.Module:
    """The network with a fresh classifier for these classes. Only the head is new: no other tensor may mismatch."""
    family = family_of(module)
    old = module.get_submodule(family.classifier)
    assert isinstance(old, nn.Linear)
    head = nn.Linear(old.in_features, len(labels["id2label"]))
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    parent, _, leaf = family.classifier.rpartition(".")
    setattr(module.get_submodule(parent), leaf, head)
    config: Any = module.config
    config.num_labels = len(labels["id2label"])  # some configs name the classes anew then
    config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    if hasattr(config, "label_names"):  # timm's word for them, which a folder that was loaded brings along
        config.label_names = list(labels["label2id"])
    return module


def _processor_entries(folder: Path | None) -> dict[str, object]:
    path = folder / "preprocessor_config.json" if folder else None
    if path is None or not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsmithError(f"{path} cannot be read ({cause_of(error)}): save the model again") from error
    return entries if isinstance(entries, dict) else {}
