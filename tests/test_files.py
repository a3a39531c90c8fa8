"""Files and folders written whole or not at all: modes, other processes at the same place, what a kill leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2l_plugins import DataError
from p2l_plugins.files.tables import put_folder, replaced_file, replaced_folder

WRITES = """
import sys, time
from pathlib import Path
from p2l_plugins.files.tables import replaced_file, replaced_folder
with {what}(Path(sys.argv[1])) as work:
    {write}
    print("now", flush=True)
    time.sleep(60)
"""
FOLDER = WRITES.format(what="replaced_folder", write='(work / "half").write_text("half")')
FILE = WRITES.format(what="replaced_file", write='work.write_text("half")')


@pytest.fixture
def umask():
    """Sets the umask, and puts the old one back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def begun(code, target):
    """A process in the midst of writing."""
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    return process


def killed(code, target):
    process = begun(code, target)
    process.send_signal(signal.SIGKILL)
    process.wait(30)


def age(folder):
    """Makes what lies in a folder older than what another process may be about to hold."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 60,) * 2)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0, 0o666, 0o777)])
def test_all_files_of_a_folder_have_the_modes_of_the_umask(tmp_path, umask, mask, file, folder):
    umask(mask)
    with replaced_folder(tmp_path / "bundle") as work:
        (work / "inner").mkdir(mode=0o700)
        for name in ("plain", "inner/private"):
            (work / name).write_text("x")
        (work / "inner/private").chmod(0o600)  # as the writers of weights do
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "bundle").rglob("*")}
    assert modes == {"plain": file, "private": file, "inner": folder}
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == folder


def test_a_file_that_is_private_on_purpose_stays_so(tmp_path, umask):
    with replaced_file(tmp_path / "journal") as work:
        os.close(os.open(work, os.O_WRONLY | os.O_CREAT, 0o600))
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


def test_a_checkpoints_files_have_one_mode(tiny_checkpoint):
    assert len({path.stat().st_mode & 0o777 for path in tiny_checkpoint.iterdir() if path.is_file()}) == 1


def test_who_comes_second_is_told_so(tmp_path):
    target = tmp_path / "bundle"

    def both():
        with replaced_folder(target) as late:
            (late / "mine").write_text("x")
            with replaced_folder(target) as early:
                (early / "first").write_text("x")

    with pytest.raises(DataError, match=r"bundle: another process wrote it meanwhile; name a new folder"):
        both()
    assert [path.name for path in target.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "bundle").write_text("x")
    with pytest.raises(DataError, match="another process wrote it meanwhile"):
        put_folder(tmp_path / "work", tmp_path / "bundle")


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "bundle").mkdir()
    with replaced_folder(tmp_path / "bundle") as work:
        (work / "x").write_text("x")
    assert (tmp_path / "bundle/x").read_text() == "x"


def test_an_error_leaves_no_folder_on_the_way(tmp_path):
    (tmp_path / "there").mkdir()

    def stopped():
        with replaced_folder(tmp_path / "there/a/b/bundle") as work:
            (work / "x").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


@pytest.mark.parametrize(("code", "write"), [(FOLDER, replaced_folder), (FILE, replaced_file)])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, code, write):
    killed(code, tmp_path / "out")
    assert [path.name.startswith(".out-") for path in tmp_path.iterdir()] == [True]
    age(tmp_path)
    with write(tmp_path / "out") as work:
        (work / "x" if work.is_dir() else work).write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_running_process_writes_is_left_alone(tmp_path):
    process = begun(FOLDER, tmp_path / "out")
    age(tmp_path)
    (room,) = tmp_path.iterdir()
    with replaced_folder(tmp_path / "out") as work:
        (work / "x").write_text("x")
    assert (room / "out/half").is_file()
    process.terminate()
    process.wait(30)


def test_only_our_own_leftovers_are_removed(tmp_path):
    kept = [tmp_path / name for name in (".out-notes", ".outer-a", ".out-link", "out-b", ".out-pipe", ".out-file")]
    for folder in (*kept[:2], kept[3], kept[4], tmp_path / "elsewhere"):
        folder.mkdir()
    (kept[0] / "notes.txt").write_text("not ours")
    for folder in (kept[1], kept[3], tmp_path / "elsewhere"):
        (folder / ".in-use").write_text("")
    kept[2].symlink_to(tmp_path / "elsewhere")
    os.mkfifo(kept[4] / ".in-use")
    kept[5].write_text("not a folder")
    age(tmp_path)
    with replaced_folder(tmp_path / "out") as work:
        (work / "x").write_text("x")
    assert all(path.exists() for path in kept if path != kept[4])
    assert (tmp_path / "elsewhere/.in-use").exists()


def test_a_folder_with_signs_of_a_pattern_in_its_name(tmp_path):
    other = tmp_path / ".ab-x"
    other.mkdir()
    (other / ".in-use").write_text("")
    age(tmp_path)
    with replaced_folder(Path(tmp_path / "[a]b")) as work:
        (work / "x").write_text("x")
    assert other.exists()
