"""A saved configuration of others: bounded before it is read, its texts only texts."""

import pytest

from resnet_se.config.recipe import MOST_VALUES, saved_config
from resnet_se.config.targets import build_target
from resnet_se.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"notes: [{'a,' * (MOST_VALUES + 1)}]", "at most 50,000 values"),
        (f"notes: {'a' * (1 << 20)}", "at most 1 MB"),
        (f"model:\n  widths: [8, {10**30}]", "model.widths.1: expected .* 64 bits"),
        ("seed: 0x" + "f" * 17, "seed: expected a number of at most 64 bits"),
        ("a: &a [1]\nb: *a", "references, or more than 64 levels"),
        ("[" * 65 + "]" * 65, "references, or more than 64 levels"),
    ],
)
def test_a_configuration_beyond_all_bounds_is_refused(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        saved_config(tmp_path)
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize("root", ["${oc.env:HOME}", "a${b}", r"a\${b}", "${nope"])
def test_a_text_of_a_saved_configuration_refers_to_nothing(root):
    node = {"_target_": "resnet_se.data.sources.CIFAR10", "root": root}
    with pytest.raises(UserError, match=r"source\.root: expected a plain value"):
        build_target("data.source", node)
