"""A training that is interrupted or killed and goes on is the same, to the bit, as one that was never stopped."""

import os
import subprocess
import sys

import pytest
import torch

import labutils as lab
from labutils.methods.distillation import Distillation, Teacher, cached_answer
from labutils.training import Callback, Probe
from labutils.training.checkpoints import load_tensors


def mlp(**settings):
    return lab.MLP(2, 12, **settings)


def resnet():
    return lab.ResNet((1, 1, 1, 1), width=2)


SGD = {"optimizer": "sgd", "lr": 0.1}
# Of each case: the data, the model, and the settings of its training.
CASES = {
    "adam": ("few", mlp, {}),
    "sgd with momentum": ("few", mlp, SGD),
    "plateau with patience": ("few", mlp, {"lr": 0.1, "scheduler": "plateau", "patience": 3, "epochs": 9}),
    "averaging": ("few", lambda: mlp(normalization="batch"), SGD | {"averaging": 0.8}),
    "muon": ("few", lambda: mlp(residual=True, residual_scale="zero"), {"optimizer": "muon", "lr": 0.05}),
    "dropout": ("few", lambda: mlp(dropout=0.3, normalization="layer"), {"optimizer": "adamw", "weight_decay": 0.1}),
    "one cycle": ("few", mlp, SGD | {"scheduler": "onecycle"}),
    "triangular": ("few", mlp, {"optimizer": "muon", "lr": 0.05, "scheduler": "triangular"}),
    "cosine with slight augmentation": ("few", mlp, {"scheduler": "cosine", "augment": "slight"}),
    "convolutions with strong augmentation": ("shapes", resnet, {"augment": "strong", "lr": 0.01}),
    "rates by stage with whitening": ("shapes", resnet, SGD | {"stage_lr": 0.5, "whitening": True, "averaging": 0.5}),
}


def result(history, model):
    """All that a training gives but its seconds, as it can be compared."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
    probes = [] if history.probes is None else history.probes.to_dict("list")
    return str((rows, probes, history.stopped_early, history.interrupted)), model.state_dict()


def trained(data, build, settings, **options):
    torch.manual_seed(3)
    model = build()
    training = lab.Training(**{"epochs": 4, "batch_size": 32} | settings)
    return result(lab.fit(model, data, training, progress=False, **options), model)


def assert_same(found, expected):
    (told, weights), (expected_told, expected_weights) = found, expected
    assert told == expected_told  # as text, in which NaN equals itself
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


@pytest.mark.parametrize("case", CASES)
def test_interrupted_and_resumed_it_ends_as_if_never_stopped(case, few, shapes, one_thread, interrupt_after, tmp_path):
    data, build, settings = CASES[case]
    data, checkpoint = {"few": few, "shapes": shapes}[data], tmp_path / "checkpoint"
    whole = trained(data, build, settings)
    for epochs in (1.4, 2.7):  # twice: what has been resumed can be resumed again
        with pytest.raises(lab.Interrupted):
            trained(data, build, settings, callbacks=[interrupt_after(epochs)], checkpoint=checkpoint)
    torch.manual_seed(99)
    assert_same(trained(data, build, settings, checkpoint=checkpoint), whole)


def test_the_bits_would_show_a_resumption_that_forgot_the_optimizer(
    few, one_thread, interrupt_after, tmp_path, monkeypatch
):
    """The tests above can fail: without what Adam remembers the rest of the training is another."""
    checkpoint = tmp_path / "checkpoint"
    whole = trained(few, mlp, {})
    with pytest.raises(lab.Interrupted):
        trained(few, mlp, {}, callbacks=[interrupt_after(1.4)], checkpoint=checkpoint)
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)
    with pytest.raises(AssertionError):
        assert_same(trained(few, mlp, {}, checkpoint=checkpoint), whole)


def test_with_a_teacher_and_a_probe_it_ends_as_if_never_stopped(few, one_thread, interrupt_after, tmp_path):
    torch.manual_seed(0)
    answer = cached_answer(lab.MLP(1, 8), few)
    batch = next(lab.batches(few.train, few, 16))

    def taught(*callbacks, **options):
        teacher = Teacher(answer, Distillation(teacher="anyone"))
        probe = Probe(lambda model: lab.gradient_norms(model, *batch))
        return trained(few, mlp, {}, loss=teacher.loss, callbacks=[teacher, probe, *callbacks], **options)

    whole, checkpoint = taught(), tmp_path / "checkpoint"
    with pytest.raises(lab.Interrupted):
        taught(interrupt_after(2.2), checkpoint=checkpoint)
    assert_same(taught(checkpoint=checkpoint), whole)


def test_a_training_that_patience_ended_is_not_trained_on(few, one_thread, tmp_path):
    settings = {"lr": 0.1, "patience": 1, "epochs": 40}
    first = trained(few, mlp, settings, checkpoint=tmp_path / "checkpoint")
    assert "True, False" in first[0]  # stopped early, not interrupted
    steps = []
    watch = Callback()
    watch.after_step = steps.append
    assert_same(trained(few, mlp, settings, checkpoint=tmp_path / "checkpoint", callbacks=[watch]), first)
    assert not steps


# Forked once all is imported and has been used, so that a start takes milliseconds; nothing there has a second thread.
KILLED_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path

import torch
import labutils as lab
from labutils.training import Probe
from labutils.training.checkpoints import save_tensors

torch.set_num_threads(1)
case, folder = sys.argv[1], Path(sys.argv[2])
data = lab.load_data("mnist" if case == "plateau" else "cifar10", source="builtin", limit=200, device="cpu")
batch = next(lab.batches(data.train, data, 64))
CASES = {
    "plateau": (lambda: lab.MLP(3, 16, dropout=0.2, normalization="batch"), dict(
        epochs=14, batch_size=16, lr=3e-2, scheduler="plateau", patience=9)),
    "onecycle": (lambda: lab.ResNet((1, 1, 1, 1), width=2), dict(
        epochs=8, batch_size=32, optimizer="sgd", lr=0.1, scheduler="onecycle", augment="strong",
        averaging=0.8, whitening=True)),
    "cosine": (lambda: lab.ResNet((1, 1, 1, 1), width=2, residual=False), dict(
        epochs=8, batch_size=32, optimizer="muon", lr=0.05, weight_decay=0.1, scheduler="cosine", augment="slight")),
}
build, training = CASES[case]
PATIENCE = 1.2  # kills come later and later, so that it ends on a machine that has become busy, too
generator = random.Random(case)


def train(name, checkpoint, epochs=None):
    torch.manual_seed(3)
    model = build()
    probe = Probe(lambda model: lab.gradient_norms(model, *batch))
    settings = lab.Training(**training | ({"epochs": epochs} if epochs else {}))
    history = lab.fit(model, data, settings, callbacks=[probe], checkpoint=checkpoint, progress=False)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows]
    record = {"rows": rows, "probes": history.probes.to_dict("list"), "early": history.stopped_early}
    save_tensors(folder / name, model.state_dict(), record)


def forked(work, *arguments):
    child = os.fork()
    if child == 0:
        work(*arguments)
        os._exit(0)
    return child


train("warm", folder / "warm checkpoint", epochs=1)
start = time.perf_counter()
assert os.waitpid(forked(train, "whole", None), 0)[1] == 0
whole = time.perf_counter() - start
kills = 0
while kills < 2:
    for left in folder.glob("[!w]*"):  # of a round that a machine which is no longer busy got through unharmed
        left.unlink()
    kills, whole = 0, whole / 2
    while not (folder / "killed").exists():
        child = forked(train, "killed", folder / "checkpoint")
        time.sleep(generator.uniform(0.3, 0.8) * whole * PATIENCE**kills)
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print("kills", kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(
    "case", ["plateau", *(pytest.param(case, marks=pytest.mark.slow) for case in ("onecycle", "cosine"))]
)
def test_killed_at_random_times_it_ends_as_if_never_stopped(case, tmp_path):
    command = [sys.executable, "-c", KILLED_AT_RANDOM, case, str(tmp_path)]
    # Without pools of threads from the start: a fork copies their locks, and not the threads that would free them.
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **alone})
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout.split()[-1]) >= 2, "nothing was killed"
    (weights, record), (expected_weights, expected_record) = (
        load_tensors(tmp_path / name) for name in ("killed", "whole")
    )
    assert_same((str(record), weights), (str(expected_record), expected_weights))
