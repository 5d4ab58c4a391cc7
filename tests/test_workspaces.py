import pytest

from labutils.workspaces import workspace


def test_what_is_renamed_stays_and_the_rest_goes(tmp_path):
    goal = tmp_path / "archive.npz"
    with workspace(goal) as folder:
        (folder / "scraps").write_text("")
        (folder / goal.name).write_text("whole")
        (folder / goal.name).rename(goal)
    assert list(tmp_path.iterdir()) == [goal]


def test_the_workspace_itself_may_become_its_goal(tmp_path):
    goal = tmp_path / "run"
    with workspace(goal) as folder:
        (folder / "metrics.json").write_text("{}")
        folder.rename(goal)
    assert list(tmp_path.iterdir()) == [goal]
    assert (goal / "metrics.json").read_text() == "{}"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_goes_with_an_error(tmp_path, error):
    def work():
        with workspace(tmp_path / "run") as folder:
            (folder / "half").write_text("")
            raise error

    with pytest.raises(error):
        work()
    assert list(tmp_path.iterdir()) == []


def test_only_what_was_left_for_the_same_goal_goes(tmp_path):
    left, others = tmp_path / ".run.a1b2.partial", tmp_path / ".runs.a1b2.partial"
    for folder in (left, others):
        folder.mkdir()
        (folder / "half").write_text("")
    with workspace(tmp_path / "run"):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [others]
