"""Checkpoints: whole or not at all, refused with one sentence; a resumed run is the same run."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maskcl import checkpoint as ckpt
from maskcl.callback import Callback
from maskcl.lock import LockedError
from maskcl.methods import HAT, Piggyback
from maskcl.problems import Vision
from maskcl.randomness import rng_state, set_rng_state
from maskcl.training.trainer import Trainer
from tests import resume_run, tiny

CONFIG = {"seed": 1, "optimizer": {"lr": 0.1, "betas": (0.9, 0.999)}, "nan": float("nan")}


def example() -> ckpt.Checkpoint:
    tensors = {
        "network.a": torch.randn(3, 4).t(),
        "network.b": torch.tensor([True, False]),
        "rng.c": torch.tensor(2**60),
        "d": torch.randn(2, dtype=torch.float64),
        "e": torch.zeros(0, 3, dtype=torch.bfloat16),
    }
    tensors["shared"] = tensors["d"][:1]
    facts = {"x": [1.5, None, float("nan")]}
    return ckpt.Checkpoint(CONFIG, {"task": 2, "epoch": 3}, tensors, facts)


def test_round_trip(tmp_path):
    saved = example()
    path = tmp_path / "c.safetensors"
    ckpt.save_checkpoint(path, saved)
    found = ckpt.load_checkpoint(path, CONFIG)
    assert found.position == saved.position
    assert found.facts["x"][:2] == [1.5, None]
    assert np.isnan(found.facts["x"][2])
    assert found.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.99, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "c.safetensors"
    ckpt.save_checkpoint(path, example())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ckpt.CheckpointError, match="is damaged") as e:
        ckpt.load_checkpoint(path)
    assert "\n" not in str(e.value)


def test_every_flipped_bit_is_noticed(tmp_path):
    path, rng = tmp_path / "c.safetensors", random.Random(0)
    ckpt.save_checkpoint(path, example())
    data = path.read_bytes()
    for at in rng.sample(range(len(data)), 200):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(ckpt.CheckpointError) as error:
            ckpt.load_checkpoint(path)
        assert str(error.value).isprintable()
    path.write_bytes(data)
    ckpt.load_checkpoint(path)


def test_a_checkpoint_of_version_1_has_no_digest_and_still_loads(tmp_path):
    from safetensors.torch import save_file

    path, saved = tmp_path / "c.safetensors", example()
    metadata = {"format": ckpt.FORMAT, "version": "1"}
    metadata |= {key: json.dumps(getattr(saved, key)) for key in ("config", "position", "facts")}
    tensors = {name: t.contiguous().clone() for name, t in saved.tensors.items()}
    save_file(tensors, path, metadata)
    found = ckpt.load_checkpoint(path, CONFIG)
    assert found.position == saved.position
    assert all(torch.equal(found.tensors[name], t) for name, t in tensors.items())
    # The digest is no matter of choice: a file of today without it is damaged.
    save_file(tensors, path, metadata | {"version": "3"})
    with pytest.raises(ckpt.CheckpointError, match="its SHA-256 is missing"):
        ckpt.load_checkpoint(path)


def test_any_program_reads_the_file(tmp_path):
    from safetensors.torch import load_file

    path, saved = tmp_path / "c.safetensors", example()
    kinds = (torch.float16, torch.int8, torch.uint8, torch.int16, torch.int32, torch.complex64)
    saved.tensors |= {str(kind): torch.ones(3, dtype=kind) for kind in kinds}
    ckpt.save_checkpoint(path, saved)
    found = load_file(path)
    assert found.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_trainer_is_refused_a_folder_that_another_process_trains_in(tmp_path):
    code = "import sys\nfrom maskcl.lock import locked\nwith locked(sys.argv[1]):\n"
    code += " print('held', flush=True)\n sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LockedError, match=f"is in use by process {process.pid} on "):
            trainer(tmp_path).fit()
        process.communicate()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Stop(0, 1)).fit()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_foreign_files_are_refused_and_not_unpickled(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "c.safetensors"
    with pytest.raises(ckpt.CheckpointError, match="does not exist"):
        ckpt.load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ckpt.CheckpointError, match="safetensors file but no checkpoint"):
        ckpt.load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path, {"format": ckpt.FORMAT, "version": "99"})
    with pytest.raises(
        ckpt.CheckpointError, match="format version 99, this maskcl reads 1, 2 and 3"
    ):
        ckpt.load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path, {"format": ckpt.FORMAT, "version": "1"})
    with pytest.raises(ckpt.CheckpointError, match="damaged"):
        ckpt.load_checkpoint(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ckpt.CheckpointError, match="damaged or no checkpoint"):
        ckpt.load_checkpoint(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ckpt.CheckpointError, match="cannot be read: is a directory"):
        ckpt.load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return os._exit, (3,)


def test_another_configuration_is_refused_by_name(tmp_path):
    path = tmp_path / "c.safetensors"
    ckpt.save_checkpoint(path, example())
    with pytest.raises(ckpt.CheckpointError, match="of a run with seed 1, this run has 2"):
        ckpt.load_checkpoint(path, CONFIG | {"seed": 2})
    with pytest.raises(ckpt.CheckpointError, match="with more null, this run has 0"):
        ckpt.load_checkpoint(path, CONFIG | {"more": 0})


def test_a_network_that_does_not_fit_stays_as_it_is():
    net = nn.Linear(3, 2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    other = {"network.weight": torch.ones(2, 3), "network.bias": torch.ones(3)}
    with pytest.raises(ckpt.CheckpointError, match=r"bias is torch.float32 \[3\], the network's"):
        ckpt.load_network(net, other)
    with pytest.raises(ckpt.CheckpointError, match="bias is only in the network"):
        ckpt.load_network(net, {"network.weight": torch.ones(2, 3)})
    other["network.bias"] = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ckpt.CheckpointError, match=r"bias is torch\.float64"):
        ckpt.load_network(net, other)
    other |= {"network.bias": torch.ones(2), "network.scale": torch.ones(2)}
    with pytest.raises(ckpt.CheckpointError, match="scale is only in the checkpoint"):
        ckpt.load_network(net, other)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    del other["network.scale"]
    ckpt.load_network(net, other | {"optimizer.x": torch.ones(1)})
    assert bool((net.weight == 1).all())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    ckpt.save_checkpoint(path, example())
    old = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ckpt.save_checkpoint(path, ckpt.Checkpoint({}, {}, {"a": torch.zeros(9)}))
    assert path.read_bytes() == old


def test_file_and_directory_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    path = tmp_path / "c.safetensors"
    ckpt.save_checkpoint(path, example())
    temporary, *rest = events
    assert Path(temporary).parent == tmp_path
    assert rest == ["rename", str(tmp_path)]


@pytest.mark.parametrize("name", list(tiny.OPTIMIZERS))
def test_an_optimizer_goes_on_where_it_was(name, tmp_path):
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    def step(net, optimizer, seed) -> None:
        torch.manual_seed(seed)
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()

    whole, first = model(), model()
    a, b = (tiny.OPTIMIZERS[name](list(m.parameters())) for m in (whole, first))
    for seed in range(3):
        step(whole, a, seed)
        step(first, b, seed)
    tensors, facts = ckpt.optimizer_state(b)
    path = tmp_path / "o"
    ckpt.save_checkpoint(path, ckpt.Checkpoint({}, {}, tensors, facts))
    found = ckpt.load_checkpoint(path)
    second = model()
    second.load_state_dict(first.state_dict())
    c = tiny.OPTIMIZERS[name](list(second.parameters()))
    ckpt.load_optimizer(c, found.tensors, found.facts)
    assert c.state_dict()["param_groups"] == a.state_dict()["param_groups"]
    for seed in range(3, 6):
        step(whole, a, seed)
        step(second, c, seed)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters()))
    wrong = tiny.OPTIMIZERS[name]([second.weight])
    with pytest.raises(ckpt.CheckpointError, match="optimizer does not fit"):
        ckpt.load_optimizer(wrong, found.tensors, found.facts)


def test_every_generator_goes_on_where_it_was(tmp_path):
    def draw() -> list[float]:
        return [
            float(torch.rand(())),
            float(torch.randn(())),
            float(np.random.rand()),  # noqa: NPY002
            float(np.random.randn()),  # noqa: NPY002
            random.random(),
            random.gauss(0, 1),
        ]

    draw()
    cpu = torch.device("cpu")
    tensors, facts = rng_state(cpu)
    ckpt.save_checkpoint(tmp_path / "r", ckpt.Checkpoint({}, {}, tensors, facts))
    wanted = [draw(), draw()]
    found = ckpt.load_checkpoint(tmp_path / "r")
    set_rng_state(cpu, found.tensors, found.facts)
    assert [draw(), draw()] == wanted


def kills(case: str) -> list[str]:
    """Where the children die: from a fixed seed, every kind, then one that comes to the end.

    Those at a place come before those at a time, and leave epochs to go on with: a timer on a slow
    machine may let the run come to its end.
    """
    rng = random.Random(case)
    steps = [f"step:{rng.randint(1, 6)}" for _ in range(3)]
    writes = [f"write:{rng.randint(1, 2)}" for _ in range(2)]
    renames = [f"rename:{rng.randint(1, 2)}"]
    after = [f"after:{rng.uniform(0.01, 0.2):.3f}" for _ in range(3)]
    placed = steps + writes + renames
    rng.shuffle(placed)
    return [*placed, *after, "none"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(directory, what was printed) of every case's killed run; one process, to import once."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    directory = tmp_path_factory.mktemp("killed")
    root = str(Path(resume_run.__file__).parents[1])
    environment = os.environ | resume_run.ONE_THREAD | {"PYTHONPATH": root}
    command = [sys.executable, "-m", "tests.resume_run", str(directory)]
    command += [f"{case}:{how}" for case in resume_run.CASES for how in kills(case)]
    with (directory / "printed").open("w") as printed, (directory / "errors").open("w") as errors:
        code = subprocess.call(command, stdout=printed, stderr=errors, env=environment)
    said = (directory / "errors").read_text()
    assert code == 0, said
    return directory, (directory / "printed").read_text() + said


@pytest.mark.parametrize("case", list(resume_run.CASES))
def test_a_run_killed_at_any_moment_and_resumed_is_the_same_run(case, killed, tmp_path):
    directory, printed = killed
    lines = [line for line in printed.splitlines() if line.startswith(case)]
    assert lines[-1] == f"{case}:none exit 0", printed
    placed = [line for line in lines if ":after:" not in line][:-1]
    assert len(placed) == 6, printed
    assert all(line.endswith(f"killed {signal.SIGKILL.value}") for line in placed), printed
    threads = torch.get_num_threads()
    try:
        state, result = resume_run.train(str(tmp_path), case)
    finally:
        torch.set_num_threads(threads)
    found = torch.load(directory / case / "net.pt")
    measured = np.load(directory / case / "result.npz")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor), name
    np.testing.assert_array_equal(measured["matrix"], result.matrix)
    np.testing.assert_array_equal(measured["losses"], np.concatenate(result.losses))
    np.testing.assert_array_equal(measured["validation"], np.concatenate(result.validation))


class Stop(Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, task: int, epoch: int) -> None:
        self.at = (task, epoch, 1)

    def on_step(self, task, epoch, batch, loss) -> None:
        if (task, epoch, batch) == self.at:
            raise KeyboardInterrupt


def trainer(directory, callback=None, **changed) -> Trainer:
    arguments = {"epochs": 3, "batch_size": 8, "seed": 3, "device": "cpu"} | changed
    return Trainer(
        arguments.pop("net", None) or tiny.network("conv", 3),
        arguments.pop("method", HAT(sparsity=0.3)),
        Vision(),
        tiny.scenario(3),
        arguments.pop("optimizer_fn", tiny.OPTIMIZERS["adamw"]),
        directory=directory,
        callback=callback,
        **arguments,
    )


@pytest.mark.parametrize("at", [(0, 0), (1, 0), (1, 1), (2, 2)])
def test_ctrl_c_and_resume(at, tmp_path):
    whole = trainer(None)
    wanted = whole.fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Stop(*at)).fit()
    second = trainer(tmp_path)
    found = second.fit(resume=True)
    np.testing.assert_array_equal(found.matrix, wanted.matrix)
    assert found.losses == wanted.losses
    assert found.capacity == wanted.capacity
    assert found.protected == wanted.protected
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(second.net.state_dict()[name], tensor), name
    # Done is done: a third call reads the result and trains nothing.
    third = trainer(tmp_path, Stop(0, 0))
    np.testing.assert_array_equal(third.fit(resume=True).matrix, wanted.matrix)


def test_an_existing_checkpoint_is_not_overwritten(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Stop(1, 0)).fit()
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"fit\(resume=True\)"):
        trainer(tmp_path).fit()
    for changed, named in (
        ({"seed": 4}, "seed 3, this run has 4"),
        ({"epochs": 4}, "epochs 3, this run has 4"),
        ({"method": HAT()}, "method"),
        ({"optimizer_fn": tiny.OPTIMIZERS["adam"]}, "optimizer"),
        ({"optimizer_fn": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1)}, "optimizer"),
        ({"precision": "bf16"}, "precision"),
    ):
        other = trainer(tmp_path, **changed)
        state = {k: v.clone() for k, v in other.net.state_dict().items()}
        with pytest.raises(ckpt.CheckpointError, match=named):
            other.fit(resume=True)
        assert all(torch.equal(v, state[k]) for k, v in other.net.state_dict().items())
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def piggyback(directory, callback=None, **changed) -> Trainer:
    arguments = {"method": Piggyback(spread="uniform", lr=1e-2)} | changed
    return trainer(directory, callback, net=tiny.piggyback("conv", 3, norms="task"), **arguments)


@pytest.mark.parametrize(
    ("at", "optimizer"),
    [((0, 1), name) for name in tiny.OPTIMIZERS] + [((0, 0), "adamw"), ((1, 2), "adamw")],
)
def test_piggyback_resumes_inside_a_task(at, optimizer, tmp_path):
    """Scores, the optimizer's moments of them and the place in the run, bit for bit."""
    make = tiny.OPTIMIZERS[optimizer]
    whole = piggyback(None, optimizer_fn=make)
    wanted = whole.fit()
    with pytest.raises(KeyboardInterrupt):
        piggyback(tmp_path, Stop(*at), optimizer_fn=make).fit()
    second = piggyback(tmp_path, optimizer_fn=make)
    found = second.fit(resume=True)
    np.testing.assert_array_equal(found.matrix, wanted.matrix)
    assert found.losses == wanted.losses
    assert found.off == wanted.off
    state = second.net.state_dict()
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(state[name].nan_to_num(), tensor.nan_to_num()), name


def test_a_checkpoint_inside_a_task_holds_its_scores_and_a_last_one_only_masks(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        piggyback(tmp_path, Stop(1, 1)).fit()
    path = tmp_path / "checkpoint.safetensors"
    saved = ckpt.load_checkpoint(path)
    names = {name for name in saved.tensors if name.endswith(".scores")}
    assert len(names) == 3
    assert saved.position == {"task": 1, "epoch": 1, "first_task": 0}
    moments = [t.shape for n, t in saved.tensors.items() if n.endswith(".exp_avg")]
    assert all(saved.tensors[name].shape in moments for name in names)
    trained = piggyback(tmp_path)
    trained.fit(resume=True)
    saved = ckpt.load_checkpoint(path)
    assert saved.position == {"task": 3, "epoch": 0, "first_task": 0}
    assert not any(name.endswith(".scores") for name in saved.tensors)
    fresh = piggyback(tmp_path)
    fresh.fit(resume=True)  # trains nothing
    x, _ = tiny.samples(0, seed=1)
    for task in range(3):
        assert torch.equal(tiny.logits(fresh.net, task, x), tiny.logits(trained.net, task, x))


def test_a_piggyback_checkpoint_of_other_hyper_parameters_is_refused_by_name(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        piggyback(tmp_path, Stop(1, 1)).fit()
    for changed, named in (
        ({"method": Piggyback(spread="uniform", lr=2e-2)}, "method"),
        ({"method": HAT()}, "method"),
        ({"seed": 4}, "seed 3, this run has 4"),
    ):
        net = tiny.network("conv", 3) if isinstance(changed.get("method"), HAT) else None
        other = trainer(tmp_path, net=net, **changed) if net else piggyback(tmp_path, **changed)
        before = {k: v.clone() for k, v in other.net.state_dict().items()}
        with pytest.raises(ckpt.CheckpointError, match=named):
            other.fit(resume=True)
        after = other.net.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[k].nan_to_num(), v.nan_to_num()) for k, v in before.items())
