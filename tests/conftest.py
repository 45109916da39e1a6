"""What every room of the tests shares: a quiet, offline process, tiny models of every family, random images."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # of processes that tests start, which share the processors with the tests
_CACHE = tempfile.mkdtemp(prefix="weightsmith-tests-")
os.environ["WEIGHTSMITH_CACHE"] = _CACHE

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from weightsmith.data.images import ImageSet  # noqa: E402
from weightsmith.data.split import from_arrays  # noqa: E402
from weightsmith.models import Model, families, load  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a job in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
hypothesis.settings.register_profile("weightsmith", deadline=None)  # the machine is shared
hypothesis.settings.load_profile("weightsmith")

SIDE = 8


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: the collector of cycles need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: a folder that `make` fills, in the first of the test processes that asks for it.

    The others wait and take what is there, so that nobody may write into it.
    """
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        place, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)  # half of it, of a process that failed
                place.mkdir()
                make(place)
                done.touch()
        return place

    return made


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data; the test is skipped where it is not."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("WEIGHTSMITH_TEST_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set WEIGHTSMITH_TEST_DATA to the folder that has them")
    return folder


def _vit_entries(classes: int) -> dict[str, Any]:
    return {
        "image_size": SIDE,
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "num_labels": classes,
    }


def _vit(classes: int) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_vit_entries(classes)))


def _deit(classes: int) -> nn.Module:
    from transformers import DeiTConfig, DeiTForImageClassification

    return DeiTForImageClassification(DeiTConfig(**_vit_entries(classes)))


def _mlp(classes: int) -> nn.Module:
    from weightsmith.models.mlp import MLPConfig, MLPForImageClassification

    return MLPForImageClassification(
        MLPConfig(image_size=SIDE, num_channels=3, hidden_sizes=(14, 12, 10), num_labels=classes)
    )


def _gpt2(classes: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=3, n_head=2, n_inner=24, bos_token_id=0, eos_token_id=0
        )
    )


def _gptj(classes: int) -> nn.Module:
    from transformers import GPTJConfig, GPTJForCausalLM

    return GPTJForCausalLM(
        GPTJConfig(
            vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=3, n_head=2, rotary_dim=4, n_inner=24,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _grouped_entries() -> dict[str, Any]:
    """Of networks of Llama's layout: four heads share two of keys and values."""
    return {
        "vocab_size": WORDS,
        "max_position_embeddings": 16,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def _llama(classes: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_grouped_entries(), attention_bias=True))


def _mistral(classes: int) -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_grouped_entries(), sliding_window=6))


def _qwen2(classes: int) -> nn.Module:
    """Its first block sees everything, the others a window of six tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    windows = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    return Qwen2ForCausalLM(Qwen2Config(**_grouped_entries(), **windows))


def _qwen3(classes: int) -> nn.Module:
    """Its heads together are wider than its stream, as in the smaller ones of the family."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_grouped_entries(), head_dim=6))


def _narrow_vit(classes: int) -> nn.Module:
    """No two of its blocks have the same widths, nor any the width of the stream."""
    from weightsmith.models.narrow_vit import NarrowViTConfig, NarrowViTForImageClassification

    widths = {"attention_heads": [3, 2, 5], "mlp_widths": [24, 9, 17], "head_dim": 4}
    return NarrowViTForImageClassification(NarrowViTConfig(**_vit_entries(classes) | widths))


def _timm_vit(classes: int, **more: Any) -> nn.Module:
    vision = pytest.importorskip(
        "timm.models.vision_transformer", reason="timm is not installed: it needs a torchvision that fits torch"
    )
    entries = {"img_size": SIDE, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 1.5}
    module: nn.Module = vision.VisionTransformer(**entries, num_classes=classes, **more)
    return module


def _timm_vit_scaled(classes: int) -> nn.Module:
    return _timm_vit(classes, init_values=0.1, qk_norm=True, no_embed_class=True)


WORDS = 29
BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "vit": _vit, "deit": _deit, "mlp": _mlp, "gpt2": _gpt2, "gptj": _gptj, "llama": _llama, "mistral": _mistral,
    "qwen2": _qwen2, "qwen3": _qwen3, "narrow_vit": _narrow_vit, "timm_vit": _timm_vit, "timm_vit_scaled": _timm_vit_scaled,
}  # fmt: skip
"""One builder a family: a network of 2 to 4 layers for 8x8 colour images, or for texts of up to 16 of 29 tokens."""

IMAGE_FAMILIES = sorted(name for name, family in families().items() if family.reads == "images")
TEXT_FAMILIES = sorted(name for name, family in families().items() if family.reads == "text")


def build_tiny_model(family_name: str, seed: int = 0, classes: int = 4) -> Model:
    if family_name not in BUILDERS:
        pytest.fail(f"the family {family_name!r} has no tiny network: add a builder to BUILDERS in tests/conftest.py")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = BUILDERS[family_name](classes)
        norms = {f"{path}.weight" for path, part in module.named_modules() if "Norm" in type(part).__name__}
        with torch.no_grad():  # the usual initialisation leaves biases at zero and hides slips with them
            for name, parameter in module.named_parameters():
                noise = torch.randn_like(parameter)
                if parameter.ndim == 2:
                    parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
                elif name in norms:
                    parameter.copy_(1 + 0.2 * noise)
                else:
                    parameter.copy_(0.3 * noise)
    return load(module)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Model]:
    """`tiny_model(family_name, seed=0, classes=4)`: a fresh random model of 2 to 4 layers, with biases."""
    return build_tiny_model


@pytest.fixture(params=sorted(families()))
def family_name(request: pytest.FixtureRequest) -> str:
    """Each shipped family's name in turn."""
    name: str = request.param
    return name


@pytest.fixture
def model(family_name: str) -> Model:
    """A fresh tiny model of each family in turn."""
    return build_tiny_model(family_name)


@pytest.fixture(scope="session")
def random_pixels() -> Callable[..., Tensor]:
    """`random_pixels(n, seed=0, side=8, channels=3)`: uint8 images (n, channels, side, side)."""

    def make(n: int, seed: int = 0, side: int = SIDE, channels: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)

    return make


@pytest.fixture(scope="session")
def random_inputs(random_pixels: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`random_inputs(model, n, seed=0)`: preprocessed images, or the ids of texts of 7 tokens."""

    def make(model: Model, n: int, seed: int = 0) -> Tensor:
        if model.family.reads == "images":
            return model.preprocess(random_pixels(n, seed))
        return torch.randint(1, model.n_classes, (n, 7), generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def random_set() -> Callable[..., ImageSet]:
    """`random_set(n, classes=4, seed=0, source="noise", part="train")`: a labelled set of 8x8 colour noise."""

    def make(n: int, classes: int = 4, seed: int = 0, source: str = "noise", part: str = "train") -> ImageSet:
        images = np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
        names = tuple(f"class {label}" for label in range(classes))
        return from_arrays(images, np.arange(n) % classes, names, source, part)

    return make


@pytest.fixture(scope="session")
def hook_count() -> Callable[[nn.Module], int]:
    """How many hooks hang on a network."""

    def count(module: nn.Module) -> int:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)

    return count
