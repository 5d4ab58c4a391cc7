import os
import stat

import pytest
import torch

from labutils.files import file_digest, identity, make_shared_folder, tensors_digest, workspace, written_whole


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


def test_what_was_there_stays_until_a_file_is_whole(tmp_path):
    path = tmp_path / "folder" / "record.json"
    with written_whole(path) as partial:
        partial.write_text("first")

    def fail():
        with written_whole(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "first"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere files have no modes")
@pytest.mark.parametrize(("mode", "folders", "files"), [(0o770, 0o770, 0o660), (0o755, 0o755, 0o644)])
def test_what_is_kept_is_as_open_as_the_folder_it_is_in(tmp_path, mode, folders, files):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    before = os.umask(0o077)
    try:
        make_shared_folder(shared / "runs" / "kept")
        with written_whole(shared / "runs" / "kept" / "file") as partial:
            partial.write_text("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((shared / "runs").stat().st_mode) == folders
    assert stat.S_IMODE((shared / "runs" / "kept").stat().st_mode) == folders
    assert stat.S_IMODE((shared / "runs" / "kept" / "file").stat().st_mode) == files


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(NotADirectoryError, match=r"no folder.*runs|runs.*no folder"):
        make_shared_folder(tmp_path / "runs")


def test_equal_values_have_one_identity():
    expected = identity(a=[1, 2.5, None], b={"x": True, "y": "text"})
    assert len(expected) == 64
    assert identity(b={"y": "text", "x": True}, a=(1.0, 2.5, None)) == expected
    others = [
        {"a": [1, 2.5, None]},
        {"a": [1, 2.5, 0], "b": {"x": True, "y": "text"}},
        {"a": 1},
        {"a": True},
        {"a": "1"},
    ]
    assert len({expected, *(identity(**other) for other in others)}) == 6
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            identity(a=value)


def test_a_digest_of_tensors_counts_names_types_shapes_values_and_the_record():
    zeros = torch.zeros(2, 3)
    expected = tensors_digest({"a": zeros, "b": zeros}, "record")
    assert tensors_digest({"b": zeros.T.contiguous().T, "a": zeros.clone().requires_grad_()}, "record") == expected
    others = [
        ({"a": zeros, "c": zeros}, "record"),
        ({"a": zeros, "b": zeros.to(torch.int32)}, "record"),
        ({"a": zeros, "b": zeros.view(3, 2)}, "record"),
        ({"a": zeros, "b": zeros + 1}, "record"),
        ({"a": zeros, "b": zeros}, ""),
    ]
    assert len({expected, *(tensors_digest(*other) for other in others)}) == 6


def test_a_files_digest_is_that_of_sha256sum(tmp_path):
    path = tmp_path / "abc"
    path.write_text("abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
