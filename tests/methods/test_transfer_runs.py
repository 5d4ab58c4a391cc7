"""Transfers as experiments."""

import math
import shutil

import pytest
import torch

import labutils as lab
from labutils.experiments import running, store
from labutils.experiments.running import load_experiment_data
from labutils.methods import pretrained, transfer
from labutils.training import Callback, loop
from labutils.training.checkpoints import save_tensors


class Act(Callback):
    """Does what it is given at the moments it is given for."""

    def __init__(self, **moments):
        vars(self).update(moments)


def transfer_of(**changes):
    model = {"blocks": [1, 1, 1, 1], "width": 4, "zero_init_residual": False}
    settings = {
        "backbone": "small",
        "model": model,
        "source": "builtin",
        "epochs": 3,
        "name": "cifar10",
        "limit": 300,
        **changes,
    }
    return lab.Experiment.load("transfer_ladder", profile="smoke", **settings)


@pytest.mark.parametrize("method", ["knn", "svm", "probe"])
def test_a_head_for_frozen_features_is_a_run_like_any_other(backbone, method, monkeypatch):
    experiment = transfer_of(method=method, k=5)
    finished = lab.run(experiment, progress=False)
    data = load_experiment_data(experiment)
    monkeypatch.setattr(running, "train", lambda *_, **__: pytest.fail("trained again"))
    again = lab.run(experiment, progress=False)
    assert again.path == finished.path
    for run in (finished, again):
        assert lab.evaluate(run.model, "test", data)["top1"] == finished.metrics["test_top1"]
    same = [name for name in backbone.state_dict() if not name.startswith("head.")]
    assert all(torch.equal(again.model.state_dict()[name], backbone.state_dict()[name]) for name in same)
    assert finished.metrics["parameters"] == (0 if method == "knn" else 10 * (32 + 1))
    assert finished.metrics["test_top1"] > 0.2  # of 10 classes
    assert ("chosen_C" in finished.metrics) == (method != "knn")
    assert finished.metrics.get("chosen_C", 1.0) > 0


def test_fine_tuning_changes_what_it_may_and_starts_from_the_backbone(backbone):
    finished = lab.run(transfer_of(stages=1, name="cifar100"), progress=False)
    same = [name for name in backbone.state_dict() if name.startswith(("stem.", "stages.0", "stages.1", "stages.2"))]
    assert all(torch.equal(finished.model.state_dict()[name], backbone.state_dict()[name]) for name in same)
    conv = "stages.3.0.conv1.weight"
    assert not torch.equal(finished.model.state_dict()[conv], backbone.state_dict()[conv])
    assert finished.model.head.out_features == 100


def test_reinitialized_stages_start_from_random_weights_and_the_others_from_the_backbone(backbone):
    experiment = transfer_of(stages=2, reinitialized=2, name="cifar100")
    data = load_experiment_data(experiment)
    found = running.untrained(experiment, data, lambda: running.build_for(experiment, data)).state_dict()
    kept = {name: torch.equal(found[name], backbone.state_dict()[name]) for name in found if name.endswith("1.weight")}
    assert all(same == (not name.startswith(("stages.2", "stages.3"))) for name, same in kept.items() if "conv" in name)
    assert any("conv" in name and not same for name, same in kept.items())
    with pytest.raises(lab.SettingError, match=r"transfer\.reinitialized: 3 .* 0 to 2"):
        transfer_of(stages=2, reinitialized=3)
    with pytest.raises(lab.SettingError, match=r"reinitialized: 5 .* 0 to 4"):
        lab.run(transfer_of(reinitialized=5), progress=False)


def test_progressive_fine_tuning_unfreezes_in_phases(backbone, monkeypatch):
    learning, seen = [], []
    fit = transfer.fit

    def watched(model, data, training, **options):
        learning.append((sum(parameter.requires_grad for parameter in model.parameters()), training.epochs))
        return fit(model, data, training, **options)

    monkeypatch.setattr(transfer, "fit", watched)
    experiment = transfer_of(stages=2, progressive=True, epochs=5)
    watch = Act(after_epoch=lambda state: seen.append((len(state.whole_history.rows), state.epochs)))
    finished = lab.run(experiment, progress=False, callbacks=[watch])
    counts, epochs = zip(*learning, strict=True)
    assert list(counts) == sorted(set(counts))
    assert counts[0] == 2
    assert counts[2] == len(list(finished.model.parameters()))
    assert epochs == (1, 2, 2)
    assert seen == [(number, number) for number in (1, 2, 3, 4, 5)]
    assert finished.history.frame["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert finished.metrics["validation_top1"] == finished.history.frame["validation_accuracy"].max()


def test_a_progressive_fine_tuning_that_is_stopped_goes_on(backbone, one_thread):
    experiment = transfer_of(stages=2, progressive=True, epochs=6)
    whole = lab.run(experiment, progress=False)
    weights = whole.model.state_dict()
    shutil.rmtree(whole.path)

    def stop(state):
        if len(state.whole_history.rows) == 3 and state.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(lab.Interrupted) as caught:
        lab.run(experiment, progress=False, callbacks=[Act(after_step=stop)])
    assert len(caught.value.history.rows) == 3
    resumed = lab.run(experiment, progress=False)
    assert resumed.history.frame.drop(columns="seconds").equals(whole.history.frame.drop(columns="seconds"))
    assert all(torch.equal(weights[name], tensor) for name, tensor in resumed.model.state_dict().items())
    assert not list(resumed.path.parent.glob(".checkpoints/*"))


def test_a_run_is_named_by_the_weights_it_starts_from(backbone):
    experiment = transfer_of()
    data = load_experiment_data(experiment)
    before = experiment.identity(data)
    record = pretrained.read_record("small")
    del record["sha256"]
    with torch.no_grad():
        backbone.head.bias[0] += 1
    save_tensors(pretrained.checkpoints_folder() / "small.safetensors", backbone.state_dict(), record)
    assert experiment.identity(data) == before  # the record beside it still tells of the old weights ...
    with pytest.raises(lab.CheckpointError):
        lab.run(experiment, progress=False)  # ... and they are refused
    pretrained.save_pretrained("small", backbone, data, settings=record["settings"], metrics=record["metrics"])
    assert experiment.identity(data) != before


def test_a_transfer_from_nothing_is_a_training_from_scratch():
    experiment = lab.Experiment.load("transfer_ladder", profile="smoke", backbone=None, stages=-1, method="fine_tuning")
    assert "transfer" not in experiment.settings()
    assert "\ntransfer:" not in experiment.to_yaml()
    again = experiment.override(backbone="cnn_backbone", stages=1)
    assert again.settings()["transfer"]["stages"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.width": 8}, r"model\.width: 8 .* 4, which small has"),
        ({"stages": 5}, r"stages: 5 .* from -1 to 4"),
        ({"backbone": "smal"}, "did you mean small"),
        ({"name": "mnist"}, "backbone: 'small' .* 1 channels, not 3"),
        ({"method": "svm", "validation": 0.0}, "C: None .* no validation split"),
        ({"stages": 1, "progressive": True, "epochs": 2}, "epochs: 2 .* from 3, one for each phase"),
        ({"method": "knn", "k": 10_000}, r"k: 10000 .* from 1 to"),
    ],
)
def test_transfers_that_cannot_be_are_named(backbone, store, changes, words):
    with pytest.raises(lab.SettingError, match=words):
        lab.run(transfer_of(**changes), progress=False)
    assert not [path for path in store.glob("*") if not path.name.startswith(".")]


def test_gradients_of_what_takes_no_steps_are_refused(backbone):
    with pytest.raises(lab.SettingError, match=r"measurement\.gradients: True .* false for probe"):
        transfer_of(method="probe", gradients=True)


def test_a_phase_with_a_damaged_checkpoint_is_trained_from_the_runs_beginning(backbone):
    experiment = transfer_of(progressive=True, stages=1, name="cifar100")
    whole = lab.run(experiment, progress=False)
    shutil.rmtree(whole.path)
    first = store.checkpoint_path(whole.path)
    second = first.with_suffix(f".1{first.suffix}")
    second.write_bytes(b"damaged")
    with pytest.warns(lab.DamagedRun, match="from its beginning"):
        again = lab.run(experiment, progress=False)
    assert again.history.frame["train_loss"].tolist() == whole.history.frame["train_loss"].tolist()
    assert all(map(torch.equal, again.model.state_dict().values(), whole.model.state_dict().values()))


def test_a_damaged_teacher_is_not_taken_for_a_damaged_checkpoint(backbone, recwarn):
    (pretrained.checkpoints_folder() / "small.safetensors").write_bytes(b"damaged")
    taught = lab.Experiment.load("distillation", profile="smoke", limit=300, **{"distillation.teacher": "small"})
    with pytest.raises(lab.CheckpointError):
        lab.run(taught, progress=False)
    assert not [warning for warning in recwarn if issubclass(warning.category, lab.DamagedRun)]


def test_an_interrupt_in_a_later_phase_leaves_the_best_epochs_weights(backbone, monkeypatch):
    """The first phase's accuracy is made the best; the second phase is interrupted after a worse epoch."""
    experiment, kept = transfer_of(stages=1, progressive=True, epochs=6, name="cifar100"), {}
    accuracies = iter([0.5, 0.4, 0.1])
    monkeypatch.setattr(
        loop, "validation_figures", lambda state: {"validation_loss": 1.0, "validation_accuracy": next(accuracies)}
    )

    def watch(state):
        if len(state.whole_history.rows) == 1 and state.step == 0:
            kept.update({name: tensor.clone() for name, tensor in state.model.state_dict().items()})
        if len(state.whole_history.rows) == 3:
            raise KeyboardInterrupt

    data = load_experiment_data(experiment)
    model = running.build_for(experiment, data)
    with pytest.raises(lab.Interrupted) as caught:
        transfer.fine_tune(model, data, experiment.training, experiment.transfer, progress=False,
                           callbacks=[Act(before_step=watch)])  # fmt: skip
    assert caught.value.history.best_epoch == 1
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())


def test_a_divergence_in_a_later_phase_is_told_with_the_epochs_before(backbone):
    experiment = transfer_of(stages=1, progressive=True, epochs=6, name="cifar100")

    def spoil(state):
        if len(state.whole_history.rows) == 3:
            with torch.no_grad():
                state.model.head.bias += math.nan

    data = load_experiment_data(experiment)
    model = running.build_for(experiment, data)
    with pytest.raises(lab.Diverged, match=r"nan in epoch 4, step 1\.") as caught:
        transfer.fine_tune(model, data, experiment.training, experiment.transfer, progress=False,
                           callbacks=[Act(before_step=spoil)])  # fmt: skip
    assert caught.value.epoch == 4
    assert len(caught.value.history.rows) == 3


def test_a_pretrained_stem_is_not_whitened():
    with pytest.raises(lab.SettingError, match=r"training.whitening: True .* beside a transfer\.backbone"):
        transfer_of(whitening=True)
