"""What a machine with two GPUs, or an old one, would show: devices, streams, code for others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from maskcl import reference, schemas
from tests.cuda.emulator import device
from tests.ops.test_contract import sample_inputs

# Launch nothing of their own: cuBLAS and cuDNN refuse what is on another device.
VENDORS = [name for name in schemas.STEM_OF if name.startswith("open_")]
OURS = [name for name in schemas.STEM_OF if name not in VENDORS]


def arguments_of(name):
    made = sample_inputs(name, torch.float32, "cpu", False)
    return tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, made)


def call(name, arguments):
    return getattr(torch.ops.maskcl, name)(*arguments)


@pytest.mark.parametrize("name", OURS)
def test_kernels_run_on_the_device_of_their_tensors(name):
    """A launch on a stream of another device than the current one is refused."""
    launches = sum(device.launches().values())
    with device.devices(current=0, of_tensors=1):
        call(name, arguments_of(name))
    assert sum(device.launches().values()) > launches


def tensors_of(name):
    """Arguments of an op, and the first tensor of each but the first."""
    arguments = arguments_of(name)
    lists = [[t for t in tree_leaves(a) if isinstance(t, Tensor)] for a in arguments]
    return arguments, [tensors[0] for tensors in lists if tensors][1:]


@pytest.mark.parametrize("name", OURS)
def test_a_tensor_on_another_device_is_named(name):
    for index in range(len(tensors_of(name)[1])):
        arguments, tensors = tensors_of(name)
        with device.devices(current=0, of_tensors=0):
            device.place(tensors[index], 1)
            with pytest.raises(RuntimeError, match=r"is not on the device of the first argument"):
                call(name, arguments)


def test_scalars_may_be_on_the_host():
    e, m = torch.randn(9), torch.rand(9)
    for name, arguments, host in [
        ("hat_gate", [e, torch.tensor(3.0)], 1),
        ("hat_gate_backward", [m, e, m, torch.tensor(3.0), 400.0, 50.0, False], 3),
        ("hat_gates", [e, torch.tensor(3.0), m, 0.1, 0.75], 1),
        *[
            (
                "hat_gates_backward",
                [
                    *([m[:4], m[4:]], torch.tensor(0.5), e, torch.tensor(3.0), m, [4, 5]),
                    *(0.75, 400.0, 50.0, False),
                ],
                host,
            )
            for host in (1, 3)
        ],
        ("pack_scores", [e, torch.tensor(0.5), "topk", 0.0, False], 1),
    ]:
        function = getattr(getattr(reference, schemas.STEM_OF[name]), name)
        with device.devices(current=0, of_tensors=0):
            device.place(arguments[host], -1)
            found = call(name, arguments)
        torch.testing.assert_close(found, function(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_code_without_tensor_cores_multiplies_without_them(dtype):
    """A library for older GPUs alone runs on any newer one, and has no such instructions."""
    x, w = torch.randn(5, 64).to(dtype), torch.randn(40, 64).to(dtype)
    words = reference.bitmask.pack_mask(torch.randn(40, 64).round(), True)
    wanted = reference.bitmask.packed_linear(x, w, words, None)
    for version, of_tensors in ((75, 2), (90, 3)):  # a device is asked once
        before = device.launches()
        with device.devices(current=0, of_tensors=of_tensors), device.code_for(version):
            found = call("packed_linear", (x, w, words, None))
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
        ran = [k for k, count in device.launches().items() if count > before[k]]
        assert len(ran) == 1 and ("tensor_core_kernel" in ran[0]) == (version >= 80), ran
