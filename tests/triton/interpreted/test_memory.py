"""What looks after interpreted kernels finds what is wrong with these."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language", reason="Triton is not installed")


@triton.jit
def _copy_kernel(x_ptr, y_ptr, count, LOAD: tl.constexpr, STORE: tl.constexpr, STEP: tl.constexpr):
    at = tl.program_id(0) * STEP + tl.arange(0, 16)
    x = tl.load(x_ptr + at, mask=(at < count) | (not LOAD), other=0.0)
    tl.store(y_ptr + at, x, mask=(at < count) | (not STORE))


@triton.jit
def _address_kernel(table_ptr, count):
    at = tl.arange(0, 16)
    out_ptr = tl.load(table_ptr).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr + at, at.to(tl.float32), mask=at < count)


@triton.jit
def _neighbour_kernel(x_ptr):
    program = tl.program_id(0)
    tl.store(x_ptr + program, tl.load(x_ptr + program + 1))


def copy(count=40, load=True, store=True, step=16):
    x, y = torch.arange(40.0), torch.zeros(40)
    _copy_kernel[(3,)](x, y, count, LOAD=load, STORE=store, STEP=step)
    return x, y


def test_a_right_kernel_runs():
    x, y = copy()
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"load": False}, r"test_memory\.py:\d+ reads 8 elements outside of all tensors"),
        ({"store": False}, r"test_memory\.py:\d+ writes 8 elements outside of all tensors"),
        ({"count": 41}, "reads 1 elements outside"),
        ({"step": 8}, "two programs write one element"),
    ],
)
def test_faults_are_named(options, says):
    with pytest.raises(Exception, match=says):
        copy(**options)


def test_a_program_may_not_read_what_another_writes():
    with pytest.raises(Exception, match=r"test_memory\.py:\d+ reads what another program writes"):
        _neighbour_kernel[(4,)](torch.zeros(5))


def test_addresses_in_a_table_are_known_once_they_were_asked_for():
    out = torch.zeros(10)
    table = torch.tensor([out.data_ptr()])
    _address_kernel[(1,)](table, 10)
    assert torch.equal(out, torch.arange(10.0))
    with pytest.raises(Exception, match="writes 1 elements outside"):
        _address_kernel[(1,)](table, 11)
