"""A wrong name gets the nearest valid one."""

from resnet_se.errors import nearest


def test_nearest_name_else_all():
    assert nearest("cosin", ["cosine", "constant"]) == "did you mean 'cosine'?"
    assert nearest("xyz", ["b", "a"]) == "valid choices: a, b"
    assert nearest("xyz", []) == "valid choices: (none)"
