"""Laws of test-time augmentation: an explicit loop, index arithmetic, rot90."""

import pytest
import torch
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from resnet_se.models.tta import TTA, View
from resnet_se.utils.errors import UserError

SHIFTS = [(2, 0), (-2, 0), (0, 3), (0, -3), (1, -2), (-3, 1)]


@pytest.fixture
def images():
    return torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def test_tta_is_the_mean_softmax_over_an_explicit_loop(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 7, 4)).requires_grad_(False)
    views = [{}, {"flip": True}, {"shift": [1, -2]}, {"rotation": 10.0}]
    views.append({"flip": True, "shift": [2, 0], "rotation": -5})
    probabilities = TTA(views)(net, images)
    logits = [net(View()(images)), net(View(flip=True)(images))]
    logits += [net(View(shift=(1, -2))(images)), net(View(rotation=10.0)(images))]
    logits.append(net(View(True, (2, 0), -5.0)(images)))
    expected = torch.stack([x.exp() / x.exp().sum(1, keepdim=True) for x in logits])
    torch.testing.assert_close(probabilities, expected.mean(0))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_known_logits_spare_the_plain_image(images):
    def net(x):
        seen.append(x)
        return x.flatten(1)[:, :5]

    tta = TTA([{}, {"flip": True}])
    seen = []
    expected = tta(net, images)
    assert torch.equal(tta(net, images, net(images)), expected)
    assert len(seen) == 2 + 1 + 1


def test_probabilities_are_float32_whatever_the_network_gives(images):
    def net(x):
        return x.flatten(1)[:, :5].bfloat16()

    probabilities = TTA([{}])(net, images)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, net(images).float().softmax(1))


def test_identity_and_flip(images):
    assert torch.equal(View()(images), images)
    mirror = torch.stack([images[..., 6 - x] for x in range(7)], dim=-1)
    assert torch.equal(View(flip=True)(images), mirror)


@pytest.mark.parametrize("shift", SHIFTS)
def test_shift_moves_right_and_down_and_reflects(images, shift):
    dx, dy = shift

    def reflected(i, n):  # … 2 1 | 0 1 2 … n−1 | n−2 …
        i = abs(i)
        return 2 * (n - 1) - i if i >= n else i

    rows = [reflected(y - dy, 9) for y in range(9)]
    columns = [reflected(x - dx, 7) for x in range(7)]
    expected = images[..., rows, :][..., columns]
    assert torch.equal(View(shift=shift)(images), expected)


@pytest.mark.parametrize("shift", SHIFTS)
def test_opposite_shifts_cancel_inside_the_border(images, shift):
    dx, dy = shift
    there_and_back = View(shift=(-dx, -dy))(View(shift=shift)(images))
    inside = (..., slice(3, -3), slice(3, -3))
    assert torch.equal(there_and_back[inside], images[inside])


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
def test_quarter_turns_are_rot90(quarters):
    square = torch.rand(2, 3, 8, 8)
    result = View(rotation=90.0 * quarters)(square)
    torch.testing.assert_close(result, square.rot90(quarters, (2, 3)))


@pytest.mark.parametrize("degrees", [5.0, -20.0, 180.0])
def test_rotation_is_torchvisions_off_the_border(degrees):
    images = torch.rand(2, 3, 21, 33)  # sides of a ratio that must not distort it
    expected = rotate(images, degrees, InterpolationMode.BILINEAR)
    inside = (..., slice(8, -8), slice(8, -8))
    result = View(rotation=degrees)(images)
    torch.testing.assert_close(result[inside], expected[inside], atol=1e-4, rtol=0)


def test_rotation_keeps_a_constant_image():
    grey = torch.full((1, 3, 9, 7), 0.25)  # nothing dark moves in from outside
    torch.testing.assert_close(View(rotation=30.0)(grey), grey)


def test_flip_comes_before_the_shift(images):
    both = View(flip=True, shift=(2, 1))(images)
    assert torch.equal(both, View(shift=(2, 1))(images.flip(-1)))


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ([], "views: expected a non-empty list"),
        ([{}, {"flp": True}], r"views\[1\]: unknown key 'flp'; did you mean 'flip'"),
        ([{"shift": [1]}], r"views\[0\].shift: expected a list of 2"),
        ([{"shift": 3}], r"views\[0\]"),
        ([{"shift": ["a", 0]}], r"views\[0\].*a"),
        ([{"rotation": "left"}], r"views\[0\].*left"),
        ([{"shift": [0.5, 0]}], r"views\[0\].*0.5"),  # not cut off to 0
        ([{"flip": "no"}], r"views\[0\].*no"),  # which is not true
        ([None], r"views\[0\]"),
    ],
)
def test_impossible_view_is_refused(views, words):
    with pytest.raises(UserError, match=words):
        TTA(views)
