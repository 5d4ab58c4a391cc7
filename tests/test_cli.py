import os
import re
import signal
import subprocess
import sys

import pytest

from labutils import archives, results
from labutils.cli import main


def test_run_trains_and_says_where_it_is_kept(store, capsys):
    assert main(["run", "mlp_mnist", "--model.depth", "2", "--width=8", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    (kept,) = (path for path in store.iterdir() if not path.name.startswith("."))
    assert str(kept) in printed
    assert re.search(r"test accuracy \d+\.\d+%", printed)
    settings = (kept / "experiment.yaml").read_text()
    assert "depth: 2" in settings
    assert "width: 8" in settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "mlp_mnits"], ["mlp_mnits", "did you mean mlp_mnist"]),
        (["run", "mlp_mnist", "--dpeth", "3"], ["dpeth", "did you mean model.depth"]),
        (["run", "mlp_mnist", "--model.depth", "0"], ["model.depth", "0", "from 1"]),
        (["run", "mlp_mnist", "--model.depth"], ["model.depth", "value"]),
        (["run", "mlp_mnist", "depth", "3"], ["depth", "--NAME VALUE"]),
        (["run", "mlp_mnist", "--profile", "quick"], ["profile", "quick", "smoke"]),
        (["sweep", "mlp_mnist"], ["sweep", "mlp_mnist"]),
        (["sweep", "mlp_residual", "--cluster", "there"], ["cluster", "there", "ray://HOST:PORT"]),
        (["sweep", "mlp_residual", "--model.normalization", "group"], ["model.normalization", "group", "batch"]),
        (["report", "mlp_mnist"], ["sweep", "mlp_mnist"]),
        (["data", "minst"], ["name", "minst", "mnist"]),
    ],
)
def test_wrong_words_are_named_and_cost_nothing(store, capsys, arguments, words):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("labutils: ")
    assert message.count("\n") == 1
    assert all(word in message for word in words), message
    assert not store.exists()


def test_a_run_that_diverges_fails(store, capsys):
    assert main(["run", "mlp_mnist", "--lr", "1e30", "--optimizer", "sgd"]) == 1
    assert "learning rate" in capsys.readouterr().err


def test_help_shows_every_setting_with_this_configs_value(capsys):
    assert main(["run", "mlp_mnist", "--depth", "7", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--training.patience" in shown
    assert "hidden layers, from 1" in shown
    assert re.search(
        r"--model.width WIDTH units in each hidden layer, from 1\. \(required, type: int, default: 64\)", shown
    )
    assert main(["run"]) == 2
    assert "labutils run mlp_mnist --model.depth 10" in capsys.readouterr().out


def test_data_says_what_is_there(capsys):
    assert main(["data", "mnist", "--source", "builtin"]) == 0
    assert "standing in for MNIST (builtin)" in capsys.readouterr().out


def test_data_that_cannot_be_had_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(archives, "addresses", lambda name: ["http://127.0.0.1:9/"])
    assert main(["data", "mnist", "--source", "download", "--root", str(tmp_path)]) == 1
    assert "could not be downloaded" in capsys.readouterr().err


def test_sweep_banks_results_and_fails_when_a_run_does(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path / "bank")
    arguments = ["sweep", "mlp_depth_width", "--width", "8", "--epochs", "1", "--jobs", "1", "--save-results"]
    assert main([*arguments, "--depth", "1"]) == 0
    assert "2 of 2 runs" in capsys.readouterr().out
    assert len(results.load_results("mlp_depth_width")) == 2
    assert main([*arguments, "--depth", "1", "--optimizer", "sgd", "--lr", "1e30"]) == 1
    captured = capsys.readouterr()
    assert "0 of 2 runs" in captured.out
    assert "Diverged" in captured.err
    assert set(results.load_results("mlp_depth_width")["lr"]) == {0.001}


def test_sweep_banks_epochs_and_gradients(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path / "bank")
    arguments = ["sweep", "cnn_gradients", "--profile", "smoke", "--epochs", "2", "--blocks", "[1, 1, 2, 1]"]
    assert main([*arguments, "--width", "2", "--save-epochs", "--save-gradients"]) == 0
    net = ["residual", "zero_init_residual"]
    epochs = results.load_results("cnn_gradients_epochs")
    assert epochs.groupby([*net, "seed"])["epoch"].apply(list).tolist() == [[1, 2]] * 9
    assert set(epochs["blocks"]) == {"[1, 1, 2, 1]"}
    gradients = results.load_results("cnn_gradients_gradients")
    assert gradients.groupby([*net, "seed", "epoch"])["layer"].apply(list).tolist() == [list(range(1, 13))] * 27
    assert (gradients[gradients["epoch"] == 0]["norm"] > 0).any()
    assert not gradients["name"].str.contains("skip").any()
    assert set(gradients["layers"]) == {12}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_an_interrupt_shows_the_epochs_so_far(store):
    command = [sys.executable, "-m", "labutils", "run", "mlp_mnist", "--epochs", "100000"]
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # A shell starts its background jobs with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            shown = b""
            while b"validation accuracy" not in shown:  # the progress bar, from the first epoch's end on
                shown += process.stderr.read1()
                assert process.poll() is None, shown.decode()
            process.send_signal(signal.SIGINT)
            printed = process.communicate(timeout=60)[0].decode()
        finally:
            process.kill()
    assert process.returncode == 130
    assert "validation_accuracy" in printed
    assert "interrupted, so not kept" in printed


def test_report_tells_and_draws_what_a_sweep_found(store, tmp_path, capsys):
    assert main(["report", "mlp_narrow", "--to", str(tmp_path / "none")]) == 2
    assert "sweep" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main(["sweep", "mlp_narrow", "--jobs", "1"]) == 0
    capsys.readouterr()
    assert main(["report", "mlp_narrow", "--to", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ *2 +3 +\d+ +\d+\.\d\d ± \d+\.\d\d", printed, flags=re.MULTILINE)
    kept = {path.name for path in (tmp_path / "report").iterdir()}
    assert kept == {"runs.csv", "summary.csv", "accuracy_by_depth.png", "accuracies.png"}
    assert all(str(tmp_path / "report" / name) in printed for name in kept)
