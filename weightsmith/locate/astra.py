"""Which patches speak for a class, and steering away from what they say: ASTRA, carried over to image classifiers.

Wang, Wang and Zhang, "Steering Away from Harm: An Adaptive Approach to Defending Vision Language Model Against
Jailbreaks", CVPR 2025 (arXiv 2411.16721). Three steps there and here:

1. `attribute`: y(z) ≈ w·z + b by Lasso over random masks z ∈ {0, 1}^patches; the patches of largest w are the evidence.
2. `steering`: v = mean over images of h(image) − h(image without its evidence), at every block l.
3. `Steering.on`: h ← h − s · ‖h‖ · clip(cos(h − h₀, v), 0, 1) · v/‖v‖.

| paper | here |
|---|---|
| adversarial image | misclassified image |
| log-probability of an affirmative answer, y | logit of the target class, `targets`: the wrong class that the model gives |
| visual tokens blacked out at random, 32 to 96 times | `AstraOptions.masks`, each patch kept with probability `keep` |
| surrogate's sparse weights, w | `Attribution.weights` |
| top k tokens | `Attribution.top`, those of positive weight only, `AstraOptions.top` at most |
| steering vector, v^l | `Steering.vectors` |
| calibration activation, h₀^l | `Steering.centres` |
| steering coefficient, α | `strength` (`alpha` is the Lasso's penalty) |

Deviations. The target is one logit, not the likelihood of a text. Blacked-out patches are exactly those that the network
embeds. The images are natural errors, not attacks, so v mixes classes where the targets are mixed: attribute and steer by
target class if it matters. h is read and steered at CLS, where the paper takes the last token of the prompt and then every
token that is generated. An image without a patch of positive weight is left out of v, which it would only shorten.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from weightsmith.errors import WeightsmithError, did_you_mean
from weightsmith.files import atomic_path, read_tensors
from weightsmith.models import Model, patch, record
from weightsmith.progress import progress
from weightsmith.site import Site

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Steering strengths that `steered` tries, as shares of ‖h‖."""
TOKENS = ("cls", "patches")

_ATTRIBUTION = "weightsmith-attribution-1"
_STEERING = "weightsmith-steering-1"
_FRESH = 16
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
                raise WeightsmithError(f"--{name} must be at least {least}, not {value}")


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
            "format": _ATTRIBUTION,
            "samples": list(self.samples),
            "top": [list(patches) for patches in self.top],
            "uninformative": list(self.uninformative),
            "info": self.info,
        }
        tensors = {name: getattr(self, name).contiguous() for name in ("targets", "weights", "fit", "fit_fresh")}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"weightsmith": json.dumps(header)})

    @classmethod
    def load(cls, path: Path | str) -> Attribution:
        """Read what `save` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
        header, tensors = read_tensors(path, _ATTRIBUTION)
        return cls(
            samples=tuple(header["samples"]),
            top=tuple(tuple(patches) for patches in header["top"]),
            uninformative=tuple(header["uninformative"]),
            info=header["info"],
            **tensors,
        )


@dataclass(frozen=True, eq=False)
class Steering:
    """Directions in the residual stream that carry evidence for the attributed classes, and how to move against them.

    Attributes:
        layers: blocks whose output was measured.
        vectors: v, (layers, width), from the blacked-out towards the full images.
        centres: h₀, (layers, width), mean over the calibration images.
        tokens: where h is read and steered: "cls", or "patches" (v and h₀ are means over them, each is steered by itself).
        info: how it was measured; JSON values only.
    """

    layers: tuple[int, ...]
    vectors: Tensor
    centres: Tensor
    tokens: str = "cls"
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.layers) or self.centres.shape != self.vectors.shape:
            raise WeightsmithError(
                f"steering of {len(self.layers)} layers needs vectors and centres (layers, width), "
                f"not {tuple(self.vectors.shape)} and {tuple(self.centres.shape)}"
            )
        _check_tokens(self.tokens)

    def site(self, layer: int) -> Site:
        """Where h is read and steered in a block. Raises `WeightsmithError` for a block without a vector."""
        if layer not in self.layers:
            raise WeightsmithError(
                f"--layers names layer {layer}: there are steering vectors of {_listed(self.layers)}"
            )
        return Site("resid.out", layer, tokens=self.tokens)

    def moved(self, hidden: Tensor, layer: int, strength: float) -> Tensor:
        """Steered activations h − s · ‖h‖ · clip(cos(h − h₀, v), 0, 1) · v/‖v‖; h itself where the cosine is not positive.

        Args:
            hidden: h (..., width) at `site(layer)`.
            strength: s, 0 or more; at 1 an activation that points along v from h₀ loses its own length along v.

        Raises:
            WeightsmithError: a block without a vector, another width, a strength below 0 or not finite.
        """
        self.site(layer)
        if not (strength >= 0 and math.isfinite(strength)):
            raise WeightsmithError(f"--strengths must be numbers from 0, not {strength:g}")
        if hidden.shape[-1] != self.vectors.shape[1]:
            raise WeightsmithError(
                f"the steering vectors have width {self.vectors.shape[1]} and the model {hidden.shape[-1]}: "
                "measure them on this model"
            )
        if strength == 0:
            return hidden
        h = hidden.to(torch.promote_types(hidden.dtype, torch.float32))  # half precision has no digits for a cosine
        place = self.layers.index(layer)
        v, centre = (tensor[place].to(h) for tensor in (self.vectors, self.centres))
        cosine = F.cosine_similarity(h - centre, v, dim=-1)[..., None].clamp(0, 1)
        step = strength * h.norm(dim=-1, keepdim=True) * cosine * F.normalize(v, dim=0)
        return torch.where(cosine > 0, h - step, h).to(hidden.dtype)

    @contextmanager
    def on(self, model: Model, layer: int, strength: float) -> Iterator[None]:
        """Steer every forward pass inside the block at one layer; the model itself stays as it is.

        Raises:
            WeightsmithError: as `moved`; a layer or tokens that the model has not; no pass inside the block.
        """
        with patch(model, {self.site(layer): lambda hidden: self.moved(hidden, layer, strength)}):
            yield

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, atomically."""
        header = {"format": _STEERING, "layers": list(self.layers), "tokens": self.tokens, "info": self.info}
        tensors = {"vectors": self.vectors.contiguous(), "centres": self.centres.contiguous()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"weightsmith": json.dumps(header)})

    @classmethod
    def load(cls, path: Path | str) -> Steering:
        """Read what `save` wrote. Raises `WeightsmithError` for a missing or damaged file or another format."""
        header, tensors = read_tensors(path, _STEERING)
        return cls(tuple(header["layers"]), tensors["vectors"], tensors["centres"], header["tokens"], header["info"])


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
    grid = _Grid.of(model)
    targets = _checked_classes(model, images, targets, "targets")
    if len(names) != len(images):
        raise WeightsmithError(f"{len(images)} images were given {len(names)} names: give one an image")
    count = options.masks + _FRESH
    group = max(1, options.batch // count)
    fits: list[_Surrogate] = []
    with progress("attributing", len(images)) as advance:
        for start in range(0, len(images), group):
            members = range(start, min(start + group, len(images)))
            keep = torch.stack([_draw(options, grid.patches, count, index) for index in members])
            inputs = model.preprocess(images[start : start + group], model.device)
            logits = _masked_logits(model, grid, inputs, keep, targets[start : start + group], options.batch)
            for index, shown, values in zip(members, keep.numpy(), logits.numpy(), strict=True):
                if not np.isfinite(values).all():
                    raise WeightsmithError(
                        f"the logits of {names[index]} are not finite under some mask: the model overflows"
                    )
                fits.append(_surrogate(shown, values, options))
            advance(len(members))
    weights = np.stack([fit.weights for fit in fits])
    top = tuple(_positive(row, options.top) for row in weights)
    info = {
        "model": model.name,
        "options": asdict(options),
        "fresh_masks": _FRESH,
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
def steering(
    model: Model,
    images: Tensor,
    attribution: Attribution,
    calibration: Tensor,
    layers: Sequence[int] | None = None,
    tokens: str = "cls",
    batch: int = 64,
) -> Steering:
    """Steering vectors and centres of the residual stream behind each block (module docstring, 2).

    Args:
        images: (n, channels, height, width) uint8, the attributed ones in the same order.
        calibration: (m, channels, height, width) uint8, images as the model usually meets them; right ones, say.
        layers: blocks; None takes all.
        tokens: "cls" or "patches".

    Raises:
        WeightsmithError: images that are not the attributed ones, no calibration images, no image with evidence, a layer
            or tokens that there are not, a model without patch tokens.
    """
    grid = _Grid.of(model)
    chosen = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    model.check_layers(chosen, "--layers")
    _check_tokens(tokens)
    _check_batch(batch)
    if len(images) != len(attribution.samples) or grid.patches != attribution.weights.shape[1]:
        raise WeightsmithError(
            f"the attribution is of {len(attribution.samples)} images with {attribution.weights.shape[1]} patches, and "
            f"{len(images)} with {grid.patches} were given: give the images and the model that were attributed"
        )
    if len(calibration) == 0:
        raise WeightsmithError(
            "there are no calibration images to centre activations on: give some that the model gets right"
        )
    used = [place for place, patches in enumerate(attribution.top) if patches]
    if not used:
        raise WeightsmithError(
            "no patch of any image speaks for its target class, so there is nothing to steer away from: "
            "give more --masks or a smaller --alpha"
        )
    keep = torch.ones(len(used), grid.patches, dtype=torch.bool)
    for row, place in enumerate(used):
        keep[row, list(attribution.top[place])] = False
    sites = [Site("resid.out", layer, tokens=tokens) for layer in chosen]
    changes: list[Tensor] = []
    means: list[Tensor] = []
    with progress("steering vectors", len(used) + len(calibration)) as advance:
        for rows in torch.split(torch.arange(len(used)), batch):
            inputs = model.preprocess(images[[used[row] for row in rows.tolist()]], model.device)
            without = grid.blackened(inputs, keep[rows])
            changes.append(_streams(model, inputs, sites) - _streams(model, without, sites))
            advance(len(rows))
        for pixels in torch.split(calibration, batch):
            means.append(_streams(model, model.preprocess(pixels, model.device), sites))
            advance(len(pixels))
    info = {
        "model": model.name,
        "samples": [attribution.samples[place] for place in used],
        "calibration_images": len(calibration),
        "attribution": attribution.info,
    }
    return Steering(
        layers=chosen,
        vectors=(torch.stack(changes).sum(0) / len(used)).float(),
        centres=(torch.stack(means).sum(0) / len(calibration)).float(),
        tokens=tokens,
        info=info,
    )


@torch.no_grad()
def steered(
    model: Model,
    images: Tensor,
    targets: Tensor,
    labels: Tensor,
    steering: Steering,
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    batch: int = 64,
) -> list[dict[str, Any]]:
    """What steering does to images at every layer and strength; choose both on validation images, right and wrong ones.

    The pass without steering is made once; each setting restarts behind its own layer, with the result of `Steering.on`.

    Args:
        images: (n, channels, height, width) uint8.
        targets: (n,) the classes to steer away from; labels: (n,) the right ones.
        layers: blocks; None takes all that there are vectors of.
        strengths: s, of each layer in turn.

    Returns:
        One row a layer and strength: layer, strength, target_probability (mean), target_share (of images that are given
        their target class), accuracy (share given their label), n.

    Raises:
        WeightsmithError: no images, targets or labels that do not fit them, a layer without vectors, a bad strength.
    """
    targets = _checked_classes(model, images, targets, "targets")
    labels = _checked_classes(model, images, labels, "labels")
    chosen = steering.layers if layers is None else tuple(layers)
    model.check_layers(chosen, "--layers")
    _check_batch(batch)
    if not strengths:
        raise WeightsmithError("--strengths names no strength: give at least one number from 0")
    bounds = [model.bind(steering.site(layer)) for layer in chosen]
    streams = [Site("resid.out", layer) for layer in chosen]
    sums = torch.zeros(len(chosen), len(strengths), 3, dtype=torch.float64)
    with progress("steering", len(images)) as advance:
        for rows in torch.split(torch.arange(len(images)), batch):
            runs = record(model, model.preprocess(images[rows], model.device), streams)
            for i, layer in enumerate(chosen):
                stream = runs[streams[i]]
                for j, strength in enumerate(strengths):
                    new = steering.moved(bounds[i].read(stream), layer, strength)
                    logits = model.run_from(layer + 1, bounds[i].write(stream, new)).float().cpu()
                    sums[i, j] += _scores(logits, targets[rows], labels[rows])
            advance(len(rows))
    means = (sums / len(images)).tolist()
    return [
        {
            "layer": layer,
            "strength": float(strength),
            "target_probability": means[i][j][0],
            "target_share": means[i][j][1],
            "accuracy": means[i][j][2],
            "n": len(images),
        }
        for i, layer in enumerate(chosen)
        for j, strength in enumerate(strengths)
    ]


@dataclass(frozen=True, eq=False)
class _Grid:
    """The patches of a network on the image that it reads.

    Attributes:
        side: patches along a side; pixels: of a patch along a side.
        black: (1, channels, 1, 1) what a black pixel is after preprocessing.
    """

    side: int
    pixels: int
    black: Tensor

    @classmethod
    def of(cls, model: Model) -> _Grid:
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
        beyond = (
            inputs.shape[-1] - shown.shape[-1]
        )  # pixels at the end that fill no patch; the network does not read them
        return torch.where(F.pad(shown, (0, beyond, 0, beyond), value=True), inputs, self.black)


@dataclass(frozen=True, eq=False)
class _Surrogate:
    """The linear stand-in of one image: weights (patches,), R² on its own and on fresh masks."""

    weights: np.ndarray
    fit: float
    fresh: float
    converged: bool


def _surrogate(shown: np.ndarray, values: np.ndarray, options: AstraOptions) -> _Surrogate:
    """Fit the first `options.masks` of the masks `shown` (masks, patches) to logits (masks,), test on the others."""
    scaler = StandardScaler().fit(shown[: options.masks].astype(np.float64))
    masks = scaler.transform(shown.astype(np.float64))
    own, fresh = slice(None, options.masks), slice(options.masks, None)
    if np.ptp(values[own]) == 0:  # the Lasso's stopping rule is relative to the variance and would never be met
        return _Surrogate(np.zeros(shown.shape[1]), math.nan, _r_squared(values[fresh], values[own][:1]), True)
    lasso = Lasso(alpha=options.alpha, tol=_TOLERANCE, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` tells of it
        lasso.fit(masks[own], values[own])
    guess = lasso.predict(masks)
    return _Surrogate(
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


def _masked_logits(model: Model, grid: _Grid, inputs: Tensor, keep: Tensor, targets: Tensor, batch: int) -> Tensor:
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


def _streams(model: Model, inputs: Tensor, sites: Sequence[Site]) -> Tensor:
    """(sites, width) float64 sum over images of each site's mean over its tokens."""
    run = record(model, inputs, sites)
    return torch.stack([run[site].cpu().double().mean(1).sum(0) for site in sites])


def _scores(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """(3,) float64 sums over images: probability of the target, target given, label given."""
    given = logits.argmax(-1)
    probability = logits.double().softmax(-1).gather(1, targets[:, None])
    return torch.stack([probability.sum(), (given == targets).sum(), (given == labels).sum()])


def _checked_classes(model: Model, images: Tensor, classes: Tensor, what: str) -> Tensor:
    """The classes as int64 on the CPU. Raises `WeightsmithError` unless there is one that the model has for every image."""
    if len(images) == 0:
        raise WeightsmithError("there are no images to look at: the model makes no errors on this part")
    if classes.shape != (len(images),) or classes.is_floating_point():
        raise WeightsmithError(
            f"{len(images)} images need as many whole-numbered {what}, not {tuple(classes.shape)} {classes.dtype}"
        )
    classes = classes.detach().cpu().long()
    if int(classes.min()) < 0 or int(classes.max()) >= model.n_classes:
        raise WeightsmithError(f"the {what} name a class beyond the {model.n_classes} of {model.name}")
    return classes


def _check_tokens(tokens: str) -> None:
    if tokens not in TOKENS:
        raise WeightsmithError(f"--tokens {tokens} cannot be steered: {did_you_mean(str(tokens), TOKENS)}")


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise WeightsmithError(f"--batch must be at least 1, not {batch}")


def _listed(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(str(layer) for layer in layers)}"
