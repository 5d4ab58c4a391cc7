import copy
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812

import labutils as lab
from labutils.training.evaluation import accuracies
from labutils.training.stop_button import Stopped, stoppable


class Fixed(nn.Module):
    """Logits that are given, whatever the images."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.seen = logits, 0

    def forward(self, images):
        chosen = self.logits[self.seen : self.seen + len(images)]
        self.seen += len(images)
        return chosen


@settings(max_examples=20)
@given(seed=st.integers(0, 1_000), values=st.integers(1, 4))
def test_a_label_that_is_first_is_among_the_five_where_classes_tie(seed, values):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(values, (50, 100), generator=generator).float()
    found = accuracies(logits, logits.argmax(dim=1))
    assert found == {"top1": 1.0, "top5": 1.0}


@settings(max_examples=20)
@given(seed=st.integers(0, 1_000))
def test_evaluate_measures_what_it_says(digits, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(digits.test), 10, generator=generator)
    measured = lab.evaluate(Fixed(logits), digits.test, digits)
    ranks = (logits > logits.gather(1, digits.test.labels[:, None])).sum(1)
    probabilities = logits.double().softmax(1).gather(1, digits.test.labels[:, None])
    assert measured["top1"] == pytest.approx((ranks < 1).double().mean().item())
    assert measured["top5"] == pytest.approx((ranks < 5).double().mean().item())
    assert measured["loss"] == pytest.approx(-probabilities.log().mean().item(), rel=1e-5)


def test_evaluate_uses_eval_mode_and_puts_the_mode_back(digits):
    model = lab.MLP(2, 16, dropout=0.9, normalization="batch").train()
    before = copy.deepcopy(model.state_dict())
    assert lab.evaluate(model, "test", digits) == lab.evaluate(model, "test", digits)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_flips_average_an_image_with_its_mirror_image(digits):
    torch.manual_seed(0)
    model = lab.MLP(1, 16)
    mirrored = lab.Split(digits.test.images.flip(-1), digits.test.labels)
    both = lab.predict(model, "test", digits)[0] + lab.predict(model, mirrored, digits)[0]
    flipped, labels = lab.predict(model, "test", digits, views=2)
    assert torch.allclose(flipped, both / 2, atol=1e-6)
    assert lab.evaluate(model, "test", digits, views=2)["top1"] == (both.argmax(1) == labels).double().mean()


def test_six_views_are_moved_by_a_pixel_to_two_corners(digits):
    torch.manual_seed(0)
    model = lab.MLP(1, 8)
    images = digits.normalise(digits.test.images)
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    with torch.no_grad():
        middle, up, down = (
            model(view) + model(view.flip(-1)) for view in (images, padded[..., :28, :28], padded[..., 2:, 2:])
        )
    found, _ = lab.predict(model, "test", digits, views=6)
    assert torch.allclose(found, middle / 4 + up / 8 + down / 8, atol=1e-6)


def test_another_number_of_views_is_named(digits):
    with pytest.raises(lab.SettingError, match="views: 3 was given; allowed: 1, 2, 6"):
        lab.evaluate(lab.MLP(1, 8), "test", digits, views=3)


@pytest.mark.parametrize("measure", [lab.evaluate, lab.predict])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lab.MLP(1, 4, in_features=3072), r"in_features: 3072 .* 784, the numbers in an image of scikit"),
        (lab.ResNet((1, 1, 1, 1), width=1), r"in_channels: 3 .* 1, the channels of scikit"),
        (lab.ShallowCNN((1, 1, 1)), r"in_channels: 3 .* 1, the channels of scikit"),
    ],
    ids=["mlp", "resnet", "shallow"],
)
def test_a_model_of_other_images_is_named(few, measure, model, words):
    with pytest.raises(lab.SettingError, match=words):
        measure(model, "test", few)


def test_a_model_of_other_classes_is_named(few):
    with pytest.raises(lab.SettingError, match="classes: 7 was given; allowed: 10"):
        lab.evaluate(lab.MLP(1, 8, classes=7), "test", few)


def test_top5_of_fewer_classes_is_one(few):
    train, test = (lab.Split(part.images, part.labels % 3) for part in (few.train, few.test))
    data = replace(few, classes=few.classes[:3], train=train, validation=None, test=test)
    assert lab.evaluate(lab.MLP(1, 8, classes=3), "test", data)["top5"] == 1


def test_it_leaves_the_random_state_alone(few):
    model, before = lab.MLP(2, 8, dropout=0.5), torch.get_rng_state()
    lab.evaluate(model, "test", few, views=6)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stop_is_heeded_and_the_mode_put_back(few):
    asked = threading.Event()
    asked.set()
    model = lab.MLP(1, 8).train()
    with stoppable(asked), pytest.raises(Stopped):
        lab.evaluate(model, "test", few)
    assert model.training
    assert lab.evaluate(model, "test", few)["top5"] >= 0
