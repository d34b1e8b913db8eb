"""Pages that compare runs: groups, differences, settings, files."""

import csv
import json
import os

import numpy as np
import pytest

from maskcl import report
from maskcl.report.comparison_figures import difference
from maskcl.report.comparison_page import write_comparison
from maskcl.report.groups import differing, grouped, read_runs, repeats
from tests.report.results import Links, hat_result, mas_result, piggyback_result


def save(folder, **results):
    for name, result in results.items():
        (folder / name).mkdir()
        report.write_result(result, folder / name)
    return [folder / name for name in results]


def words_of(path):
    return " ".join(" ".join(Links(path.read_text()).words).split())


def rows_of(path):
    return list(csv.DictReader(path.open()))


def test_runs_that_differ_in_the_seed_alone_are_a_group(tmp_path):
    runs = read_runs(save(tmp_path, a=hat_result(seed=0), b=hat_result(seed=1), c=mas_result(),
                          longer=hat_result(epochs=9)))  # fmt: skip
    groups = grouped(runs)
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [0], [0]]
    assert [group.label for group in groups] == ["hat, epochs 2", "mas", "hat, epochs 9"]
    assert repeats(runs) == []


def test_the_same_run_given_twice_is_said_and_counts_once(tmp_path):
    a, b, again = save(tmp_path, a=hat_result(), b=hat_result(seed=1), again=hat_result(acc=0.5))
    runs = read_runs([a, b, tmp_path / "b" / ".." / "a", again])
    assert [len(group.runs) for group in grouped(runs)] == [2]
    said = repeats(runs)
    assert "is given twice: it counts once" in said[0]
    assert said[1] == f"{again} has the settings and the seed of {a}: it counts once"
    assert "given twice" in words_of(write_comparison(runs, tmp_path / "out"))
    assert len(report.compare([a, a])) == 2


def test_differences_are_of_equal_seeds_where_there_are_any(tmp_path):
    runs = read_runs(save(
        tmp_path, a=hat_result(seed=0, acc=0.90), b=hat_result(seed=1, acc=0.80),
        c=mas_result(seed=0, forgets=0), d=mas_result(seed=1, forgets=0), e=mas_result(seed=2),
    ))  # fmt: skip
    hat, mas = grouped(runs)
    mean, spread, seeds = difference(hat, mas)
    assert seeds == [0, 1]
    np.testing.assert_allclose(mean, [0.13] * 3)
    np.testing.assert_allclose(spread, [np.std([0.08, 0.18], ddof=1)] * 3)
    apart = grouped(read_runs([tmp_path / "a", tmp_path / "e"]))
    mean, spread, seeds = difference(*apart)
    assert seeds == []
    np.testing.assert_allclose(mean, [0.06, 0.07, 0.08])
    assert (spread == 0).all()


def test_settings_that_differ_come_first_and_those_of_one_method_last(tmp_path):
    groups = grouped(
        read_runs(save(tmp_path, a=hat_result(), b=mas_result(), c=hat_result(epochs=5)))
    )
    differ, same = differing(groups)
    assert differ[:2] == ["method", "parameters"]
    assert "epochs" in differ and differ.index("epochs") < differ.index("strength")
    assert set(same) == {"model", "optimizer"}
    text = words_of(write_comparison(read_runs([tmp_path / n for n in "abc"]), tmp_path / "out"))
    assert text.index("Settings that differ") < text.index("Settings that are the same")


def test_an_option_that_only_a_later_run_has_and_leaves_open_is_no_difference(tmp_path):
    later = mas_result()
    later["configuration"]["clip"] = None
    runs = read_runs(save(tmp_path, a=hat_result(), b=later))
    assert "clip" not in differing(grouped(runs))[0]
    assert "clip" not in words_of(write_comparison(runs, tmp_path / "out"))


def test_settings_that_no_result_depends_on_make_no_group(tmp_path):
    first, second = hat_result(seed=0), hat_result(seed=1)
    first["configuration"]["workers"], second["configuration"]["workers"] = 0, 2
    groups = grouped(read_runs(save(tmp_path, a=first, b=second)))
    assert [len(group.runs) for group in groups] == [2]


def test_page_and_csv_have_every_run_and_every_task(tmp_path):
    runs = read_runs(save(tmp_path, a=hat_result(acc=0.9), b=hat_result(seed=1, acc=0.8),
                          c=mas_result(forgets=0.1), p=piggyback_result()))  # fmt: skip
    path = write_comparison(runs, tmp_path / "new" / "out")
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "runs.csv", "tasks.csv"]
    text = path.read_text()
    words = words_of(path)
    assert "0.8500 ± 0.0707" in words
    assert "mas minus hat" in words
    assert "Mean of 2 matrices" in words and "intransigence" in words
    assert "<title>mas, task 0: -0.1200 ± 0.0000</title>" in text
    table = rows_of(path.parent / "runs.csv")
    assert [row["group"] for row in table] == ["hat", "hat", "mas", "piggyback"]
    assert float(table[0]["ACC"]) == pytest.approx(0.9)
    assert table[2]["configuration.strength"] == "2.0"
    tasks = rows_of(path.parent / "tasks.csv")
    assert len(tasks) == 4 * 3
    assert float(tasks[6]["difference"]) == pytest.approx(-0.2)
    with pytest.raises(OSError, match="out"):
        write_comparison(runs, path.parent)


def test_names_that_no_text_may_hold_are_written_out(tmp_path):
    name = os.fsdecode(b"n\xff\x1b[31m")
    runs = read_runs(save(tmp_path, **{name: hat_result(), "b": mas_result()}))
    path = write_comparison(runs, tmp_path / "out")
    for file in path.parent.iterdir():
        text = file.read_text()
        assert "n\\udcff\\x1b[31m" in text and "\x1b" not in text


def test_other_scenarios_stand_apart_and_other_metrics_are_refused(tmp_path):
    other = json.loads(json.dumps(hat_result()).replace("split-<digits>", "other"))
    a, b = save(tmp_path, a=hat_result(), b=other)
    path = write_comparison(read_runs([a, b]), tmp_path / "out")
    words = words_of(path)
    assert "2 runs on split-<digits>, other" in words
    assert (
        "hat on other" in words and "minus" not in words.replace("minus the", "").split("What")[0]
    )
    other["scenario"]["metric"] = "auroc"
    save(tmp_path, c=other)
    with pytest.raises(report.ReportError, match="different metrics"):
        read_runs([a, tmp_path / "c"])
