import pytest

import labutils as lab


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epochs": 0}, ["epochs", "0", "from 1"]),
        ({"epochs": 1.5}, ["epochs", "1.5"]),
        ({"batch_size": 0}, ["batch_size", "from 1"]),
        ({"optimizer": "adm"}, ["optimizer", "adm", "adamw"]),
        ({"lr": 0}, ["lr", "0", "above 0"]),
        ({"lr": float("inf")}, ["lr", "inf"]),
        ({"momentum": 1}, ["momentum", "below 1"]),
        ({"weight_decay": -1}, ["weight_decay", "from 0"]),
        ({"scheduler": "step"}, ["scheduler", "step", "cosine"]),
        ({"patience": 0}, ["patience", "from 1"]),
        ({"label_smoothing": 1}, ["label_smoothing", "below 1"]),
        ({"augment": "wild"}, ["augment", "wild", "basic"]),
        ({"precision": "fp8"}, ["precision", "fp8", "bf16"]),
        ({"seed": -1}, ["seed", "from 0"]),
    ],
)
def test_wrong_settings_are_named(arguments, words):
    with pytest.raises(lab.SettingError) as caught:
        lab.Training(**{"epochs": 1} | arguments)
    assert all(word in str(caught.value) for word in words)
