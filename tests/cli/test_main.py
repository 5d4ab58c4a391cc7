import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from labutils.cli import main as commands
from labutils.cli.arguments import argument_texts
from labutils.cli.main import main
from labutils.data import StandInWarning, archives
from labutils.experiments import results
from labutils.methods import pretrained
from labutils.methods.transfer import Transfer
from labutils.models import MLP
from labutils.training import Training


def status_of(arguments):
    """What the shell would see."""
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code


@pytest.fixture
def bank(tmp_path, monkeypatch):
    """An empty bank of results and of checkpoints."""
    monkeypatch.setattr(results, "results_folder", lambda: tmp_path / "bank")
    monkeypatch.setattr(pretrained, "checkpoints_folder", lambda: tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def tiny(tmp_path):
    """A config of one's own that is named as one of the course."""
    path = tmp_path / "mlp_chaos.yaml"
    path.write_text(
        "data: {name: mnist, source: builtin, limit: 100}\nmodel: {kind: mlp, depth: 1, width: 4}\n"
        "training: {epochs: 1}\nmeasurement: {gradients: true}\nsweep: {model.depth: [1, 2]}\n"
    )
    return str(path)


def test_run_trains_and_says_where_it_is_kept(store, capsys):
    assert main(["run", "mlp_mnist", "--model.depth", "2", "--width=8", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    (kept,) = (path for path in store.iterdir() if not path.name.startswith("."))
    assert str(kept) in printed
    assert re.search(r"test accuracy \d+\.\d+%", printed)
    settings = (kept / "experiment.yaml").read_text()
    assert "depth: 2" in settings
    assert "width: 8" in settings


WRONG = [
    (["run"], ["config", "mlp_mnist"]),
    (["run", "nosuch"], ["nosuch", "there are"]),
    (["run", "mlp_mnits"], ["mlp_mnits", "did you mean mlp_mnist"]),
    (["run", "two\nlines"], ["two lines"]),
    (["run", "nosuch.yaml"], ["nosuch.yaml", "No such file"]),
    (["run", "mlp_mnist", "--dpeth", "3"], ["dpeth", "did you mean model.depth"]),
    (["run", "mlp_mnist", "--blocks", "3"], ["blocks", "no such name"]),
    (["run", "cnn_depth", "--blocks", "3"], ["model.blocks", "3", "4 whole numbers"]),
    (["run", "mlp_mnist", "--name_or_path", "x"], ["name_or_path", "no such name"]),
    (["sweep", "mlp_residual", "--axes", "{lr: [1]}"], ["axes", "no such name"]),
    (["run", "mlp_mnist", "--model.depth", "0"], ["model.depth", "0", "from 1"]),
    (["run", "mlp_mnist", "--model.depth"], ["model.depth", "value"]),
    (["run", "mlp_mnist", "--model.depth", "--force"], ["model.depth", "value"]),
    (["run", "mlp_mnist", "depth", "3"], ["depth", "--NAME VALUE"]),
    (["run", "mlp_mnist", "--profile", "quick"], ["profile", "quick", "smoke"]),
    (["run", "mlp_mnist", "--kind", "cnn"], ["kind", "cnn", "resnet"]),
    (["run", "mlp_mnist", "--kind", "resnet", "--depth", "3"], ["depth", "no such name"]),
    (["run", "mlp_mnist", "--tracking.tags", "3"], ["tracking.tags", "3", "a list"]),
    (["run", "mlp_mnist", "--width", "99999999999"], ["model.width", "99999999999"]),
    (["run", "mlp_mnist", "--seed", "9" * 23], ["training.seed", "9" * 23, "from 0"]),
    (["run", "mlp_mnist", "--seed", "9" * 9_999], ["seed", "999…"]),
    (["run", "mlp_mnist", "--seed", "0x" + "f" * 9_999], ["seed", "fff…", "too many digits"]),
    (["run", "mlp_mnist", "--validation", "0.9999999"], ["validation", "0.9999999"]),
    (["run", "mlp_mnist", "--validation", "0.0001"], ["validation", "0.0001"]),
    (["run", "mlp_mnist", "--limit", "161", "--normalization", "batch"], ["batch_size", "128", "batch normalization"]),
    (["sweep", "mlp_mnist"], ["sweep", "mlp_mnist"]),
    (["sweep", "mlp_residual", "--cluster", "there"], ["cluster", "there", "ray://HOST:PORT"]),
    (["sweep", "mlp_residual", "--jobs", "two"], ["--jobs", "two"]),
    (["sweep", "mlp_residual", "--jobs", "0"], ["jobs", "0", "from 1"]),
    (["sweep", "mlp_residual", "--model.normalization", "group"], ["model.normalization", "group", "batch"]),
    (["report", "mlp_mnist"], ["sweep", "mlp_mnist"]),
    (["report", "mlp_chaos", "--width", "3"], ["--width 3"]),
    (["data", "minst"], ["name", "minst", "mnist"]),
    (["nosuch"], ["nosuch", "doctor"]),
    ([], ["COMMAND"]),
    (["course", "--profile", "quick"], ["quick", "smoke"]),
]
VALUES = ["{", "[1", "&x *y", "!!python/object:os.system", "!!bool maybe", "!!int ''", "&x [*x]", ".nan"]
WRONG += [(["run", "mlp_mnist", "--lr", value], ["lr", value.strip(".")[:9]]) for value in VALUES]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda each: " ".join(each)[:40])
def test_wrong_words_are_named_in_one_line(store, capsys, arguments, words):
    assert status_of(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("labutils: ")
    assert message.count("\n") == 1
    assert all(word in message for word in words), message
    assert not store.exists() or not [path for path in store.iterdir() if not path.name.startswith(".")]


def bomb(link):
    lines = [f"x{number}: &x{number} {link.format(number - 1)}" for number in range(1, 60)]
    return "\n".join(["x0: &x0 {k: 1}", *lines]).encode()


FILES = {
    "1: 2": b"1: 2",
    "null: 2": b"null: 2",
    "no mapping": b"model: [mlp]",
    "profiles a list": b"profiles: [smoke]",
    "a profile a number": b"profiles: {smoke: 3}",
    "a number an axis": b"sweep: {1: [1]}",
    "brackets": b"[" * 20_000,
    "a list bomb": bomb("[*x{0}, *x{0}, *x{0}]"),
    "a merge bomb": bomb("{{<<: [*x{0}, *x{0}]}}"),
    "a key twice": b"model: {kind: mlp, kind: mlp}",
    "binary": bytes(range(256)),
    "Latin-1": "about: café".encode("latin-1"),
    "too long": b"#" * 1_000_001,
    "an unknown section": b"modle: {kind: mlp}",
    "no kind": b"data: {name: mnist}",
    "nothing": b"",
    "a date": b"data: {name: 2020-01-01}\nmodel: {kind: mlp, depth: 1, width: 1}\ntraining: {epochs: 1}",
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_wrong_config_files_are_told_in_one_line(store, tmp_path, capsys, content):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    assert main(["run", str(path), "--profile", "smoke"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("labutils: ")
    assert message.count("\n") == 1
    assert not store.exists()


def test_what_fails_is_told_in_one_line(store, capsys, monkeypatch):
    assert main(["run", "mlp_mnist", "--lr", "1e30", "--optimizer", "sgd"]) == 1
    assert re.fullmatch(r"labutils: .*learning rate.*\n", capsys.readouterr().err)
    monkeypatch.setenv("LABUTILS_RUNS", "/dev/null/runs")
    assert main(["run", "mlp_mnist", "--epochs", "1"]) == 1
    assert re.fullmatch(r"labutils: .*run store.*LABUTILS_RUNS.*\n", capsys.readouterr().err)


def test_data_says_what_is_there(capsys):
    assert main(["data", "mnist", "--source", "builtin"]) == 0
    assert "standing in for MNIST (builtin)" in capsys.readouterr().out


def test_data_that_cannot_be_had_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(archives, "addresses", lambda name: ["http://127.0.0.1:9/"])
    assert main(["data", "mnist", "--source", "download", "--root", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "could not be downloaded" in message
    assert message.count("\n") == 1


def test_converting_an_empty_store_and_bank_does_nothing(store, bank, capsys):
    assert main(["convert"]) == 0
    assert capsys.readouterr().out == ""


def test_help_shows_every_setting_with_this_configs_value(capsys):
    assert main(["run", "mlp_mnist", "--depth", "7", "--project", "100%s", "--profile", "smoke", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--training.patience VALUE stop after so many epochs" in shown
    assert "--training.stage_lr VALUE factor on a CNN's learning rate" in shown  # of the class it inherits from
    assert re.search(r"--model.depth VALUE hidden layers, from 1\. \(value: 7\)", shown)
    assert re.search(r"--model.width VALUE units in each hidden layer, from 1\. \(value: 64\)", shown)
    assert "--data.source VALUE archive takes `<root>/<name>.npz`" in shown
    assert '(value: "builtin")' in shown
    assert '--tracking.project VALUE wandb\'s project. (value: "100%s")' in shown
    assert "--force" in shown
    assert main(["run", "--help"]) == 0
    assert "labutils run mlp_mnist --model.depth 10" in capsys.readouterr().out
    assert main(["sweep", "mlp_residual", "--help"]) == 0
    assert "--save-results" in capsys.readouterr().out


@pytest.mark.parametrize("owner", [MLP, Training, Transfer])
def test_every_setting_has_a_help_text(owner):
    import inspect

    assert all(argument_texts(owner).get(name) for name in inspect.signature(owner).parameters)


def test_sweep_banks_all_tables_and_fails_when_a_run_does(store, bank, tiny, capsys):
    arguments = ["sweep", tiny, "--jobs", "1", "--as", "mine"]
    assert main([*arguments, "--save-results", "--save-epochs", "--save-gradients"]) == 0
    assert "2 of 2 runs" in capsys.readouterr().out
    assert sorted(path.name for path in bank.iterdir()) == ["mine.csv", "mine_epochs.csv", "mine_gradients.csv"]
    assert results.load_results("mine")["depth"].tolist() == [1, 2]
    assert results.load_results("mine_epochs")["epoch"].tolist() == [1, 1]
    gradients = results.load_results("mine_gradients")
    layers = gradients.groupby(["depth", "epoch"])["layer"].apply(list)
    assert layers.to_dict() == {(1, 0): [1, 2], (1, 1): [1, 2], (2, 0): [1, 2, 3], (2, 1): [1, 2, 3]}
    assert (gradients["norm"] > 0).all()
    assert main([*arguments, "--save-results", "--optimizer", "sgd", "--lr", "1e30", "--epochs", "3"]) == 1
    captured = capsys.readouterr()
    assert "0 of 2 runs" in captured.out
    assert "Diverged" in captured.err
    assert set(results.load_results("mine")["lr"]) == {0.001}


def test_a_table_of_gradients_that_no_run_will_measure_is_refused_at_once(store, bank, tiny, capsys):
    arguments = ["sweep", tiny, "--as", "mine", "--save-gradients", "--measurement.gradients", "false"]
    assert main(arguments) == 2
    assert "measurement.gradients: False" in capsys.readouterr().err
    assert not store.exists()


SAVE = "--save-results"


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "OWN"],
        ["export", "OWN", "--profile", "laptop"],
        ["export", "mlp_chaos", "--profile", "smoke"],
        ["export", "OWN", "--as", "cnn_backbone"],
        ["export", "OWN", "--as", "CNN_Backbone"],
        ["export", "OWN", "--as", "cnn_backbone_rescaled"],
        ["export", "OWN", "--as", "../outside"],
        ["sweep", "OWN", SAVE],
        ["sweep", "OWN", "--profile", "laptop", "--save-epochs"],
        ["sweep", "OWN", "--save-gradients"],
        ["sweep", "mlp_chaos", "--profile", "smoke", SAVE],
        ["sweep", "mlp_chaos", "--profile", "laptop", SAVE, "--width", "3"],
        ["sweep", "OWN", SAVE, "--as", "mlp_chaos"],
        ["sweep", "OWN", SAVE, "--as", "cnn_depth_epochs"],
        ["sweep", "OWN", SAVE, "--as", "cnn_surfaces"],
        ["sweep", "OWN", SAVE, "--as", ""],
    ],
    ids=" ".join,
)
def test_only_the_courses_own_configs_fill_its_files(store, bank, tiny, capsys, arguments):
    assert main([tiny if word == "OWN" else word for word in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--as NAME" in message or "as:" in message
    assert not bank.exists()
    assert not store.exists()  # nothing is computed first


@pytest.mark.parametrize("profile", ["laptop", "full"])
def test_the_courses_own_configs_keep_their_names(monkeypatch, profile):
    options = commands.make_parser().parse_args(["export", "cnn_backbone"])
    experiment = commands.Experiment.load("cnn_backbone", profile=profile)
    monkeypatch.setattr(commands, "check_real", lambda experiment: None)
    assert commands.kept_name(options, experiment) == "cnn_backbone"


@pytest.mark.parametrize(
    "arguments",
    [["sweep", "mlp_cifar10", SAVE], ["export", "mlp_cifar10"], ["ship", "mlp_cifar10"]],
    ids=" ".join,
)
def test_stand_ins_get_into_none_of_the_courses_files(store, bank, capsys, monkeypatch, tmp_path, arguments):
    monkeypatch.setenv("LABUTILS_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(archives, "addresses", lambda name: ["http://localhost:9/"])
    with pytest.warns(StandInWarning):
        assert main([*arguments, "--profile", "laptop"]) == 2
    assert "data.name: 'cifar10' was given; allowed: data that are here" in capsys.readouterr().err
    assert not bank.exists()
    assert not store.exists()


def test_export_keeps_a_network_under_a_name_of_its_own(store, bank, tiny, capsys):
    assert main(["export", tiny, "--as", "mine"]) == 0
    assert str(bank / "mine.safetensors") in capsys.readouterr().out
    model, record = pretrained.load_pretrained("mine")
    assert model.width == 4
    assert record["settings"]["training"]["epochs"] == 1


@pytest.mark.parametrize(
    ("command", "goes_on"), [("run", True), ("run --force", False), ("sweep", True), ("doctor", False)]
)
def test_an_interrupt_is_told_in_one_line(monkeypatch, capsys, command, goes_on):
    command, *options = command.split()

    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, command, interrupted)
    assert main([command, *["mlp_mnist"] * (command != "doctor"), *options]) == 130
    message = capsys.readouterr().err
    assert message.startswith("labutils: interrupted")
    assert message.count("\n") == 1
    assert ("the same command goes on" in message) == goes_on


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_an_interrupted_run_shows_its_epochs_and_goes_on(store):
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
            printed, said = (text.decode() for text in process.communicate(timeout=60))
        finally:
            process.kill()
    assert process.returncode == 130
    assert "validation_accuracy" in printed
    assert "Traceback" not in said
    assert "the same command goes on" in said
    assert list((store / ".checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell's pipe")
def test_a_reader_that_has_seen_enough_is_no_error(store):
    command = f"{sys.executable} -m labutils run mlp_mnist --help | head -1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("usage: labutils run")
    assert done.stderr == ""


def test_a_sweep_goes_on_from_the_bank_and_banks_what_it_has_when_it_is_interrupted(
    store, bank, tiny, capsys, monkeypatch
):
    arguments = ["sweep", tiny, "--jobs", "1", "--as", "mine", SAVE]
    trained = []

    def interrupted(experiments, **options):
        trained.append([one.model["depth"] for one in experiments])
        sweep(experiments[:1], **options)
        raise KeyboardInterrupt

    sweep = commands.sweeps.sweep
    monkeypatch.setattr(commands.sweeps, "sweep", interrupted)
    assert main(arguments) == 130
    assert results.load_results("mine")["depth"].tolist() == [1]
    shutil.rmtree(store)  # another machine
    monkeypatch.setattr(commands.sweeps, "sweep", lambda experiments, **options: sweep(experiments, **options))
    assert main(arguments) == 0
    assert "1 of 2 runs are in the bank" in capsys.readouterr().out
    assert results.load_results("mine")["depth"].tolist() == [1, 2]
    assert len([path for path in store.iterdir() if not path.name.startswith(".")]) == 1
    assert main([*arguments, "--as", "none", "--optimizer", "sgd", "--lr", "1e30", "--epochs", "3"]) == 1
    assert "banked in nothing" in capsys.readouterr().out
    assert [path.stem for path in bank.iterdir()] == ["mine"]
    assert main([*arguments, "--optimizer", "sgd", "--lr", "1e30", "--epochs", "3"]) == 1
    assert results.load_results("mine")["depth"].tolist() == [1, 2], "a sweep that failed takes nothing away"
