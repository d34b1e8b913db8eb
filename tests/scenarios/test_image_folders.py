"""Any folder of images as a scenario: layouts, sizes, grey and colour, what is refused."""

import numpy as np
import pytest
import torch

from maskcl import scenarios
from maskcl.problems import Vision
from maskcl.scenarios import ScenarioError, image_folders
from tests.scenarios import files

pytest.importorskip("torchvision", reason="image folders are read with torchvision")

RAW = (0.0, 1.0)


def everything(dataset):
    return dataset.read(torch.arange(len(dataset)))


def load(folder, **named):
    return scenarios.load("images", data=folder, **{"normalise": RAW, **named})


def refusal(folder, **named):
    with pytest.raises(ScenarioError) as caught:
        load(folder, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill(folder, classes, each=2, size=(4, 4), colour=True):
    """Image n of class k is of colour (10 k + n, n, 0), or grey 10 k + n."""
    for k, name in enumerate(classes):
        for n in range(each):
            shade = (10 * k + n, n, 0) if colour else 10 * k + n
            files.write_image(folder / name / f"{n}.png", shade, size)
    return folder


@pytest.mark.parametrize("test", ["test", "val"])
def test_train_and_test_folders_are_the_split(tmp_path, test):
    fill(tmp_path / "train", "abcd")
    fill(tmp_path / test, "abcd", each=1)
    before = sorted(tmp_path.rglob("*"))
    scenario = load(tmp_path, tasks=2)
    assert scenario.sizes == [(4, 2)] * 2
    assert scenario.input_shape == (3, 4, 4)
    assert scenario.detail["class_names"] == ["a", "b", "c", "d"]
    x, y = everything(scenario.train_set(1))
    assert (x[:, :, 0, 0] * 255).round().tolist() == [
        [20, 0, 0],
        [21, 1, 0],
        [30, 0, 0],
        [31, 1, 0],
    ]
    assert y.tolist() == [0, 0, 1, 1]
    assert scenario.score(1, torch.tensor([0, 1])) == 1.0
    assert f"the folders train and {test}" in scenario.source
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("below", ["", "train"])
def test_a_folder_without_a_split_holds_a_fifth_of_each_class_out_by_the_seed(tmp_path, below):
    fill(tmp_path / below, "abcd", each=10)
    made = [load(tmp_path, seed=seed) for seed in (0, 0, 1)]
    assert [scenario.sizes for scenario in made] == [[(16, 4)] * 2] * 3
    first, again, other = (everything(scenario.train_set(0))[0] for scenario in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_settings_orders_groups_and_frames_are_as_for_other_images(tmp_path):
    fill(tmp_path, "abcdef", each=5)
    assert load(tmp_path, setting="class").classes_per_task == [2, 4, 6]
    assert load(tmp_path, groups=[[5, 0], [2, 3]]).classes == [[5, 0], [2, 3]]
    assert "seed's order" in load(tmp_path, shuffle=True).detail["order"]
    framed = load(tmp_path, padding=2)
    assert framed.input_shape == (3, 8, 8)
    assert "leave a task with one class" in refusal(tmp_path, tasks=4)


def test_sizes_are_the_first_images_or_as_asked_and_at_most_64_unless_asked(tmp_path):
    fill(tmp_path / "small", "ab", each=5, size=(6, 4))
    assert load(tmp_path / "small").input_shape == (3, 6, 4)
    assert load(tmp_path / "small", size=9).input_shape == (3, 9, 9)
    fill(tmp_path / "large", "ab", each=5, size=(70, 100))
    assert load(tmp_path / "large").input_shape == (3, 64, 64)
    assert load(tmp_path / "large", size=80).input_shape == (3, 80, 80)
    assert "size must be at least 1" in refusal(tmp_path / "small", size=0)


def test_images_of_other_sizes_are_scaled_and_cut_about_their_middle(tmp_path):
    from PIL import Image

    fill(tmp_path, "ab", each=5)
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    Image.fromarray(np.full((40, 40, 3), 7, np.uint8)).save(tmp_path / "b" / "0.png")
    scenario = load(tmp_path, tasks=1, size=4)
    assert "scaled and cut" in scenario.source
    whole = torch.cat([everything(scenario.train_set(0))[0], everything(scenario.test_inputs(0))])
    found = {tuple((image * 255).round().unique().int().tolist()) for image in whole}
    assert {(200,), (7,)} <= found  # the wide one's sides are gone, the large one is whole


def test_grey_files_have_one_channel_and_three_among_colours(tmp_path):
    from PIL import Image

    fill(tmp_path, "ab", each=5, colour=False)
    grey = load(tmp_path, tasks=1)
    assert grey.input_shape == (1, 4, 4)
    deep = np.full((4, 4), 40000, np.uint16)  # 16 bits
    Image.fromarray(deep).save(tmp_path / "a" / "0.png")
    deep_too = load(tmp_path, tasks=1)
    assert deep_too.input_shape == (1, 4, 4)
    seen = torch.cat([everything(deep_too.train_set(0))[0], everything(deep_too.test_inputs(0))])
    assert 40000 // 256 in (seen * 255).round().int().unique().tolist()
    files.write_image(tmp_path / "b" / "4.png", (1, 2, 3), (4, 4))
    assert load(tmp_path, tasks=1).input_shape == (3, 4, 4)


def test_what_does_not_fit_in_memory_is_decoded_when_wanted_to_the_same_bits(tmp_path, monkeypatch):
    fill(tmp_path, "abcd", each=5)
    fast = load(tmp_path, normalise=None, padding=1)
    monkeypatch.setattr(image_folders, "IN_MEMORY", 100)
    lazy = load(tmp_path, normalise=None, padding=1)
    assert lazy.describe() == fast.describe()
    for task in range(2):
        for name in ("train_set", "test_inputs"):
            one, two = (getattr(scenario, name)(task) for scenario in (fast, lazy))
            assert not hasattr(two, "take")  # so that workers are worth it
            rows = list(range(len(one)))
            if name == "train_set":
                batches = [next(iter(Vision().train_batches(d, rows, 8))) for d in (one, two)]
                assert all(map(torch.equal, *batches))
            else:
                assert torch.equal(everything(one), everything(two))
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:40])
    for error in (ScenarioError, RuntimeError):  # the run fails with a sentence
        with pytest.raises(error, match=r"a/1\.png cannot be read"):
            everything(lazy.train_set(0)), everything(lazy.test_inputs(0))


def test_the_file_that_is_no_image_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "ab", each=5)
    path = tmp_path / "b" / "3.png"
    whole = path.read_bytes()
    for content in (b"no image", b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert refusal(tmp_path).startswith(f"{path} cannot be read")
    monkeypatch.setattr(image_folders, "IN_MEMORY", 0)
    path.write_bytes(b"no image")
    assert refusal(tmp_path).startswith(f"{path} cannot be read")


def test_folders_that_are_none_of_classes_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no folders of images found" in refusal(tmp_path / "empty")
    assert refusal(tmp_path / "gone") == f"--data {tmp_path / 'gone'} is not a folder"
    (tmp_path / "one" / "a").mkdir(parents=True)
    assert "Found no valid file for the classes a" in refusal(tmp_path / "one")
    fill(tmp_path / "odd" / "train", "abc")
    fill(tmp_path / "odd" / "test", "ab")
    said = refusal(tmp_path / "odd")
    assert said == f"{tmp_path}/odd/train has the class 'c', which {tmp_path}/odd/test lacks"
    fill(tmp_path / "flat", ["train", "test"])
    assert "has no folders of classes: wanted" in refusal(tmp_path / "flat")


def test_a_backbone_learns_from_square_ones_turned(tmp_path):
    fill(tmp_path / "square", "ab", each=20)
    found = scenarios.load_pretraining("images", data=tmp_path / "square")
    assert found.input_shape == (3, 4, 4)
    assert len(found.train) + len(found.held_out) == 3 * 32
    fill(tmp_path / "wide", "ab", each=20, size=(4, 6))
    with pytest.raises(ScenarioError, match="images must be square, found 4x6"):
        scenarios.load_pretraining("images", data=tmp_path / "wide")
    small = scenarios.load_pretraining("images", data=tmp_path / "wide", size=5)
    assert small.input_shape == (3, 5, 5)
