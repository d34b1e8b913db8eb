"""A training step can be captured into a CUDA graph: once warm, the host reads nothing of the
device's, sends it nothing but what a graph replays, and writes no number of its own into it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import launches, training_steps
from maskcl import backends
from tests.cuda.emulator import device

MLP, RESNET, _ = training_steps.NETWORKS
STEPS = [("HAT", MLP), ("HAT", RESNET), ("Piggyback", MLP), ("Piggyback", RESNET), ("MAS", MLP)]
# The first row waits for the device, in the second sizes depend on values, in the third a tensor is
# made of numbers of the host's.
FORBIDDEN = {"item", "_local_scalar_dense", "is_nonzero", "equal"}
FORBIDDEN |= {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
FORBIDDEN |= {"lift_fresh", "lift_fresh_copy", "scalar_tensor", "_pin_memory"}


class Watch(launches.Count):
    """Raises where a step does what cannot be captured."""

    def _torch(self, func, name):
        assert name not in FORBIDDEN, f"{func} cannot be captured into a CUDA graph"
        super()._torch(func, name)


def _refuse(*_args, **_kwargs):
    raise AssertionError("the host reads a tensor")


@pytest.mark.parametrize("backend", launches.BACKENDS)
@pytest.mark.parametrize(("method", "network"), STEPS)
def test_a_warm_step_can_be_captured(method, network, backend, monkeypatch):
    pytest.importorskip("triton.language", reason="Triton is not installed")
    device.set_order("forward")
    setting = training_steps.Setting(network)
    step = training_steps.masked(method, setting)
    x, y = setting.data()
    mode = Watch(backend)
    with backends.use_backend("cuda"):
        for _ in range(2):
            step(x, y)
    if backend == "triton":  # its launchers are warm once they have run
        with launches.recorded(mode.found), launches.Count("triton"):
            step(x, y)
    for name in ("cpu", "numpy", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, name, _refuse)
    taken = launches.recorded(mode.found) if backend == "triton" else backends.use_backend("cuda")
    with taken, mode:
        step(x, y)
    assert mode.found


def test_what_cannot_be_captured_is_seen():
    x = torch.ones(3)
    for wrong in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: torch.tensor([1.0])):
        with pytest.raises(AssertionError, match="captured"), Watch("cuda"):
            wrong()
