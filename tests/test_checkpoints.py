"""Trainings that are killed and go on; checkpoints that are damaged, or of something else."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils.checkpoints import load_tensors, put_back_tensors, save_tensors, split_off_tensors

# Forked once all is imported and has been used, so that a start takes milliseconds; nothing there has a second thread.
KILLED_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path

import torch
import labutils as lab
from labutils.checkpoints import save_tensors

torch.set_num_threads(1)
digits = lab.load_data("mnist", source="builtin", limit=400, device="cpu")
shapes = lab.load_data("cifar10", source="builtin", limit=200, device="cpu")
probe = lambda model: lab.gradient_norms(model, *next(lab.batches(digits.train, digits, 64)))
CASES = {
    "plateau": (digits, lambda: lab.MLP(3, 16, dropout=0.2, normalization="batch"), probe, dict(
        epochs=14, batch_size=16, lr=3e-2, scheduler="plateau", patience=9)),
    "onecycle": (shapes, lambda: lab.ResNet((1, 1, 1, 1), width=2), None, dict(
        epochs=8, batch_size=32, optimizer="sgd", lr=0.1, scheduler="onecycle", augment="strong",
        averaging=0.8, whitening=True)),
    "cosine": (shapes, lambda: lab.ResNet((1, 1, 1, 1), width=2, residual=False), None, dict(
        epochs=8, batch_size=32, optimizer="muon", lr=0.05, weight_decay=0.1, scheduler="cosine", augment="slight")),
}
data, build, probe, training = CASES[sys.argv[1]]
folder = Path(sys.argv[2])
PATIENCE = 1.2  # kills come later and later, so that it ends on a machine that has become busy, too
generator = random.Random(sys.argv[1])


def train(name, checkpoint):
    torch.manual_seed(3)
    model = build()
    history = lab.fit(model, data, lab.Training(**training), probe=probe, checkpoint=checkpoint, progress=False)
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows]
    probes = [] if history.probes is None else history.probes.to_dict("list")
    save_tensors(folder / name, model.state_dict(), {"rows": rows, "probes": probes, "early": history.stopped_early})


def forked(work, *arguments):
    child = os.fork()
    if child == 0:
        work(*arguments)
        os._exit(0)
    return child


lab.fit(build(), data, lab.Training(epochs=1), probe=probe, progress=False)
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


@pytest.mark.parametrize("case", ["plateau", "onecycle", "cosine"])
def test_killed_at_random_times_it_ends_as_if_never_stopped(case, tmp_path):
    command = [sys.executable, "-c", KILLED_AT_RANDOM, case, str(tmp_path)]
    # Without pools of threads from the start: a fork copies their locks, and not the threads that would free them.
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **alone})
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout.split()[-1]) >= 2, "nothing was killed"
    (weights, record), (expected_weights, expected_record) = (
        load_tensors(tmp_path / name) for name in ("killed", "whole")
    )
    assert str(record) == str(expected_record)  # as text, in which NaN equals itself
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, digits):
    """A checkpoint after one epoch of two."""
    path = tmp_path_factory.mktemp("checkpoint") / "kept.safetensors"

    def stop(history):
        raise KeyboardInterrupt

    lab.fit(lab.MLP(2, 8), digits, lab.Training(epochs=2), on_epoch=stop, checkpoint=path, progress=False)
    return path


def test_a_finished_training_is_not_trained_again(digits, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    model, training = lab.MLP(2, 8), lab.Training(epochs=2)
    first = lab.fit(model, digits, training, checkpoint=path, progress=False)
    other = lab.MLP(2, 8)
    again = lab.fit(other, digits, training, checkpoint=path, progress=False)
    assert again.frame.equals(first.frame)
    assert torch.equal(other.head.weight, model.head.weight)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": lab.MLP(2, 9)}, ["another model", "[9, 784]"]),
        ({"training": lab.Training(epochs=3)}, ["another training", "'epochs': 3"]),
        ({"limit": 300}, ["another data set", "240 training"]),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(kept, digits, changed, words):
    data = lab.load_data("mnist", source="builtin", limit=changed["limit"]) if "limit" in changed else digits
    model = changed.get("model", lab.MLP(2, 8))
    before = model.head.weight.clone()
    with pytest.raises(lab.CheckpointError) as caught:
        lab.fit(model, data, changed.get("training", lab.Training(epochs=2)), checkpoint=kept, progress=False)
    assert all(word in str(caught.value) for word in [str(kept), *words])
    assert torch.equal(model.head.weight, before)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(kept, place, bit):
    contents = bytearray(kept.read_bytes())
    contents[int(place * len(contents))] ^= 1 << bit
    damaged = kept.with_name("damaged.safetensors")
    damaged.write_bytes(contents)
    with pytest.raises(lab.CheckpointError, match=r"damaged\.safetensors"):
        load_tensors(damaged)


def test_a_missing_or_cut_file_is_named(kept):
    with pytest.raises(lab.CheckpointError, match="nowhere"):
        load_tensors(kept.with_name("nowhere"))
    cut = kept.with_name("cut")
    cut.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(lab.CheckpointError, match="cut"):
        load_tensors(cut)


def test_nothing_in_a_checkpoint_is_pickled(kept):
    contents = kept.read_bytes()
    assert contents[8:9] == b"{"  # safetensors: a header in JSON, then numbers
    assert b"PK\x03\x04" not in contents[:4]


def test_what_was_there_stays_until_all_is_written(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    save_tensors(path, {"a": torch.ones(3)}, {"epoch": 1})
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_tensors(path, {"a": torch.zeros(3)}, {"epoch": 2})
    tensors, record = load_tensors(path)
    assert record == {"epoch": 1}
    assert torch.equal(tensors["a"], torch.ones(3))


states = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(state=states)
def test_states_come_back_as_they_went(state):
    import json

    tensors = {}
    split = json.loads(json.dumps(split_off_tensors({"t": torch.arange(3), "s": state}, tensors)))
    back = put_back_tensors(split, tensors)
    assert torch.equal(back["t"], torch.arange(3))
    assert back["s"] == state


@pytest.mark.parametrize("what", ["damaged", "of another training"])
def test_a_runs_unusable_checkpoint_is_warned_of_and_replaced(store, experiment, what):
    def stop(history):
        raise KeyboardInterrupt

    lab.run(experiment, progress=False, on_epoch=stop)
    (kept,) = (store / ".checkpoints").iterdir()
    if what == "damaged":
        contents = bytearray(kept.read_bytes())
        contents[-9] ^= 1
        kept.write_bytes(contents)
    else:
        tensors, record = load_tensors(kept)
        del record["about"]["training"]["averaging"]  # as an older version would have written it
        save_tensors(kept, tensors, record)
    with pytest.warns(lab.DamagedRun, match=f"{what}.* from its beginning"):
        assert lab.run(experiment, progress=False).path.is_dir()
