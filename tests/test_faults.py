"""Kill, corrupt, crowd: whatever happens to what is kept, it is never served for what it is not.

`make faults N=200` goes on for longer than the tests do.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import labutils as lab
from labutils.experiments import running
from labutils.experiments import store as store_module

ROUNDS = int(os.environ.get("LABUTILS_FAULTS", "12"))
FILES = ("experiment.yaml", "history.csv", "gradients.csv", "metrics.json", "model.safetensors", "SHA256SUMS")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A store with one run, and its experiment."""
    store = tmp_path_factory.mktemp("pristine")
    experiment = lab.Experiment.load("mlp_mnist", profile="smoke", depth=1, width=4, epochs=1, gradients=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_RUNS", str(store))
        return experiment, lab.run(experiment, progress=False)


@pytest.fixture
def kept(pristine, store):
    """A copy of that run in a store of its own: its experiment, its folder, what it was."""
    experiment, run = pristine
    folder = store / run.path.name
    shutil.copytree(run.path, folder)
    return experiment, folder, run


def check_noticed(kept, what):
    """The damaged folder is named, set aside and trained anew, to the same result."""
    experiment, folder, before = kept
    with pytest.warns(lab.DamagedRun, match=folder.name) as warned:
        after = lab.run(experiment, progress=False)
    assert "\n" not in str(warned[0].message), what
    assert after.metrics["test_top1"] == before.metrics["test_top1"], what
    assert torch.equal(after.model.head.weight, before.model.head.weight), what
    (aside,) = (folder.parent / ".damaged").iterdir()
    assert (aside / folder.name).is_dir(), what
    assert lab.run(experiment).metrics == after.metrics, what
    shutil.rmtree(folder.parent / ".damaged")


def flip(contents, rng):
    place = rng.randrange(len(contents))
    return contents[:place] + bytes([contents[place] ^ 1 << rng.randrange(8)]) + contents[place + 1 :]


DAMAGES = {
    "a flipped bit": flip,
    "zeros": lambda contents, rng: contents[: len(contents) // 2] + bytes(len(contents) - len(contents) // 2),
    "cut short": lambda contents, rng: contents[: rng.randrange(len(contents))],
    "lines lost": lambda contents, rng: b"\n".join(contents.split(b"\n")[::2]),
    "noise": lambda contents, rng: rng.randbytes(len(contents)),
    "nested": lambda contents, rng: b"[" * 20_000,
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_never_served(kept, name):
    rng = random.Random(name)
    _, folder, _ = kept
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    for number in range(max(len(DAMAGES), ROUNDS // 2)):
        what = list(DAMAGES)[number % len(DAMAGES)]
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        contents = (folder / name).read_bytes()
        damaged = DAMAGES[what](contents, rng)
        if damaged != contents:
            (folder / name).write_bytes(damaged)
            check_noticed(kept, what)


def with_sums(folder):
    """Make a folder's checksums right again: somebody wrote these files on purpose."""
    sums = "".join(
        f"{store_module.files.file_digest(folder / name)}  {name}\n" for name in FILES if name != "SHA256SUMS"
    )
    (folder / "SHA256SUMS").write_text(sums)


def edit_metrics(change):
    def edit(folder):
        metrics = json.loads((folder / "metrics.json").read_text())
        change(metrics)
        (folder / "metrics.json").write_text(json.dumps(metrics))

    return edit


EDITS = {
    "no identity": edit_metrics(lambda metrics: metrics.pop("identity")),
    "another identity": edit_metrics(lambda metrics: metrics.update(identity="0" * 64)),
    "no test_top1": edit_metrics(lambda metrics: metrics.pop("test_top1")),
    "no seconds": edit_metrics(lambda metrics: metrics.pop("seconds")),
    "no data": edit_metrics(lambda metrics: metrics.pop("data")),
    "text for test_top1": edit_metrics(lambda metrics: metrics.update(test_top1="high")),
    "a list": lambda folder: (folder / "metrics.json").write_text("[1]"),
    "deep": lambda folder: (folder / "metrics.json").write_text("[" * 20_000),
    "no train_loss": lambda folder: (folder / "history.csv").write_text("epoch,seconds\n1,2\n"),
    "no epochs": lambda folder: (folder / "history.csv").write_text("epoch,train_loss\n"),
    "text in the history": lambda folder: (folder / "history.csv").write_text(
        (folder / "history.csv").read_text().replace("1,", "one,", 1)
    ),
    "a number without end": lambda folder: (folder / "history.csv").write_text(
        (folder / "history.csv").read_text() + "1" * 200_000
    ),
    "no gradients": lambda folder: (folder / "gradients.csv").write_text("a,b\n"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_folder_that_was_edited_consistently_is_checked_as_well(kept, edit):
    edit(kept[1])
    with_sums(kept[1])
    check_noticed(kept, edit)


@pytest.mark.parametrize("tensors", [{"head.weight": torch.zeros(2, 2)}, {}], ids=["another shape", "none"])
def test_weights_that_fit_no_model_are_named_and_set_aside_and_trained_anew(kept, tensors):
    experiment, folder, _ = kept
    save_file(tensors, folder / "model.safetensors")
    with_sums(folder)
    with pytest.raises(lab.StoreError, match=r"is damaged .* set aside .* Remedy: run the experiment again") as caught:
        lab.run(experiment).model  # noqa: B018
    assert "\n" not in str(caught.value)
    assert list((folder.parent / ".damaged").glob(f"*/{folder.name}/model.safetensors"))
    assert lab.run(experiment, progress=False).model


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(kept, name):
    (kept[1] / name).unlink()
    check_noticed(kept, name)


def test_gradients_that_no_sum_is_of_are_not_served(kept):
    sums = kept[1] / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.open() if "gradients" not in line))
    (kept[1] / "gradients.csv").write_text("epoch,layer,name,kind,norm\n1,1,layers.0.linear,weight,0.5\n")
    check_noticed(kept, "no sum")


def test_weights_that_are_damaged_after_the_run_was_read_are_not_served(kept):
    experiment, folder, _ = kept
    run = lab.run(experiment)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(lab.StoreError, match=r"is damaged .* set aside"):
        run.model  # noqa: B018


def test_a_folder_that_is_replaced_while_it_is_read_is_not_taken_for_damaged(kept, monkeypatch):
    """As another process does that trains the run anew."""
    experiment, folder, before = kept
    new, digest = folder.with_name("new"), store_module.files.file_digest
    shutil.copytree(folder, new)
    (new / "history.csv").write_bytes((new / "history.csv").read_bytes() + b"\n")
    with_sums(new)

    def replaced_meanwhile(path):
        if new.exists() and path.name == "history.csv":
            folder.rename(folder.with_name("old"))
            new.rename(folder)
        return digest(path)

    monkeypatch.setattr(store_module.files, "file_digest", replaced_meanwhile)
    assert lab.run(experiment).metrics == before.metrics
    assert not new.exists()
    assert not (folder.parent / ".damaged").exists()


def test_a_link_that_leads_nowhere_is_replaced(kept):
    experiment, folder, _ = kept
    shutil.rmtree(folder)
    folder.symlink_to(folder.with_name("nowhere"))
    assert lab.run(experiment, progress=False).path == folder
    assert not folder.is_symlink()


def test_a_run_of_another_seed_under_this_name_is_noticed(kept):
    experiment, folder, _ = kept
    other = lab.run(experiment.override(seed=5), progress=False)
    shutil.rmtree(folder)
    shutil.copytree(other.path, folder)
    check_noticed(kept, "another run")


OBSTACLES = {
    "a dangling link": lambda store: store.symlink_to(store.parent / "nowhere" / "else"),
    "a file": lambda store: store.write_text(""),
    ".locks as a file": lambda store: (store.mkdir(), (store / ".locks").write_text("")),
    ".checkpoints as a file": lambda store: (store.mkdir(), (store / ".checkpoints").write_text("")),
}


@pytest.mark.parametrize("obstacle", OBSTACLES.values(), ids=OBSTACLES.keys())
def test_what_stands_in_the_stores_way_is_named(store, experiment, obstacle):
    obstacle(store)
    with pytest.raises(lab.StoreError, match=r"can't be used: .*(runs|locks|checkpoints).* Remedy: move it away"):
        lab.run(experiment, progress=False)


def test_a_checkpoint_that_is_a_folder_is_replaced(store, experiment):
    identity = running.identify(experiment, running.load_experiment_data(experiment))
    checkpoint = store_module.checkpoint_path(store_module.run_path(identity))
    checkpoint.mkdir(parents=True)
    with pytest.warns(lab.DamagedRun, match="from its beginning"):
        assert lab.run(experiment, progress=False).path.is_dir()


@pytest.mark.parametrize(("error", "told"), [(OSError, lab.StoreError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_failing_rename_puts_back_what_was_there(store, experiment, monkeypatch, error, told):
    first = lab.run(experiment, progress=False)
    before = {file.name: file.read_bytes() for file in first.path.iterdir()}
    rename = type(first.path).rename

    def fail(path, goal):
        if path.name == "new":
            raise error("no")
        return rename(path, goal)

    monkeypatch.setattr(type(first.path), "rename", fail)
    with pytest.raises(told):
        lab.run(experiment, force=True, progress=False)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in first.path.iterdir()} == before


KILLED = """
import sys, labutils as lab
settings = {"depth": 2, "width": 16, "epochs": 12, "normalization": "batch", "dropout": 0.1, "batch_size": 16}
lab.run(lab.Experiment.load("mlp_mnist", profile="smoke", **settings), progress=False)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    rng = random.Random(0)
    command = [sys.executable, "-c", KILLED]
    results, kills, whole = {}, 0, 0.0
    for name in ("whole", "killed"):
        store = tmp_path / name
        environment = {**os.environ, "LABUTILS_RUNS": str(store), "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        while True:
            process = subprocess.Popen(command, env=environment)
            try:
                patience = None if name == "whole" or kills >= ROUNDS // 4 else rng.uniform(0.5, 1.0) * whole
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        assert process.returncode == 0
        whole = time.monotonic() - start if name == "whole" else whole
        (metrics,) = store.glob("[!.]*/metrics.json")
        history = np.loadtxt(metrics.with_name("history.csv"), delimiter=",", skiprows=1)[:, :-1]
        results[name] = history.tolist(), (metrics.with_name("model.safetensors")).read_bytes()
        assert {path.name for path in store.iterdir()} <= {".locks", ".checkpoints", metrics.parent.name}
    assert results["whole"] == results["killed"]
