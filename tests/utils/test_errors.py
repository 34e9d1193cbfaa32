"""A wrong name gets the nearest valid one."""

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
