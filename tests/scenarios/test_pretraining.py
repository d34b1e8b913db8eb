"""What backbones are pretrained on: turned images, resized digits, nothing of the test set."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from maskcl import scenarios
from maskcl.scenarios import ScenarioError, pretraining, sources
from maskcl.scenarios.sources import Images

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def everything(dataset):
    """(x, y) of a whole set."""
    return dataset.take(torch.arange(len(dataset)))


def numbered(height=5, width=5, classes=(3, 8), each=10):
    """Images in which no two pixels are equal, so that every turn is another image."""
    count = each * len(classes)
    pixels = torch.arange(count * height * width).reshape(count, 1, height, width)
    labels = torch.tensor(classes).repeat(each)
    rows = torch.arange(count)
    train, test = rows[: -len(classes)], rows[-len(classes) :]
    return Images(pixels.float(), labels, train, test, 1.0, "numbers")


def keys(x):
    """Each image as something to look up."""
    return {tuple(image.flatten().tolist()) for image in x}


def test_every_image_stands_in_three_positions_and_never_upright():
    images = numbered()
    data = pretraining.rotated("numbers", images, seed=0)
    x = torch.cat([everything(data.train)[0], everything(data.held_out)[0]])
    assert len(x) == len(keys(x)) == 3 * len(images.train)
    upright = images.pixels[images.train]
    wanted = torch.cat([torch.rot90(upright, turn, (2, 3)) for turn in (1, 2, 3)])
    assert keys(x) == keys(wanted)
    assert not keys(x) & keys(upright)


def test_turned_images_keep_their_label_as_a_position():
    images = numbered()
    x, y = everything(pretraining.rotated("numbers", images, seed=0).train)
    label_of = {}
    for image, label in zip(images.pixels, images.labels.tolist(), strict=True):
        for turn in (1, 2, 3):
            label_of[tuple(torch.rot90(image, turn, (1, 2)).flatten().tolist())] = label
    found = [label_of[tuple(image.flatten().tolist())] for image in x]
    assert [{3: 0, 8: 1}[label] for label in found] == y.tolist()


def test_no_image_is_trained_on_and_held_out_in_another_position():
    data = pretraining.rotated("numbers", numbered(), seed=0)
    parts = []
    for part in (data.train, data.held_out):
        x, _ = everything(part)
        # The sum does not change by turning, and differs between these images.
        parts.append(set(x.sum((1, 2, 3)).tolist()))
        assert len(x) == 3 * len(parts[-1])
    assert not parts[0] & parts[1]
    assert len(parts[1]) == 2  # a tenth of 9, rounded, for each class


def test_test_images_are_in_neither_part_in_any_position():
    images = sources.digits(4)
    data = scenarios.load_pretraining("split-digits", "rotated", seed=4)
    seen = keys(everything(data.train)[0]) | keys(everything(data.held_out)[0])
    training = keys(images.pixels[images.train] / images.full_scale)
    for turn in (0, 1, 2, 3):
        test = images.pixels[images.test] / images.full_scale
        # An image that the training set holds too would prove nothing.
        fresh = keys(test) - training
        turned = torch.rot90(test, turn, (2, 3))
        kept = [i for i, image in enumerate(test) if tuple(image.flatten().tolist()) in fresh]
        assert not keys(turned[kept]) & seen


def test_single_items_are_those_of_a_batch_and_a_data_loader_works():
    data = pretraining.rotated("numbers", numbered(), seed=0)
    x, y = everything(data.train)
    for index in (0, 1, 5, len(data.train) - 1):
        one, label = data.train[index]
        assert torch.equal(one, x[index])
        assert label == y[index]
    assert torch.equal(data.train[-1][0], x[-1])
    with pytest.raises(IndexError):
        data.train[len(data.train)]
    batch = next(iter(DataLoader(data.train, batch_size=4)))
    assert torch.equal(batch[0], x[:4])


def test_digits_take_the_scenarios_size_and_hold_a_fifth_out():
    data = scenarios.load_pretraining("split-mnist", "digits", seed=1)
    assert (data.classes, data.input_shape) == (10, (1, 28, 28))
    x, y = everything(data.train)
    assert x.shape == (1438, 1, 28, 28)
    assert (x.min(), x.max()) == (0, 1)
    assert len(data.held_out) == 1797 - 1438
    # Resized, not cut: its mean over blocks looks like the digit.
    images = sources.digits(1)
    small = images.pixels[images.train] / images.full_scale
    again = torch.nn.functional.interpolate(x, size=(8, 8), mode="area")
    paired = np.corrcoef(small.flatten().numpy(), again.flatten().numpy())[0, 1]
    assert paired > 0.95
    assert y.tolist() == images.labels[images.train].tolist()


def test_the_seed_decides_what_is_held_out():
    def held_out(seed):
        return keys(everything(pretraining.rotated("n", numbered(), seed).held_out)[0])

    assert held_out(0) == held_out(0)
    assert len({frozenset(held_out(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("split-digit", None), "unknown scenario 'split-digit'"),
        (("split-digits", "upright"), "unknown source 'upright': known are rotated, digits"),
        (("permuted-digits", "digits"), "permuted-digits is made of the digits themselves"),
        (("split-mnist", None), "--data DIR"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(arguments, sentence):
    with pytest.raises(ScenarioError, match=sentence):
        scenarios.load_pretraining(*arguments)


def test_images_that_cannot_be_turned_or_held_out_are_refused():
    with pytest.raises(ScenarioError, match=r"must be square, found 4x5"):
        pretraining.rotated("n", numbered(height=4), seed=0)
    with pytest.raises(ScenarioError, match=r"4 training images are too few"):
        pretraining.rotated("n", numbered(each=3), seed=0)
