"""Networks under ``fully_shard``: finished tasks stay as they are, and all learn as unsharded."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

from benchmarks.scaling import messages
from maskcl.nn.hat.protection import Protection
from maskcl.shards import cut_ends, first_element, local, rows
from tests.spawned import last_line_of

pytest.importorskip("torch.distributed.fsdp", reason="torch without distributed")
from tests import sharded_networks, sharded_runs, sharded_ways

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CASES = sharded_networks.CASES
WAYS = (1, 0), (2, 0), (2, 1)
SAME = [name for name, case in CASES.items() if case.policy is None]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    said = last_line_of("tests.sharded_runs", folder)
    assert said.startswith("exit 0 0 0 0 0 0 0"), said
    ways = *WAYS, *((4, rank) for rank in range(4))
    return {way: torch.load(folder / f"{way[0]}.{way[1]}.pt") for way in ways}


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


@pytest.mark.parametrize("case", [*sharded_runs.PAIRS, "smaller"])
def test_four_processes_learn_the_same_two_by_two(case, found):
    origin = CASES["root" if case == "smaller" else case]
    wanted = sharded_networks.Run(origin, None)
    wanted.kept()
    for rank in range(4):
        one = found[4, rank][case]
        assert one["kept"] or not origin.is_exact
        for name, tensor in wanted.whole_state().items():
            torch.testing.assert_close(one["state"][name], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="Dynamo has no guard for the active task before torch 2.13"
)
def test_compiled_blocks_keep_the_first_task(found):
    assert found[1, 0]["compiled"] is True, found[1, 0]["compiled"]


@pytest.mark.parametrize("case", ["mas", "ewc", "batch", "fisher", "piggyback", "masks", "topk"])
def test_a_process_has_its_rows_of_all_that_grows_with_the_weights(case, found):
    """33 and 13 rows in two processes; words of bits are cut where the words are."""
    parts = [found[2, rank][case]["parts"] for rank in (0, 1)]
    assert {name.rpartition(".")[2] for name in parts[0]} >= {"weight"}
    if case in ("mas", "ewc", "batch", "fisher"):
        assert "importance.1.weight" in parts[0] and "anchor.1.weight" in parts[0]
    else:
        assert "model.1.words" in parts[0]
    for name, share in parts[0].items():
        assert share + parts[1][name] == pytest.approx(1) and share < 0.67, name


@pytest.mark.parametrize("way", sharded_ways.WAYS)
def test_what_is_done_around_a_sharded_network(way, found):
    for rank in (0, 1):
        assert found[2, rank]["ways"][way] is True, found[2, rank]["ways"][way]


def test_other_engines_are_refused_by_a_sentence(found):
    said = found[2, 0]["flattened"]
    assert len(said) == 6
    assert all("call torch.distributed.fsdp.fully_shard for" in text for text in said.values())


def test_messages_are_those_that_the_page_on_scaling_counts(found):
    names = {
        "allreduce_": "all-reduce",
        "allgather_": "all-gather",
        "all_gather_into_tensor": "all-gather",
        "reduce_scatter_tensor": "reduce-scatter",
    }
    wanted = messages(layers=2, parameters=4, batches=1)
    for case, counted in zip(("root", "piggyback", "mas", "batch"), wanted.values(), strict=True):
        for part, kinds in counted.items():
            own: Counter[str] = Counter()  # those of fully_shard have other names
            for name, count in found[2, 0]["messages"][case][part].items():
                own.update({names[name]: count} if name in names else {})
            assert own == kinds, (case, part)


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
        assert "Trainer: net is under fully_shard" in said["trainer"]
        for name in ("report", "copied"):
            assert "is sharded: load its whole state" in said[name]
        assert "is a DTensor: fully_shard, or another way" in said["converted"]
        assert "HATNetwork: the state is sharded and the network is not" in said["loaded"]
        assert not any("FSDP" in text for text in said.values())
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
