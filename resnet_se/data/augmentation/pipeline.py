"""Training augmentation: one description, `Augmentation`, and its two engines.

The paper (Data Augmentation) has rotation ±15°, shifts ±10 %, horizontal flip, shear
and zoom, and names random crops and colour jitter in its introduction.  Cutout is
DeVries & Taylor's (2017, arXiv 1708.04552), random erasing Zhong et al.'s (2020, arXiv
1708.04896), the alternating flip Jordan's (2024, arXiv 2404.00498).  A setting of zero
leaves its transform out.

- *torchvision*, the reference: `transforms.v2`, image by image, each image with its own
  stream, keyed by (seed, epoch, index).
- *batched*: `draw` takes the parameters of a whole epoch from (seed, epoch), one set an
  image; `apply` does a batch at once, on whatever device it is on.

Either way what an image looks like depends on (seed, epoch, index) alone: not on the
batch, the number of workers or ranks, or where a run was interrupted.  Both draw from
the same distribution, not the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from resnet_se.data.augmentation import kernels, policies
from resnet_se.utils.errors import UserError
from resnet_se.utils.random_streams import derive_seed, kept_stream, stream
from resnet_se.utils.validation import Unit, validated


@dataclass(frozen=True, eq=False)  # `==` of tensors has no single truth value
class Draws:
    """Parameters of N images, one row each; None where the transform is left out.

    Args:
        corner: (N, 2) int64, y and x of the window in the padded image, 0..2·padding.
        angle: (N,) degrees.
        shift: (N, 2) whole pixels down and to the right.
        shear: (N,) degrees along x.
        scale: (N,).
        mirror: (N,) bool.
        jitter: (N, 3) factors of brightness, contrast, saturation.
        order: (N, 3) int64, the columns of `jitter` in the order of their use.
        hole: (N, 2) int64, y and x of the pixel that the black square is centred on.
        erased: (N, 4) int64, y, x, height and width of a black rectangle.
        operations, magnitudes: (N, k), of `policies`; they stay on the CPU.
    """

    corner: Tensor | None = None
    angle: Tensor | None = None
    shift: Tensor | None = None
    shear: Tensor | None = None
    scale: Tensor | None = None
    mirror: Tensor | None = None
    jitter: Tensor | None = None
    order: Tensor | None = None
    hole: Tensor | None = None
    erased: Tensor | None = None
    operations: Tensor | None = None
    magnitudes: Tensor | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> Draws:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Draws(**{k: v if v is None else change(v) for k, v in values.items()})

    def to(self, device: torch.device) -> Draws:
        moved = self._each(lambda value: value.to(device))
        kept = {"operations": self.operations, "magnitudes": self.magnitudes}
        return replace(moved, **kept)

    def of(self, index: Tensor, on_cpu: Tensor | None = None) -> Draws:
        """The rows `index` (B,), on the device, and the same on the CPU, if apart."""

        def rows(value: Tensor) -> Tensor:
            here = on_cpu is None or value.device == index.device
            return value.index_select(0, index if here else on_cpu)

        return self._each(rows)


class Cutout(v2.Transform):
    """A black square of `side` pixels around a pixel drawn uniformly, for torchvision's
    engine; what lies outside the image is cut off."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = flat_inputs[0].shape[-2:]
        starts = [int(torch.randint(n, ())) - self.side // 2 for n in size]
        return {"hole": [slice(max(0, i), i + self.side) for i in starts]}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        rows, columns = params["hole"]
        result = inpt.clone()
        result[..., rows, columns] = 0
        return result


@validated
@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, in this order.

    Args:
        crop_padding: pixels of reflection padding before a random crop to the old size.
        rotation: largest angle, degrees, drawn from ±.
        shift: largest shift, fraction of height and width, drawn from ± each.
        shear: largest shear along x, degrees, drawn from ±.
        zoom: the scale is drawn from 1 ± zoom.
        flip: probability of a horizontal flip.
        policy: torchvision's TrivialAugment, RandAugment or AutoAugment (`policies`).
        alternate_flip: with `flip` 0.5, toss each image's coin once for the run and
            mirror it in even or in odd epochs; two epochs show each image both ways.
        jitter: brightness, contrast and saturation factors are drawn from 1 ± jitter
            and used in an order drawn as well.
        cutout: side in pixels of a black square around a pixel drawn uniformly, so that
            the border may cut part of it off.
        erase: probability of a black rectangle of 2 to 33 % of the image.
        own: any transform of uint8 (3, H, W) to the same, before all of these; what it
            draws from torch's CPU generator depends on (seed, epoch, index) alone.
        own_batch: likewise of uint8 (B, 3, H, W), before `own`; what it draws depends
            on (seed, epoch, index of the batch's first image), so on `batch_size` too.

    Pixels that an affine map (rotation to zoom) brings in from outside are black,
    Keras's `fill_mode="constant"`; a crop's are reflections.

    Raises:
        UserError: a value is out of its range.
    """

    crop_padding: Annotated[int, Field(ge=0, le=16)] = 0
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: Unit = 0.0
    shear: Annotated[float, Field(ge=0, le=89)] = 0.0
    zoom: Annotated[float, Field(ge=0, le=0.99)] = 0.0
    flip: Unit = 0.0
    alternate_flip: bool = False
    jitter: Unit = 0.0
    cutout: Annotated[int, Field(ge=0, le=512)] = 0
    policy: policies.Policy | None = None
    erase: Unit = 0.0
    own: nn.Module | None = None
    own_batch: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.alternate_flip and self.flip != 0.5:
            raise UserError(
                f"flip: expected 0.5 with alternate_flip, which shows each image both "
                f"ways, got {self.flip}"
            )

    @property
    def resamples(self) -> bool:
        """Whether there is an affine map, which reads between the pixels."""
        return any((self.rotation, self.shift, self.shear, self.zoom))

    def check(self, height: int, width: int) -> None:
        """Raises UserError where images of this size cannot be treated so."""
        side = min(height, width)
        if self.crop_padding >= side:  # there is nothing to reflect
            raise UserError(
                f"augment.crop_padding: expected less than the image's side, "
                f"{side}, got {self.crop_padding}"
            )
        if self.cutout > side:
            raise UserError(
                f"augment.cutout: expected at most the image's side, {side}, "
                f"got {self.cutout}"
            )
        if self.own is not None:
            _check_own("own", self.own, (3, height, width))
        if self.own_batch is not None:
            _check_own("own_batch", self.own_batch, (2, 3, height, width))

    # --- torchvision, image by image ---------------------------------

    def transform(self, height: int, width: int) -> v2.Transform | None:
        """The torchvision transform of uint8 (3, H, W), or None if it does nothing.

        An alternating flip is not in it, since that depends on the epoch (`mirrored`),
        and `own_batch` is for whole batches.
        Raises UserError as `check` does.
        """
        self.check(height, width)
        steps: list[nn.Module] = [] if self.own is None else [self.own]
        if self.crop_padding:
            steps.append(
                v2.RandomCrop(
                    (height, width), padding=self.crop_padding, padding_mode="reflect"
                )
            )
        if self.resamples:
            steps.append(
                v2.RandomAffine(
                    degrees=self.rotation,
                    translate=(self.shift, self.shift),
                    scale=(1 - self.zoom, 1 + self.zoom),
                    shear=self.shear or None,
                    interpolation=InterpolationMode.BILINEAR,
                    # Black as well; given as 0 it would darken the rim twice over.
                    fill=None,
                )
            )
        if self.flip and not self.alternate_flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.policy:
            steps.append(policies.transform(self.policy))
        if self.jitter:
            steps.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        if self.cutout:
            steps.append(Cutout(self.cutout))
        if self.erase:
            steps.append(v2.RandomErasing(self.erase))
        return v2.Compose(steps) if steps else None

    def mirrored(self, n: int, seed: int, epoch: int) -> Tensor:
        """(n,) bool: which of n images the alternating flip mirrors in this epoch."""
        coin = torch.rand(n, generator=stream("coin", seed)) < 0.5
        return coin ^ (epoch % 2 == 1)

    def own_at_once(self, images: Tensor, first: int, seed: int, epoch: int) -> Tensor:
        """`own_batch` of uint8 (B, 3, H, W), by the stream of its first image's index.

        Of either engine.
        """
        if self.own_batch is None:
            return images
        with kept_stream() as generator:
            generator.manual_seed(derive_seed("own_batch", seed, epoch, first))
            return self.own_batch(images)

    # --- batched -----------------------------------------------------

    def own_each(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        """`own` on each of uint8 (B, 3, H, W), by its stream; slow, but as said."""
        if self.own is None:
            return images
        with kept_stream() as generator:
            results = []
            for i, image in zip(index.tolist(), images, strict=True):
                generator.manual_seed(derive_seed("own", seed, epoch, i))
                results.append(self.own(image))
        return torch.stack(results)

    def draw(self, n: int, height: int, width: int, seed: int, epoch: int) -> Draws:
        """The parameters of n images of this size in one epoch, on the CPU.

        Each has its own stream, so a transform's draws do not depend on what else is
        done.  Raises UserError as `check` does.
        """
        self.check(height, width)

        def uniform(name: str, limit: float, columns: tuple[int, ...] = ()) -> Tensor:
            drawn = stream(name, seed, epoch)
            return (2 * torch.rand(n, *columns, generator=drawn) - 1) * limit

        def integers(name: str, *ends: int) -> Tensor:
            drawn = stream(name, seed, epoch)
            return torch.stack(
                [torch.randint(end, (n,), generator=drawn) for end in ends], dim=1
            )

        draws: dict[str, Tensor] = {}
        if self.crop_padding:
            positions = 2 * self.crop_padding + 1
            draws["corner"] = integers("corner", positions, positions)
        if self.resamples:
            draws["angle"] = uniform("angle", self.rotation)
            reach = self.shift * torch.tensor([height, width])
            draws["shift"] = (uniform("shift", 1, (2,)) * reach).round()
            draws["shear"] = uniform("shear", self.shear)
            draws["scale"] = 1 + uniform("scale", self.zoom)
        if self.alternate_flip:
            draws["mirror"] = self.mirrored(n, seed, epoch)
        elif self.flip:
            chance = torch.rand(n, generator=stream("mirror", seed, epoch))
            draws["mirror"] = chance < self.flip
        if self.jitter:
            draws["jitter"] = 1 + uniform("jitter", self.jitter, (3,))
            draws["order"] = uniform("order", 1, (3,)).argsort(dim=1)
        if self.cutout:
            draws["hole"] = integers("hole", height, width)
        if self.erase:
            drawn = stream("erase", seed, epoch)
            draws["erased"] = kernels.rectangles(n, height, width, self.erase, drawn)
        if self.policy:
            draws["operations"], draws["magnitudes"] = policies.draw(
                self.policy, n, height, width, stream("policy", seed, epoch)
            )
        return Draws(**draws)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 (B, 3, H, W) and their parameters → float32 (B, 3, H, W) in 0..255.

        Everything stays on the images' device and nothing waits for it.  Not rounded:
        torchvision rounds to whole levels after each transform.
        """
        mirror = draws.mirror
        if self.resamples:
            if self.crop_padding:
                images = kernels.window(images, draws.corner, self.crop_padding, None)
            moved = draws.angle, draws.shear, draws.scale, draws.shift
            x = kernels.resample(images.float(), *moved, mirror)
        elif self.crop_padding or mirror is not None:
            x = kernels.window(images, draws.corner, self.crop_padding, mirror).float()
        else:
            x = images.float()
        if self.policy:
            levels = x.round().to(torch.uint8)
            x = policies.apply(levels, draws.operations, draws.magnitudes).float()
        if self.jitter:
            kernels.jitter_(x, draws.jitter, draws.order)
        if self.cutout:
            kernels.cut_(
                x, draws.hole - self.cutout // 2, draws.hole.new_tensor(self.cutout)
            )
        if self.erase:
            kernels.cut_(x, *draws.erased.split(2, dim=1))
        return x


def _check_own(name: str, own: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises UserError unless uint8 images come back as uint8 of their shape."""
    where = f"augment.{name}: {type(own).__name__}"
    try:
        with kept_stream():
            result = own(torch.zeros(shape, dtype=torch.uint8))
    except Exception as error:
        raise UserError(f"{where} fails on uint8 {shape}: {error}") from error
    dtype, size = (getattr(result, part, None) for part in ("dtype", "shape"))
    if dtype != torch.uint8 or size != shape:
        got = f"{dtype} {tuple(size)}" if dtype and size else type(result).__name__
        raise UserError(f"{where}: expected torch.uint8 {shape} back, got {got}")
