"""Nothing that only looks, measures, keeps or repeats moves torch's global random state."""

import pytest
import torch

import labutils as lab
from labutils.methods.distillation import Distillation, load_teacher

NET = lab.MLP(3, 8, dropout=0.2, normalization="batch", in_features=3072)
CNN = lab.ResNet([1, 1, 1, 1], width=1, zero_init_residual=False)
FEATURES = torch.randn(40, 6), torch.arange(40) % 4
LOGITS = torch.randn(40, 4)


def images_of(data):
    return data.normalise(data.train.images[:8]), data.train.labels[:8]


LOOKS = {
    "fit": lambda data, cache: lab.fit(NET, data, lab.Training(epochs=1, augment="strong"), progress=False),
    "evaluate": lambda data, cache: lab.evaluate(NET, "test", data, views=2),
    "predict": lambda data, cache: lab.predict(NET, "test", data),
    "batches": lambda data, cache: list(
        lab.batches(data.train, data, 9, generator=torch.Generator(), augment="strong")
    ),
    "load_data": lambda data, cache: lab.load_data("mnist", source="builtin", limit=50),
    "describe": lambda data, cache: lab.describe(CNN, data.image_shape),
    "extract_features": lambda data, cache: lab.extract_features(NET, "test", data, cache=cache),
    "extract_logits": lambda data, cache: lab.extract_logits(CNN, "test", data, cache=cache),
    "knn": lambda data, cache: lab.knn(FEATURES, FEATURES),
    "linear_svm": lambda data, cache: lab.linear_svm(FEATURES, FEATURES),
    "linear_probe": lambda data, cache: lab.linear_probe(FEATURES, FEATURES),
    "unfreeze": lambda data, cache: lab.unfreeze(CNN, 1),
    "load_pretrained": lambda data, cache: lab.load_pretrained("small"),
    "load_teacher": lambda data, cache: load_teacher(Distillation(teacher="small"), data, lab.Training(epochs=1)),
    "gradient_norms": lambda data, cache: lab.gradient_norms(NET, *images_of(data)),
    "activation_gradients": lambda data, cache: lab.probes.activation_gradients(NET, *images_of(data)),
    "gradient_correlation": lambda data, cache: lab.probes.gradient_correlation(NET, *images_of(data)[0][:2]),
    "lesion_study": lambda data, cache: lab.probes.lesion_study(NET, "validation", data),
    "loss_surface": lambda data, cache: lab.probes.loss_surface(NET, *images_of(data), points=3),
    "class_activation_maps": lambda data, cache: lab.probes.class_activation_maps(CNN, images_of(data)[0]),
    "calibration_error": lambda data, cache: lab.probes.calibration_error(LOGITS, FEATURES[1]),
}


@pytest.mark.parametrize("name", LOOKS)
def test_looking_moves_no_random_state(name, backbone, shapes, tmp_path):
    before = torch.get_rng_state()
    LOOKS[name](shapes, tmp_path / "cache")
    assert torch.equal(torch.get_rng_state(), before)


DATA = {"name": "cifar10", "source": "builtin", "limit": 300, "validation": 0.1, "epochs": 1}
SMALL = {"blocks": [1, 1, 1, 1], "width": 4, "zero_init_residual": False}
RUNS = {
    "training": ("mlp_mnist", {"depth": 2, "width": 8, "epochs": 1}),
    "distillation": ("cnn_depth", DATA | {"width": 2, "teacher": "small"}),
    "fine-tuning": ("transfer_ladder", DATA | {"backbone": "small", "model": SMALL, "stages": 1}),
    "probe": ("transfer_ladder", DATA | {"backbone": "small", "model": SMALL, "method": "probe", "C": 0.1}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_moves_no_random_state_when_it_trains_and_when_it_is_loaded(name, backbone):
    config, settings = RUNS[name]
    experiment = lab.Experiment.load(config, profile="smoke", **settings)
    before = torch.get_rng_state()
    lab.run(experiment, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert lab.run(experiment, progress=False).model
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_of_a_students_class_moves_no_random_state(experiment, store):
    class Student(lab.MLP):
        pass

    before = torch.get_rng_state()
    for _ in ("trained", "loaded"):
        lab.run(experiment, model=Student, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
