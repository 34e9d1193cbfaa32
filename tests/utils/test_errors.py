"""A wrong name gets the nearest valid one."""

import pytest
from hydra.errors import InstantiationException

from resnet_se.config.messages import explain
from resnet_se.utils.errors import UserError, nearest


def test_nearest_name_else_all():
    assert nearest("cosin", ["cosine", "constant"]) == "did you mean 'cosine'?"
    assert nearest("xyz", ["b", "a"]) == "valid choices: a, b"
    assert nearest("xyz", []) == "valid choices: (none)"


def test_a_key_that_the_cause_knows_is_said_once():
    error = InstantiationException("Error in call\nfull_key: data.source")
    for message in ("data.source.num_test: expected 10", "num_test: expected 10"):
        error.__cause__ = UserError(message)
        assert explain(error) == "data.source.num_test: expected 10"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("modle", "model"), ("maximum", "max"), ("plost", "plots"), ("loss", None)],
)
def test_a_hint_names_what_is_near_alone(name, meant):
    hint = nearest(name, ["max", "model", "plots"])
    assert hint == (f"did you mean {meant!r}?" if meant else hint)
    assert (meant is None) == hint.startswith("valid choices")
