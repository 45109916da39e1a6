"""Which patches speak for a class: ASTRA's attribution, carried over to image classifiers.

Wang, Wang and Zhang, "Steering Away from Harm: An Adaptive Approach to Defending Vision Language Model Against
Jailbreaks", CVPR 2025 (arXiv 2411.16721), in three steps there and here, of which this is the first:

1. `attribute`: y(z) ≈ w·z + b by Lasso over random masks z ∈ {0, 1}^patches; the patches of largest w are the evidence.
2. `steering.steering_vectors` and 3. `steering.Steering.on` steer away from what the evidence says.

| paper | here |
|---|---|
| adversarial image | misclassified image |
| log-probability of an affirmative answer, y | logit of the target class, `targets`: the wrong class that the model gives |
| visual tokens blacked out at random, 32 to 96 times | `AstraOptions.masks`, each patch kept with probability `keep` |
| surrogate's sparse weights, w | `Attribution.weights` |
| top k tokens | `Attribution.top`, those of positive weight only, `AstraOptions.top` at most |

Deviations. The target is one logit, not the likelihood of a text. Blacked-out patches are exactly those that the network
embeds. The images are natural errors, not attacks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from weightsmith import ranks
from weightsmith.errors import WeightsmithError
from weightsmith.files import read_tensors, understood, write_tensors
from weightsmith.models import Model
from weightsmith.progress import progress

_FORMAT = "weightsmith-attribution-1"
FRESH = 16
"""Masks an image on which the surrogate is tested and not fitted."""
_TOLERANCE, _ITERATIONS = 1e-8, 20_000
"""Of the Lasso: a duality gap of sklearn's default 1e-4 leaves three digits, fewer than the forward pass has."""


@dataclass(frozen=True, kw_only=True)
class AstraOptions:
    """How patches are attributed.

    Attributes:
        masks: random masks an image; the paper takes 32 to 96.
        keep: probability that a mask keeps a patch.
        alpha: the Lasso's penalty α in ‖y − Zw − b‖²/(2·masks) + α‖w‖₁, in logits.
        top: patches an image at most that count as evidence.
        seed: of the masks; those of image number i are drawn from (seed, i) alone.
        batch: masked images in one forward pass.

    Raises:
        WeightsmithError: a value out of its range, naming the flag.
    """

    masks: int = 64
    keep: float = 0.5
    alpha: float = 0.01
    top: int = 15
    seed: int = 0
    batch: int = 256

    def __post_init__(self) -> None:
        if self.masks < 2:
            raise WeightsmithError(f"--masks must be at least 2, not {self.masks}: 32 to 96 are usual")
        if not 0 < self.keep < 1:
            raise WeightsmithError(f"--keep must lie between 0 and 1, not {self.keep:g}: 0.5 is usual")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise WeightsmithError(f"--alpha must be a positive number, not {self.alpha:g}: 0.01 is usual")
        for name, value, least in (("top", self.top, 1), ("seed", self.seed, 0), ("batch", self.batch, 1)):
            if value < least:
                raise WeightsmithError(f"--{name} must be at least {least}, not {value}: give {least} or more")


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each patch of each image adds to the logit of its target class.

    Patches are numbered along rows, 0 is the first one after the special tokens.

    Attributes:
        samples: a name an image.
        targets: (n,) int64 class whose logit was explained.
        weights: (n, patches) float64, logits per standard deviation of the patch's mask (half of what showing it adds at
            keep = 0.5).
        top: for each image its patches of largest positive weight, largest first.
        fit: (n,) float64 R² of the surrogate on the masks it was fitted to, NaN where the logit never changed.
        fit_fresh: (n,) float64 R² on masks of their own; far below `fit` it says that the weights are noise.
        uninformative: images without a patch of positive weight, a logit that no mask changes among them.
        info: options, masked forwards, images whose Lasso did not converge; JSON values only.
    """

    samples: tuple[str, ...]
    targets: Tensor
    weights: Tensor
    top: tuple[tuple[int, ...], ...]
    fit: Tensor
    fit_fresh: Tensor
    uninformative: tuple[str, ...]
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.samples)
        single = (self.targets, self.fit, self.fit_fresh)
        if any(tensor.shape != (count,) for tensor in single) or len(self.top) != count:
            raise WeightsmithError(f"an attribution of {count} images needs as many targets, fits and lists of patches")
        if self.weights.ndim != 2 or len(self.weights) != count or self.side**2 != self.weights.shape[1]:
            raise WeightsmithError(
                f"an attribution of {count} images needs weights (images, patches of a square grid), "
                f"not {tuple(self.weights.shape)}"
            )

    @property
    def side(self) -> int:
        """Patches along a side of the image."""
        return math.isqrt(self.weights.shape[1])

    def rows(self) -> list[dict[str, Any]]:
        """One row a patch of an image; `top` is its place among the evidence, 1 the first, 0 for a patch that is none."""
        rows: list[dict[str, Any]] = []
        numbers = zip(self.samples, self.targets.tolist(), self.weights.tolist(), self.top, strict=True)
        for sample, target, weights, top in numbers:
            place = {number: rank + 1 for rank, number in enumerate(top)}
            rows += [
                {
                    "sample": sample,
                    "target": target,
                    "patch": number,
                    "row": number // self.side,
                    "column": number % self.side,
                    "weight": weight,
                    "top": place.get(number, 0),
                }
                for number, weight in enumerate(weights)
            ]
        return rows

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically."""
        header = {
            "format": _FORMAT,
            "samples": list(self.samples),
            "top": [list(patches) for patches in self.top],
            "uninformative": list(self.uninformative),
            "info": self.info,
        }
        tensors = {name: getattr(self, name).contiguous() for name in ("targets", "weights", "fit", "fit_fresh")}
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> Attribution:
        """Read what `save` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
        header, tensors = read_tensors(path, _FORMAT)
        with understood(path):
            return cls(
                samples=tuple(header["samples"]),
                top=tuple(tuple(patches) for patches in header["top"]),
                uninformative=tuple(header["uninformative"]),
                info=header["info"],
                **tensors,
            )


@torch.no_grad()
def attribute(
    model: Model, images: Tensor, targets: Tensor, names: Sequence[str], options: AstraOptions | None = None
) -> Attribution:
    """Weigh the patches of each image by how much they add to the logit of its target class (module docstring, 1).

    A blacked-out patch is black in the image as the network reads it, after resizing; that is exact for any input size.
    The masks are standardised and the logit is not, so `alpha` is in logits.

    Args:
        images: (n, channels, height, width) uint8.
        targets: (n,) class to explain, for misclassified images the wrong one that the model gives.
        names: one an image.

    Raises:
        WeightsmithError: no images, targets or names that do not fit them, a model without patch tokens, a logit that is
            not finite.
    """
    options = options or AstraOptions()
    PatchGrid.of(model)  # refuses what has no patches
    targets = checked_classes(model, images, targets, "targets")
    if len(names) != len(images):
        raise WeightsmithError(f"{len(images)} images were given {len(names)} names: give one an image")
    count = options.masks + FRESH
    group = max(1, options.batch // count)
    fits: list[Surrogate] = []

    def share(first: int) -> tuple[Any, ...]:
        place = slice(first, first + group)
        return model, options, first, images[place], targets[place], names[place]

    with progress("attributing", len(images)) as advance:
        for _, found in ranks.dealt(_fitted, range(0, len(images), group), share):
            fits += found
            advance(len(found))
    weights = np.stack([fit.weights for fit in fits])
    top = tuple(_positive(row, options.top) for row in weights)
    info = {
        "model": model.name,
        "options": asdict(options),
        "fresh_masks": FRESH,
        "forwards": count * len(images),
        "unconverged": [name for name, fit in zip(names, fits, strict=True) if not fit.converged],
    }
    return Attribution(
        samples=tuple(names),
        targets=targets,
        weights=torch.from_numpy(weights),
        top=top,
        fit=torch.tensor([fit.fit for fit in fits], dtype=torch.float64),
        fit_fresh=torch.tensor([fit.fresh for fit in fits], dtype=torch.float64),
        uninformative=tuple(name for name, patches in zip(names, top, strict=True) if not patches),
        info=info,
    )


@torch.no_grad()
def _fitted(
    model: Model, options: AstraOptions, first: int, images: Tensor, targets: Tensor, names: Sequence[str]
) -> list[Surrogate]:
    """One stand-in an image, of images that are the `first`-th and later ones of all."""
    grid, count = PatchGrid.of(model), options.masks + FRESH
    keep = torch.stack([_draw(options, grid.patches, count, first + place) for place in range(len(images))])
    inputs = model.preprocess(images, model.device)
    logits = _masked_logits(model, grid, inputs, keep, targets, options.batch)
    found: list[Surrogate] = []
    for name, shown, values in zip(names, keep.numpy(), logits.numpy(), strict=True):
        if not np.isfinite(values).all():
            raise WeightsmithError(
                f"the logits of {name} are not finite under some mask: the model overflows, load it in float32"
            )
        found.append(surrogate(shown, values, options))
    return found


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of a network on the image that it reads.

    Attributes:
        side: patches along a side; pixels: of a patch along a side.
        black: (1, channels, 1, 1) what a black pixel is after preprocessing.
    """

    side: int
    pixels: int
    black: Tensor

    @classmethod
    def of(cls, model: Model) -> PatchGrid:
        """Raises `WeightsmithError` for a network without patch tokens."""
        if not model.family.has_tokens:
            raise WeightsmithError(
                f"{model.name} has no patch tokens, so there are no patches to black out: give a vision transformer"
            )
        preprocess = model.preprocess
        config: Any = model.module.config
        pixels = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        black = preprocess(torch.zeros(1, preprocess.channels, 1, 1, dtype=torch.uint8), model.device)[..., :1, :1]
        return cls(preprocess.size // int(pixels), int(pixels), black)

    @property
    def patches(self) -> int:
        return self.side**2

    def blackened(self, inputs: Tensor, keep: Tensor) -> Tensor:
        """Preprocessed images (n, channels, size, size) with every patch black but those kept, (n, patches) bool."""
        shown = keep.to(inputs.device).view(-1, 1, self.side, self.side)
        shown = shown.repeat_interleave(self.pixels, 2).repeat_interleave(self.pixels, 3)
        beyond = inputs.shape[-1] - shown.shape[-1]  # pixels that fill no patch; the network does not read them
        return torch.where(F.pad(shown, (0, beyond, 0, beyond), value=True), inputs, self.black)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """The linear stand-in of one image: weights (patches,), R² on its own and on fresh masks."""

    weights: np.ndarray
    fit: float
    fresh: float
    converged: bool


def surrogate(shown: np.ndarray, values: np.ndarray, options: AstraOptions) -> Surrogate:
    """Fit the first `options.masks` of the masks `shown` (masks, patches) to logits (masks,), test on the others."""
    scaler = StandardScaler().fit(shown[: options.masks].astype(np.float64))
    masks = scaler.transform(shown.astype(np.float64))
    own, fresh = slice(None, options.masks), slice(options.masks, None)
    if np.ptp(values[own]) == 0:  # the Lasso's stopping rule is relative to the variance and would never be met
        return Surrogate(np.zeros(shown.shape[1]), math.nan, _r_squared(values[fresh], values[own][:1]), True)
    lasso = Lasso(alpha=options.alpha, tol=_TOLERANCE, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` tells of it
        lasso.fit(masks[own], values[own])
    guess = lasso.predict(masks)
    return Surrogate(
        weights=lasso.coef_ + 0.0,  # no -0.0
        fit=_r_squared(values[own], guess[own]),
        fresh=_r_squared(values[fresh], guess[fresh]),
        converged=int(lasso.n_iter_) < _ITERATIONS,
    )


def _r_squared(values: np.ndarray, guess: np.ndarray) -> float:
    """1 − Σ(y − ŷ)²/Σ(y − ȳ)², NaN where y never changes."""
    total = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((values - guess) ** 2).sum()) / total if total > 0 else math.nan


def _draw(options: AstraOptions, patches: int, count: int, index: int) -> Tensor:
    """(count, patches) bool, True where image number `index` keeps its patch."""
    return torch.from_numpy(np.random.default_rng((options.seed, index)).random((count, patches)) < options.keep)


def _masked_logits(model: Model, grid: PatchGrid, inputs: Tensor, keep: Tensor, targets: Tensor, batch: int) -> Tensor:
    """(n, masks) float64 logit of each image's target class under masks `keep` (n, masks, patches)."""
    count = keep.shape[1]
    found: list[Tensor] = []
    for rows in torch.split(torch.arange(len(keep) * count), batch):
        which = rows // count
        logits = model.logits(grid.blackened(inputs[which.to(inputs.device)], keep[which, rows % count]))
        found.append(logits.float().cpu().gather(1, targets[which][:, None])[:, 0])
    return torch.cat(found).double().view(len(keep), count)


def _positive(weights: np.ndarray, most: int) -> tuple[int, ...]:
    """The patches of largest weight, positive ones only, largest first."""
    order = np.argsort(-weights, kind="stable")[:most]
    return tuple(int(number) for number in order if weights[number] > 0)


def checked_classes(model: Model, images: Tensor, classes: Tensor, what: str) -> Tensor:
    """The classes as int64 on the CPU. Raises `WeightsmithError` unless there is one that the model has for every image."""
    if len(images) == 0:
        raise WeightsmithError(
            "there are no images to look at: the model makes no errors on this part, give --select all or "
            "another --part"
        )
    if classes.shape != (len(images),) or classes.is_floating_point():
        raise WeightsmithError(
            f"{len(images)} images need as many whole-numbered {what}, not {tuple(classes.shape)} {classes.dtype}"
        )
    classes = classes.detach().cpu().long()
    if int(classes.min()) < 0 or int(classes.max()) >= model.n_classes:
        raise WeightsmithError(
            f"the {what} name a class beyond the {model.n_classes} of {model.name}: give classes that it has"
        )
    return classes
