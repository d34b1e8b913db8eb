"""``maskcl bench``: figures of what is right, sentences for the rest."""

from __future__ import annotations

import json

import pytest
import torch

from maskcl import backends, cli
from maskcl.bench import op_results, op_times, step_times
from maskcl.bench.timing import Spread, Timed, in_turn
from tests.cli.refusal import refused

QUICK = ("--size", "16", "--batch", "2", "--seconds", "0.001", "--no-compile")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_an_op_has_a_row_for_each_backend_that_is_here(capsys):
    assert cli.main(["bench", "--op", "hat_gate", "--threads", "1", *QUICK]) == 0
    said = capsys.readouterr().out
    assert "1 thread" in said and "hat_gate, forward + backward" in said
    for name in ("cpp", "reference"):
        assert (f"\n  {name} " in said) == (backends.BACKENDS[name].absent is None)
    assert "careful eager" in said and "copy of the same bytes" in said


def test_one_json_document(capsys):
    ops = "--op", "clamp_grads_", "--op", "hat_scale"
    assert cli.main(["bench", *ops, "--backend", "reference", "--json", *QUICK]) == 0
    told = json.loads(capsys.readouterr().out)
    clamp, scale = told["ops"]
    assert told["size"] == 16 and told["torch"] == torch.__version__
    rows = {row["name"]: row for row in clamp["rows"]}
    assert rows["reference"]["ours"] and not rows["careful eager"]["ours"]
    ratio = rows["reference"]["us"] / rows["careful eager"]["us"]
    assert rows["reference"]["of_eager"] == pytest.approx(ratio)
    assert [row["name"] for row in scale["rows"]] == ["maskcl", "careful eager"]


def test_a_wrong_result_gets_no_figure(capsys, monkeypatch):
    monkeypatch.setattr(op_results, "_TOLERANCE", -1.0)  # nothing is near enough
    assert cli.main(["bench", "--op", "soft_mask", "--backend", "reference", *QUICK]) == 1
    told = capsys.readouterr()
    assert "reference: no figure: its result is not the formula's" in told.out
    assert told.err == (
        "maskcl: not timed, for their results differ from the formula's: soft_mask on reference\n"
    )


def test_the_list_names_ops_and_networks(capsys):
    assert cli.main(["bench", "--list"]) == 0
    said = capsys.readouterr().out
    assert "  masked_conv\n" in said and "  resnet18" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "bench needs --op NAME"),
        (["--op", "conv9"], "unknown op 'conv9'"),
        (["--op", "hat_gate", "--size", "0"], "size must be at least 1"),
        (["--op", "hat_gate", "--batch", "99999"], "batch must be at least 1 and at most 16384"),
        (["--op", "hat_gate", "--threads", "0"], "threads must be at least 1"),
        (["--op", "hat_gate", "--seconds", "nan"], "seconds must be above 0"),
        (["--op", "hat_gate", "--backend", "mps"], "unknown backend 'mps'"),
        (["--op", "hat_gate", "--device", "tpu"], "unknown device 'tpu'"),
        (["steps", "--network", "784"], "--network: found '784', wanted widths"),
        (["steps", "--network", "8-0-2"], "wanted widths of 1 to"),
        (["steps", "--optimizer", "lion"], "unknown optimizer 'lion'"),
        (["steps", "--method", "si"], "unknown method 'si'"),
        (["steps", "--batch", "x"], "--batch"),
    ],
)
def test_wrong_words_are_refused(capsys, arguments, sentence):
    refused(capsys, sentence, "bench", *arguments)


def test_a_backend_that_cannot_run_on_the_device_is_refused(capsys):
    words = "--op", "hat_gate", "--backend", "cuda", "--device", "cpu"
    refused(capsys, "hat_gate: cuda cannot run here: ", "bench", *words)


def test_a_step_stands_beside_the_unmasked_one(capsys):
    words = ["bench", "steps", "--network", "8-8-8-2", "--batch", "2", "--seconds", "0.001"]
    assert cli.main([*words, "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {(row["method"], row["whose"]): row for row in told["rows"]}
    assert {(m, w) for m in step_times.METHODS for w in ("maskcl", "careful eager")} <= rows.keys()
    base = min(row["us"] for (method, _), row in rows.items() if method is None)
    assert rows["HAT", "maskcl"]["of_unmasked"] == pytest.approx(rows["HAT", "maskcl"]["us"] / base)
    assert cli.main([*words, "--method", "mas", "--optimizer", "sgd", "--schedule"]) == 0
    said = capsys.readouterr().out
    assert "MAS, maskcl" in said and "HAT" not in said
    assert "SGD with momentum, a rate a step" in said


def test_who_loses_is_said():
    fast, slow = Spread(1.0, 1.0, 1.0), Spread(2.0, 2.0, 2.0)
    times = {"cpp": slow, "reference": slow, "careful eager": fast, "torch.compile": slow}
    found = op_times.OpTimes("an_op", "call", times, ("cpp", "reference"))
    assert found.losses() == ["cpp is slower than careful eager: it takes 2.00 of its time"]
    steps = {("", "unmasked, fused"): fast, ("HAT", "maskcl"): slow, ("HAT", "careful eager"): fast}
    told = step_times.StepTimes(step_times.Setting("8-8-2", 1), steps)
    assert told.losses() == ["HAT: maskcl takes 2.00 of careful eager"]
    assert told.ratio("HAT", "maskcl") == 2


@pytest.mark.parametrize("name", step_times.OPTIMIZERS)
def test_a_schedule_changes_the_rate_at_every_step(name):
    weight = torch.nn.Parameter(torch.ones(2))
    for is_scheduled in (False, True):
        setting = step_times.Setting("8-8-2", 1, name, schedule=is_scheduled)
        optimizer = setting.optimizer_of([weight], fused=True)
        rates = []
        for _ in range(3):
            weight.grad = torch.ones(2)
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
        assert len(set(rates)) == (3 if is_scheduled else 1)


def test_functions_take_turns():
    seen = []
    found = in_turn({name: Timed(lambda n=name: seen.append(n)) for name in "ab"}, 1e-9)
    assert seen == ["a"] * 2 + ["b"] * 2 + ["a", "b"] * 5
    assert found.keys() == {"a", "b"}
