"""A network is converted once."""

import pytest
from torch import nn

import maskcl
from maskcl.nn import ConversionError, to_hat, to_importance, to_piggyback
from tests import tiny

CONVERT = {
    "to_hat": lambda model: to_hat(model, 2, tiny.samples(0)[0], classes=[2, 2]),
    "to_piggyback": lambda model: to_piggyback(model, 2, classes=[2, 2]),
    "to_importance": lambda model: to_importance(model, 2, classes=[2, 2]),
}


@pytest.mark.parametrize("second", CONVERT)
@pytest.mark.parametrize("first", CONVERT)
def test_a_network_its_model_and_what_holds_it_are_refused(first, second):
    net = CONVERT[first](tiny.mlp())
    for model in (net, net.model, nn.Sequential(net)):
        with pytest.raises(ConversionError, match=rf"{second}: .* has its tasks already"):
            CONVERT[second](model)
    assert isinstance(net, maskcl.nn.TaskNetwork)
    assert net.num_tasks == 2


@pytest.mark.parametrize("name", CONVERT)
def test_what_to_plain_makes_can_be_converted_again(name):
    net = CONVERT["to_importance"](tiny.mlp())
    net.finish_task(0)
    CONVERT[name](maskcl.nn.to_plain(net, 0))


@pytest.mark.parametrize("name", CONVERT)
def test_a_layer_that_has_no_shape_yet_is_named(name):
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ConversionError, match=r"module '0' \(LazyLinear\) has no shape yet: run"):
        CONVERT[name](model)
