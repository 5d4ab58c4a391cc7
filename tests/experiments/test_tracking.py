"""wandb is tried for real once, offline; else a stand-in for it is what the sender's process imports."""

import faulthandler
import json
import os
import queue
import subprocess
import sys
import textwrap
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest

from labutils.errors import SettingError
from labutils.experiments import tracking, wandb_sender
from labutils.experiments.tracking import Mirror, Tracking, TrackingWarning

PATIENCE_S = 60  # for what ends by itself within a second or two

STAND_IN = """
    import json, os, sys, threading, time

    def note(**what):
        with open(os.environ["NOTES"], "a") as notes:
            print(json.dumps(what), file=notes)

    def hang():
        threading.Event().wait()

    class Run:
        summary = {}

        def log(self, figures):
            note(log=figures)

        def finish(self, exit_code):
            note(summary=self.summary, exit_code=exit_code)

    def Settings(**settings):
        return None

    def login(prompt):
        note(login=True)
        return True

    def init(settings, **arguments):
        note(init=arguments)
        return Run()
"""


def epochs(count, *, probed=False):
    """A training's state after so many epochs."""
    rows = [{"epoch": number, "train_loss": 1 / number} for number in range(1, count + 1)]
    frames = [
        pd.DataFrame({"name": ["head", "head"], "kind": ["weight", "bias"], "norm": [number, 0.5], "epoch": number})
        for number in range(1, count + 1)
    ]
    return SimpleNamespace(whole_history=SimpleNamespace(rows=rows, probed=frames if probed else []))


def mirror_through(mirror, state):
    """A run's whole course: its training, and its end."""
    with mirror:
        mirror.after_epoch(state)
        mirror.finish({"test_top1": 0.75})


@pytest.fixture
def start(tmp_path):
    """Starts a mirror; kills its process at the end if it still runs."""
    senders = []

    def start(mode="offline", *, residual=False, **filed):
        settings = {"model": {"depth": 2}, "folder": tmp_path}
        mirror = Mirror(Tracking(mode, **filed), config=settings, residual=residual, name="one", folder=tmp_path)
        senders.append(mirror.sender)
        return mirror

    yield start
    for sender in filter(None, senders):
        sender.kill()
        sender.wait()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a stand-in for wandb, with some of it replaced, where the sender finds it; returns what reads its notes."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", PATIENCE_S)

    def stand_in(replaced=""):
        (tmp_path / "wandb.py").write_text(textwrap.dedent(STAND_IN) + textwrap.dedent(replaced))
        return lambda: [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]

    return stand_in


@pytest.mark.parametrize("given", [{"wandb": "on"}, {"project": 3}, {"project": None}, {"group": ""}, {"job_type": []}])
def test_a_setting_of_the_wrong_kind_is_refused(given):
    ((setting, value),) = given.items()
    with pytest.raises(SettingError, match=rf"^{setting}: .* was given; allowed: ") as refusal:
        Tracking(**given)
    assert refusal.value.given == value


@pytest.mark.parametrize("tags", [3, "lab", None, ("lab", 3), [""]])
def test_tags_are_a_list_of_text(tags):
    with pytest.raises(SettingError, match=r"^tags: .* was given; allowed: .*text"):
        Tracking(tags=tags)


def test_a_list_of_tags_is_as_good_as_a_tuple():
    assert list(Tracking(tags=["lab"]).tags) == list(Tracking(tags=("lab",)).tags) == ["lab"]


def test_an_offline_mirror_holds_the_local_figures(start, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", PATIENCE_S)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrackingWarning)
        mirror_through(start(tags=("lab", "two")), epochs(2, probed=True))
    run, rows, summary = read_offline_run(tmp_path)
    assert run["config"]["update"]["model"]["depth"] == 2
    assert (run["display_name"], run["project"]) == ("one", "deep-learning-labs")
    assert (run["run_group"], run["job_type"], run["tags"]) == ("No Residual", "train", ["lab", "two"])
    assert [row["train_loss"] for row in rows] == [1, 0.5]
    assert [row["gradients/head.weight"] for row in rows] == [1, 2]
    assert summary["test_top1"] == 0.75


def read_offline_run(folder):
    """The run message, history rows and summary of the one offline run under a folder, by wandb's own reader."""
    (run_folder,) = folder.glob("wandb/offline-run-*")
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", str(run_folder), "--json"]
    printed = subprocess.run(reader, capture_output=True, text=True, check=True).stdout
    run, rows, summary = {}, [], {}
    for record in map(json.loads, printed.splitlines()):
        if record["type"] == "run":
            run = record["run"]
        elif record["type"] == "history":
            rows.append(record["history"]["item"])
        elif record["type"] == "summary":
            summary |= record["summary"]["update"]
    return run, rows, summary


@pytest.mark.parametrize(
    ("residual", "given", "filed"), [(False, None, "No Residual"), (True, None, "Residual"), (True, "mine", "mine")]
)
def test_each_epoch_is_logged_once_also_after_a_resumption(start, stand_in, residual, given, filed):
    notes = stand_in()
    with start(residual=residual, group=given) as mirror:
        mirror.after_epoch(epochs(3))
        mirror.after_epoch(epochs(4, probed=True))
        mirror.finish({"test_top1": 0.5})
    opened, *logged, finished = notes()
    assert (opened["init"]["mode"], opened["init"]["group"]) == ("offline", filed)
    assert [row["log"]["epoch"] for row in logged] == [1, 2, 3, 4]
    assert logged[-1]["log"] == {
        "epoch": 4, "train_loss": 0.25, "gradients/head.weight": 4, "gradients/head.bias": 0.5
    }  # fmt: skip
    assert finished == {"summary": {"test_top1": 0.5}, "exit_code": 0}


def test_a_run_that_fails_is_closed_with_its_error(start, stand_in):
    notes = stand_in()
    with pytest.raises(ZeroDivisionError), start():
        _ = 1 / 0
    assert notes()[-1] == {"summary": {"error": "ZeroDivisionError: division by zero"}, "exit_code": 1}


def test_a_run_whose_process_is_killed_is_closed_as_cut_short(start, stand_in):
    notes = stand_in()
    mirror = start()
    mirror.after_epoch(epochs(1))
    mirror.lines.put(None)  # closes the pipe, as the end of the process does
    assert mirror.sender.wait(PATIENCE_S) == 0
    assert notes()[-1] == {"summary": {"error": "the run was cut short"}, "exit_code": 1}


@pytest.mark.parametrize(
    ("replaced", "reason"),
    [
        ("raise ModuleNotFoundError(\"No module named 'wandb'\")", "ModuleNotFoundError: No module named 'wandb'"),
        ("def init(**_): raise OSError('first line\\nno route to host.')", "OSError: first line no route to host"),
        ("def init(**_): os._exit(7)", "its process ended with exit code 7"),
    ],
)
def test_a_wandb_that_fails_costs_one_warning_with_its_reason(start, stand_in, replaced, reason):
    stand_in(replaced)
    with pytest.warns(TrackingWarning) as told:
        mirror_through(start(), epochs(1))
    assert [str(warning.message) for warning in told] == [f"wandb: {reason}. The run itself is not affected."]


def test_a_wandb_that_fails_is_told_of_after_the_next_epoch(start, stand_in):
    stand_in("def init(**_): raise OSError('no route to host')")
    with start() as mirror:
        assert mirror.sender.wait(PATIENCE_S) == 1
        with pytest.warns(TrackingWarning, match="OSError: no route to host"):
            mirror.after_epoch(epochs(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error", TrackingWarning)
            mirror.after_epoch(epochs(2))
            mirror.finish({})


def test_a_process_that_cannot_be_started_costs_a_warning(start, stand_in, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.warns(TrackingWarning, match="can't be started"):
        mirror_through(start(), epochs(1))


def test_online_without_an_account_stays_offline(start, stand_in):
    notes = stand_in("def login(prompt): return prompt")  # only a question would help
    with pytest.warns(TrackingWarning, match="nobody is logged in"):
        mirror_through(start("online"), epochs(1))
    assert [note.get("init", {}).get("mode") for note in notes()] == ["offline", None, None]


def test_online_with_an_account_is_online(start, stand_in):
    notes = stand_in()
    with start("online"):
        pass
    assert notes()[0] == {"login": True}
    assert notes()[1]["init"]["mode"] == "online"


@pytest.mark.parametrize(
    "replaced", ["hang()", "def init(**_): hang()", "Run.log = Run.finish = lambda *_, **__: hang()"]
)
def test_a_wandb_that_hangs_is_left_behind(start, stand_in, monkeypatch, replaced):
    stand_in(replaced)
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 0.1)
    state = epochs(1)
    state.whole_history.rows[0]["padding"] = "x" * 1_000_000  # more than a pipe holds
    mirror = start()
    sender = mirror.sender
    with pytest.warns(TrackingWarning, match="goes on in the background"):
        mirror_through(mirror, state)
    assert sender.poll() is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no sessions of this kind")
def test_the_sender_is_out_of_the_reach_of_ctrl_c(start, stand_in):
    stand_in("hang()")
    sender = start().sender
    assert os.getsid(sender.pid) == sender.pid


def test_what_is_left_behind_ends_by_itself(start, stand_in, tmp_path, monkeypatch):
    notes = stand_in("""
        def login(prompt):
            while not os.path.exists(os.environ["NOTES"] + ".go"):
                time.sleep(0.01)
            return False
    """)
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 0.1)
    mirror = start("online")
    sender = mirror.sender
    with pytest.warns(TrackingWarning, match="goes on in the background"):
        mirror_through(mirror, epochs(2))
    (tmp_path / "notes.go").touch()
    assert sender.wait(PATIENCE_S) == 0
    assert [note["log"]["epoch"] for note in notes()[1:-1]] == [1, 2]
    assert notes()[-1] == {"summary": {"test_top1": 0.75}, "exit_code": 0}


def run_beside_the_sender(code, given=""):
    """Run Python code that can import the sender."""
    search = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(tracking.SENDER.parent)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": search},
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_a_sender_that_hangs_ends_at_its_limit(stand_in):
    stand_in("hang()")
    impatient = "import wandb_sender as it; it.LIMIT_S = 0.2; it.send(it.read_lines())"
    ended = run_beside_the_sender(impatient, '{"mode": "offline"}\n')
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


def test_all_but_waiting_for_a_line_is_limited(monkeypatch):
    lines, events = iter(['{"epoch": 1}\n', ""]), []
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: events.append("no limit"))
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: events.append("limit"))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=lambda: events.append("wait") or next(lines)))
    for _ in wandb_sender.read_lines():
        events.append("work")
    assert events == ["no limit", "wait", "limit", "work", "no limit", "wait", "limit"]


def test_a_line_that_is_cut_short_is_the_end(stand_in):
    notes = stand_in()
    code = "import wandb_sender as it; it.send(it.read_lines())"
    assert run_beside_the_sender(code, '{"mode": "offline"}\n{"epoch": 1').returncode == 0
    assert notes()[-1] == {"summary": {"error": "the run was cut short"}, "exit_code": 1}


def test_the_sender_does_not_wait_for_torch():
    imported = "import sys, wandb_sender; print('torch' in sys.modules or 'labutils' in sys.modules)"
    assert run_beside_the_sender(imported).stdout == "False\n"


def test_no_module_beside_the_sender_hides_one_of_a_library(start, stand_in):
    notes = stand_in("note(path=sys.path)")
    with start():
        pass
    assert str(tracking.SENDER.parent) not in notes()[0]["path"]


def test_a_sender_that_is_gone_costs_the_feeding_thread_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    lines = queue.SimpleQueue()
    lines.put(b"{}\n")
    pipe = os.fdopen(writing, "wb")
    tracking.feed(lines, pipe)
    assert pipe.closed


def test_disabled_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    folder = tmp_path / "wandb"
    mirror_through(Mirror(Tracking(), config={}, residual=False, name="one", folder=folder), epochs(1))
    assert not folder.exists()
