import torch

import labutils as lab
from labutils.data import device, loading
from labutils.data.device import RESIDENT_SHARE, fits, moved

META = torch.device("meta")  # stands for a GPU: its tensors have no values


def test_data_take_at_most_their_share_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(device, "free_memory", lambda found: 1000)
    assert fits(int(1000 * RESIDENT_SHARE), META)
    assert not fits(int(1000 * RESIDENT_SHARE) + 1, META)


def test_images_stay_on_the_processor_where_they_do_not_fit_on_the_device(monkeypatch, digits):
    monkeypatch.setattr(device, "free_memory", lambda found: 1000)
    monkeypatch.setattr(loading, "find_device", lambda name: META)
    monkeypatch.setattr(lab.ImageData, "__post_init__", lambda data: None)  # which looks at the labels
    data = lab.load_data("mnist", source="builtin")
    assert data.device == data.train.labels.device == data.std.device == META
    assert torch.equal(data.train.images, digits.train.images)
    for images, labels in lab.batches(data.test, data, 50):
        assert images.device == labels.device == META
        assert images.shape[1:] == (1, 28, 28)


def test_batches_are_the_same_however_many_are_made_at_once(monkeypatch, digits):
    def made():
        order = torch.Generator().manual_seed(0)
        return list(lab.batches(digits.train, digits, 50, generator=order))

    many = made()
    monkeypatch.setattr(loading, "CHUNK", 1)
    for before, after in zip(many, made(), strict=True):
        assert all(map(torch.equal, before, after))


def test_what_is_on_the_device_already_is_not_copied():
    tensor = torch.ones(3)
    assert moved(tensor, torch.device("cpu")) is tensor
