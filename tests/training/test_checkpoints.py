"""Checkpoints that are damaged, or of something else, and the files they are kept in."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labutils as lab
from labutils.files import FORMAT
from labutils.training import Callback
from labutils.training.checkpoints import load_tensors, put_back_tensors, save_tensors, split_off_tensors


class Interrupt(Callback):
    """Interrupts a training when its checkpoint holds one epoch."""

    def before_step(self, state):
        if state.history.rows:
            raise KeyboardInterrupt


def stopped(model, data, training, path):
    """A checkpoint after the first epoch."""
    with pytest.raises(lab.Interrupted):
        lab.fit(model, data, training, callbacks=[Interrupt()], checkpoint=path, progress=False)
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory, few):
    """A checkpoint after one epoch of two."""
    return stopped(
        lab.MLP(2, 16), few, lab.Training(epochs=2), tmp_path_factory.mktemp("checkpoint") / "kept.safetensors"
    )


def test_a_finished_training_is_not_trained_again(few, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    model, training = lab.MLP(2, 8), lab.Training(epochs=2)
    first = lab.fit(model, few, training, checkpoint=path, progress=False)
    other = lab.MLP(2, 8)
    again = lab.fit(other, few, training, checkpoint=path, progress=False)
    assert again.frame.equals(first.frame)
    assert torch.equal(other.head.weight, model.head.weight)


def other_split(data):
    return lab.load_data("mnist", source="builtin", limit=200, seed=7, device="cpu")


def other_labels(data):
    labels = data.train.labels.clone()
    labels[5] = (labels[5] + 1) % 10
    return replace(data, train=lab.Split(data.train.images, labels))


SAME = {"model": lambda: lab.MLP(2, 16), "data": lambda data: data, "training": lab.Training(epochs=2)}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": lambda: lab.MLP(2, 17)}, ["another model", "'width': 16", "'width': 17", "[17, 784]"]),
        (
            {"model": lambda: lab.MLP(2, 16, residual=True, activation="tanh")},
            ["another model", "'residual': False", "'residual': True", "'activation': 'relu'", "'activation': 'tanh'"],
        ),
        ({"training": lab.Training(epochs=3)}, ["another training", "'epochs': 2", "'epochs': 3"]),
        ({"training": lab.Training(epochs=2, averaging=0.5)}, ["another training", "'averaging': 0.5"]),
        ({"data": other_split}, ["another data", "'digest': "]),
        ({"data": other_labels}, ["another data", "'digest': "]),
        ({"data": lambda data: replace(data, title="others")}, ["another data", "'title': 'others'"]),
        ({"data": lambda data: replace(data, mean=0 * data.mean)}, ["another data", "'mean': [0.0]"]),
    ],
    ids=["width", "twin", "epochs", "averaging", "split", "labels", "title", "normalisation"],
)
def test_a_checkpoint_of_something_else_is_refused(kept, few, changed, words):
    settings = SAME | changed
    model, before = settings["model"](), kept.read_bytes()
    weights = model.head.weight.clone()
    with pytest.raises(lab.CheckpointError) as caught:
        lab.fit(model, settings["data"](few), settings["training"], checkpoint=kept, progress=False)
    assert all(word in str(caught.value) for word in [str(kept), *words])
    assert "'depth'" not in str(caught.value)  # which is the same
    assert torch.equal(model.head.weight, weights)
    assert kept.read_bytes() == before


def test_a_checkpoint_of_a_students_class_is_refused_by_what_it_computes(few, tmp_path):
    class Halved(lab.MLP):
        def forward(self, images):
            return super().forward(images) / 2

    class Doubled(lab.MLP):
        def forward(self, images):
            return super().forward(images) * 2

    training, path = lab.Training(epochs=2), tmp_path / "checkpoint"
    stopped(Halved(2, 16), few, training, path)
    with pytest.raises(lab.CheckpointError, match=r"another model .*behaviour"):
        lab.fit(Doubled(2, 16), few, training, checkpoint=path, progress=False)
    assert len(lab.fit(Halved(2, 16), few, training, checkpoint=path, progress=False).rows) == 2


def test_a_checkpoint_of_another_format_is_refused(kept, few):
    tensors, record = load_tensors(kept)
    record["about"]["format"] = FORMAT - 1
    older = kept.with_name("older")
    save_tensors(older, tensors, record)
    with pytest.raises(lab.CheckpointError, match=f"of another format .{FORMAT - 1}. .* .{FORMAT}."):
        lab.fit(lab.MLP(2, 16), few, lab.Training(epochs=2), checkpoint=older, progress=False)


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
    tensors = {}
    split = json.loads(json.dumps(split_off_tensors({"t": torch.arange(3), "s": state}, tensors)))
    back = put_back_tensors(split, tensors)
    assert torch.equal(back["t"], torch.arange(3))
    assert back["s"] == state


@pytest.mark.parametrize("what", ["damaged", "of another training"])
def test_a_runs_unusable_checkpoint_is_warned_of_and_replaced(store, experiment, what):
    with pytest.raises(lab.Interrupted):
        lab.run(experiment, progress=False, callbacks=[Interrupt()])
    (kept,) = (store / ".checkpoints").glob("*.safetensors")
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


class Counter(Callback):
    """Has a state to be kept."""

    steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, kept):
        self.steps = kept["steps"]


def test_a_checkpoint_without_a_callbacks_state_is_refused(few, tmp_path):
    path, training = tmp_path / "training.safetensors", lab.Training(epochs=1)
    lab.fit(lab.MLP(1, 4), few, training, checkpoint=path, progress=False)
    with pytest.raises(lab.CheckpointError, match="of a training without Counter"):
        lab.fit(lab.MLP(1, 4), few, training, checkpoint=path, callbacks=[Counter()], progress=False)


def test_two_callbacks_of_one_class_keep_a_state_each(digits, tmp_path):
    first, second = Counter(), Counter()
    first.steps, second.steps = 3, 5
    path = tmp_path / "training.safetensors"
    training = lab.Training(epochs=1)
    torch.manual_seed(0)
    lab.fit(lab.MLP(1, 4), digits, training, callbacks=[first, second], checkpoint=path, progress=False)
    again = [Counter(), Counter()]
    torch.manual_seed(0)
    lab.fit(lab.MLP(1, 4), digits, training, callbacks=again, checkpoint=path, progress=False)
    assert [one.steps for one in again] == [3, 5]
