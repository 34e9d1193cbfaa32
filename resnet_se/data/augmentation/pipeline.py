"""`Augmentation`: one description of training augmentation, and its two engines.

The paper (Data Augmentation) has rotation ±15°, shifts ±10 %, horizontal flip, shear
and zoom, and names random crops and colour jitter in its introduction.  The alternating
flip is Jordan's (2024, arXiv 2404.00498).  A setting of zero leaves its transform out.

- *torchvision*, the reference: `transforms.v2`, image by image, each image with its own
  stream, keyed by (seed, epoch, index).
- *batched*: `draw` takes the parameters of a whole epoch from (seed, epoch), one set an
  image; `apply` does a batch at once, on whatever device it is on.

Either way an augmented image depends on (seed, epoch, index) alone: not on the batch,
the number of workers or ranks, or where a run was interrupted.  Both draw from the same
distribution, not the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from resnet_se.data.augmentation import policies
from resnet_se.data.augmentation.colour import JitterDraws, jitter_
from resnet_se.data.augmentation.custom import check_custom
from resnet_se.data.augmentation.draws import Draws
from resnet_se.data.augmentation.erasing import Cutout, erase_, sample_boxes
from resnet_se.data.augmentation.geometry import (
    AffineOrder,
    AffineRanges,
    Fill,
    RandomAffine,
    crop_flip,
    resample,
)
from resnet_se.utils.errors import UserError
from resnet_se.utils.random_streams import stream
from resnet_se.utils.validation import Unit, validated


@validated
@dataclass(frozen=True)
class Augmentation:
    """Transforms of a training image, in this order.

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
        fill: of pixels that the affine map (rotation to zoom) brings in from outside:
            `black`, Keras's `fill_mode="constant"`; `nearest`, its default; `reflect`.
            A crop's are reflections.
        zoom_axes: 1 draws one zoom for both axes, 2 one for each, as Keras.
        whole_shifts: round shifts to whole pixels; Keras does not.
        affine: order and shear of torchvision, or of `keras`, where the shift comes
            before the rotation and a zoom above 1 shrinks (`geometry.resample`).
        own: any transform of uint8 (3, H, W) to the same, before all of these; what it
            draws from torch's CPU generator depends on (seed, epoch, index) alone.
        own_batch: likewise of uint8 (B, 3, H, W), before `own`; what it draws depends
            on (seed, epoch, index of the batch's first image), so on `batch_size` too.

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
    fill: Fill = "black"
    zoom_axes: Literal[1, 2] = 1
    whole_shifts: bool = True
    affine: AffineOrder = "torchvision"
    own: Callable[[Tensor], Tensor] | None = None
    own_batch: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.alternate_flip and self.flip != 0.5:
            raise UserError(
                f"flip: expected 0.5 with alternate_flip, which shows each image both "
                f"ways, got {self.flip}"
            )

    @property
    def resamples(self) -> bool:
        """True with an affine map, which reads between the pixels."""
        return any((self.rotation, self.shift, self.shear, self.zoom))

    @property
    def _ranges(self) -> AffineRanges:
        ranges = self.rotation, self.shift, self.shear, self.zoom
        return AffineRanges(*ranges, self.zoom_axes, self.whole_shifts, self.affine)

    def check(self, height: int, width: int) -> None:
        """Raise UserError where images of this size cannot be treated so."""
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
            check_custom("own", self.own, (3, height, width))
        if self.own_batch is not None:
            check_custom("own_batch", self.own_batch, (2, 3, height, width))

    def mirrored(self, n: int, seed: int, epoch: int) -> Tensor:
        """Return (n,) bool: the images that the alternating flip mirrors this epoch."""
        coin = torch.rand(n, generator=stream("coin", seed)) < 0.5
        return coin ^ (epoch % 2 == 1)

    # --- torchvision, image by image ---------------------------------

    def transform(self, height: int, width: int) -> v2.Transform | None:
        """Return the torchvision transform of uint8 (3, H, W); None if it does nothing.

        An alternating flip is not in it, since that depends on the epoch (`mirrored`),
        and `own_batch` is for whole batches.

        Raises:
            UserError: as `check`.
        """
        self.check(height, width)
        steps: list[Callable[..., Any]] = [] if self.own is None else [self.own]
        if self.crop_padding:
            steps.append(
                v2.RandomCrop(
                    (height, width), padding=self.crop_padding, padding_mode="reflect"
                )
            )
        ranges = self._ranges
        plain = AffineRanges(self.rotation, self.shift, self.shear, self.zoom)
        if self.resamples and (ranges != plain or self.fill != "black"):
            steps.append(RandomAffine(ranges, self.fill))
        elif self.resamples:
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

    # --- batched -----------------------------------------------------

    def draw(self, n: int, height: int, width: int, seed: int, epoch: int) -> Draws:
        """Return the parameters of n images of this size in one epoch, on the CPU.

        Each has its own stream, so a transform's draws do not depend on what else is
        done.

        Raises:
            UserError: as `check`.
        """
        self.check(height, width)

        def uniform(name: str, limit: float, columns: tuple[int, ...] = ()) -> Tensor:
            generator = stream(name, seed, epoch)
            return (2 * torch.rand(n, *columns, generator=generator) - 1) * limit

        def integers(name: str, *ends: int) -> Tensor:
            generator = stream(name, seed, epoch)
            return torch.stack(
                [torch.randint(end, (n,), generator=generator) for end in ends], dim=1
            )

        origin = affine = mirror = policy = jitter = center = erased = None
        if self.crop_padding:
            positions = 2 * self.crop_padding + 1
            origin = integers("corner", positions, positions)
        if self.resamples:
            affine = self._ranges.draw(n, height, width, uniform)
        if self.alternate_flip:
            mirror = self.mirrored(n, seed, epoch)
        elif self.flip:
            mirror = torch.rand(n, generator=stream("mirror", seed, epoch)) < self.flip
        if self.policy:
            generator = stream("policy", seed, epoch)
            policy = policies.draw(self.policy, n, height, width, generator)
        if self.jitter:
            factors = 1 + uniform("jitter", self.jitter, (3,))
            jitter = JitterDraws(factors, uniform("order", 1, (3,)).argsort(dim=1))
        if self.cutout:
            center = integers("hole", height, width)
        if self.erase:
            generator = stream("erase", seed, epoch)
            erased = sample_boxes(n, height, width, self.erase, generator)
        return Draws(origin, affine, mirror, policy, jitter, center, erased)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Return uint8 (B, 3, H, W), augmented by their draws, as float32 in 0..255.

        Everything stays on the images' device and nothing waits for it.  Not rounded:
        torchvision rounds to whole levels after each transform.
        """
        origin, mirror = draws.crop_origin, draws.mirror
        if draws.affine is not None:
            if origin is not None:
                images = crop_flip(images, origin, self.crop_padding, None)
            x = resample(images.float(), draws.affine, mirror, self.fill, self.affine)
        elif origin is not None or mirror is not None:
            x = crop_flip(images, origin, self.crop_padding, mirror).float()
        else:
            x = images.float()
        if draws.policy is not None:
            x = policies.apply(x.round().to(torch.uint8), *draws.policy).float()
        if draws.jitter is not None:
            jitter_(x, draws.jitter)
        if draws.cutout_center is not None:
            side = draws.cutout_center.new_tensor(self.cutout)
            erase_(x, draws.cutout_center - self.cutout // 2, side)
        if draws.erased is not None:
            erase_(x, *draws.erased.split(2, dim=1))
        return x
