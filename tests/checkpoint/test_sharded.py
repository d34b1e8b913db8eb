"""Checkpoints of sharded networks: any number of processes takes them up, to the same bits."""

from __future__ import annotations

import os

import pytest
import torch

from maskcl.checkpoint import load_checkpoint, load_facts
from tests.spawned import last_line_of

pytest.importorskip("torch.distributed.fsdp", reason="torch without distributed")
from tests.checkpoint import processes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
NAMES = list(processes.KEPT)
STAGES = ["alone"] + [f"resume-{n}.{rank}" for n in (1, 2, 4) for rank in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("shared")
    assert last_line_of("tests.checkpoint.processes", made) == "exit" + 10 * " 0"
    return made


def told(folder, stage):
    return torch.load(folder / f"{stage}.pt")


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].nan_to_num(), tensor.nan_to_num()), name


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_go_on_to_the_same_bits(name, folder):
    for rank in range(2):
        wanted, found = (told(folder, f"{s}-2.{rank}")[name] for s in ("learn", "resume"))
        assert_same(found["end"], wanted["end"])
        assert torch.equal(found["chance"], wanted["chance"])
        assert any(not torch.equal(wanted["saved"][n], t) for n, t in wanted["end"].items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", STAGES)
def test_any_number_of_processes_takes_all_of_it_up(stage, name, folder):
    wanted, found = told(folder, "learn-2.0")[name], told(folder, stage)[name]
    assert found["is_sharded"] == (stage != "alone")
    assert_same(found["saved"], wanted["saved"])
    assert_same(found["optimizer"], wanted["optimizer"])
    assert found["position"] == {"task": 1, "step": 2}
    assert found["facts"] == {"x": 1}


@pytest.mark.parametrize("name", NAMES)
def test_whoever_reads_it_alone_has_whole_tensors(name, folder):
    path = folder / f"{name}.safetensors"
    found = load_checkpoint(path, processes.CONFIG)
    wanted = told(folder, "learn-2.0")[name]["saved"]
    assert_same({n: t for n, t in found.tensors.items() if n.startswith("network.")}, wanted)
    assert all(type(tensor) is torch.Tensor for tensor in found.tensors.values())
    assert load_facts(path) == (found.config, found.position, found.facts)
    assert {"rng0.torch", "rng1.torch"} < found.tensors.keys()
    assert any(n.startswith("optimizer.state.") for n in found.tensors)


def test_scores_of_bfloat16_travel_with_the_number_of_their_last_draw(folder):
    found = told(folder, "resume-4.3")["piggyback"]
    assert {t.dtype for n, t in found["saved"].items() if n.endswith("scores")} == {torch.bfloat16}
    draw = found["optimizer"]["group.0.draw"]
    assert draw.dtype is torch.float64 and draw == 2


def test_what_lasts_is_in_a_file_of_each_process(folder):
    names = sorted(path.name.rpartition("-")[0] for path in (folder / "piggyback.parts").iterdir())
    assert names == ["base", "base", "process-0", "process-1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_single_file_goes_into_a_sharded_network(name, folder):
    wanted = told(folder, "alone")[f"single-{name}"]
    for rank in range(2):
        assert_same(told(folder, f"resume-2.{rank}")["single"][name], wanted)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "does not exist, and its checkpoint is not whole without it"),
        ("truncated", "is damaged"),
        ("altered", "is damaged: its content is not what its SHA-256 says"),
        ("json", "is damaged: its content is not what its SHA-256 says"),
        ("swapped", "is not the file that its checkpoint names: another's, or altered"),
        ("gone", "gone.safetensors does not exist"),
        ("other", "does not fit"),
        ("config", "piggyback.safetensors is of a run with seed 3, this run has 4"),
    ],
)
def test_every_process_refuses_a_wrong_checkpoint_with_one_sentence(name, said, folder):
    for rank in range(2):
        found = told(folder, f"resume-2.{rank}")["refusals"][name]
        assert found.startswith("CheckpointError: ")
        assert said in found
        assert "\n" not in found


def test_a_loop_inside_a_task_wants_its_method(folder):
    for rank in range(2):
        found = told(folder, f"resume-2.{rank}")["refusals"]["bare"]
        assert "was saved inside task 1: wanted method and optimizer_fn" in found


def test_a_full_disk_of_one_process_is_all_processes_error(folder):
    both = [told(folder, f"resume-2.{rank}")["failing"] for rank in range(2)]
    for found in both:
        assert "No space left on device" in found["said"]
        assert found["said"].startswith("OSError")
        assert found["step"] == 1
    assert_same(both[0]["tensors"], both[1]["tensors"])
