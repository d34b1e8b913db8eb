"""Networks under ``fully_shard``: finished tasks stay as they are, and all learn as unsharded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskcl.nn.hat.protection import Protection
from maskcl.shards import cut_ends, first_element, local, rows
from tests import resume_run

pytest.importorskip("torch.distributed.fsdp", reason="torch without distributed")
from tests import sharded_networks, sharded_runs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CASES = sharded_networks.CASES
WAYS = (1, 0), (2, 0), (2, 1)
SAME = [name for name, case in CASES.items() if case.policy is None]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    root = str(Path(sharded_runs.__file__).parents[1])
    environment = os.environ | resume_run.ONE_THREAD | {"PYTHONPATH": root}
    command = [sys.executable, "-m", "tests.sharded_runs", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1:] == ["exit 0 0 0"], run.stdout
    return {way: torch.load(folder / f"{way[0]}.{way[1]}.pt") for way in WAYS}


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.is_exact])
def test_finished_tasks_keep_their_bits(case, found):
    for way in WAYS:
        for outputs in found[way][case]["outputs"].values():
            assert len(outputs) > 1
            assert all(torch.equal(outputs[0], later) for later in outputs)
            # What is the same for all samples would not show that a weight has moved.
            assert outputs[0].float().std(0).min() > 1e-5


@pytest.mark.parametrize("case", SAME)
def test_a_sharded_network_learns_what_an_unsharded_one_does(case, found):
    """In one process to the bit; in two up to the order of sums, and alike in both."""
    wanted = sharded_networks.Run(CASES[case], None).result()["state"]
    one, first, second = (found[way][case]["state"] for way in WAYS)
    assert wanted.keys() == one.keys() == first.keys() == second.keys()
    for name, tensor in wanted.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-6, atol=1e-6)
        if CASES[case].how == "root":  # else hooks of its layers keep the network from runs
            assert torch.equal(one[name], tensor), name
        torch.testing.assert_close(one[name], tensor, rtol=1e-9, atol=1e-12)


def test_without_protection_the_first_task_is_lost_and_every_process_says_so(found):
    for way in WAYS:
        lost = found[way]["lost"]
        assert not lost["same"]
        assert "what finished tasks need has changed" in lost["said"]
        assert "model.1.weight, model.1.bias, model.3.weight" in lost["said"]


def test_what_a_sharded_network_cannot_do_says_what_to_do(found):
    for way in WAYS:
        said = found[way]["refusals"]
        assert "model.1.weight is sharded: load its whole state" in said["to_plain"]
        for name in ("grow", "add_tasks"):
            assert f"{name}: model.1.weight is sharded: do this before fully_shard" in said[name]
        assert "forget_task: '1' is sharded: load its whole state" in said["forget"]
        assert "fully_shard was called while a task was in training" in said["scores"]
        assert "wanted along its first dimension" in said["columns"]
    assert found[1, 0]["refusals"]["apart"] == ""
    for way in WAYS[1:]:
        assert "give it the network itself" in found[way]["refusals"]["apart"]


def test_states_travel(found):
    for way in WAYS:
        assert found[way]["travelled"] == {"whole": True, "own": True, "masks": True}


class Rows(torch.Tensor):
    """A stand-in for a parameter that some process has these rows of."""

    placements = ()

    @classmethod
    def of(cls, parameter, processes, rank):
        made = parameter.as_subclass(cls)
        made.device_mesh, made.placements = Mesh(processes, rank), (Along(),)
        return made


class Along:
    def is_shard(self):
        return True

    def is_replicate(self):
        return False

    def __repr__(self):
        return "Shard(dim=0)"


class Mesh:
    def __init__(self, processes, rank):
        self.processes, self.rank = processes, rank

    def size(self, dim=0):
        return self.processes

    def get_local_rank(self, dim=0):
        return self.rank


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize("groups", [1, 2, 3, 6, 12])
def test_rows_of_any_processes_protect_what_the_whole_does(processes, groups):
    """Groups that are cut in the middle, and processes that have no row."""
    generator = torch.Generator().manual_seed(7)
    out = torch.randint(0, 4, (12, 1), generator=generator)
    into = torch.randint(0, 4, (12, 1), generator=generator)
    weight = torch.ones(12, 12 // groups)

    def clamped(parameter, *ends):
        parameter = torch.nn.Parameter(parameter)
        parameter.grad = torch.ones_like(parameter)
        Protection(["w"], [parameter], *([end] for end in ends), empty=False).clamp_()
        return parameter.grad

    whole = clamped(weight, out, into, groups)
    assert 0 < whole.sum() < whole.numel()
    parts = []
    for rank in range(processes):
        shard = Rows.of(weight, processes, rank)
        parts.append(clamped(weight[rows(shard)], *cut_ends(shard, out, into, groups)))
    assert torch.equal(torch.cat(parts), whole)
    assert local(weight) is weight


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_the_first_element_of_a_process_is_counted_among_all(processes):
    weight = torch.randn(7, 3, 2)
    for rank in range(processes):
        shard = Rows.of(weight, processes, rank)
        mine, first = weight[rows(shard)].flatten(), first_element(shard)
        assert torch.equal(weight.flatten()[first:][: len(mine)], mine)
    assert first_element(weight) == first_element(torch.empty(0, 3)) == 0
