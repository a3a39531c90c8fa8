"""What counts as another bundle in the place of one, and when it is told."""

import os
import shutil

import pytest
from helpers.word_bundle import WORDS, write_bundle

from p2l_plugins.errors import BundleError
from p2l_plugins.scoring.changes import Changes

OTHER = WORDS | {"math": (0.0, 1.0, 2.0)}


@pytest.fixture
def bundles(tmp_path):
    """A bundle, another one, and a link to the first."""
    one, other = write_bundle(tmp_path / "one"), write_bundle(tmp_path / "other", words=OTHER)
    (tmp_path / "link").symlink_to(one)
    return one, other, tmp_path / "link"


def point(link, folder):
    """Moves a link at once, as `mv -T` does."""
    new = link.with_name("new")
    new.symlink_to(folder)
    os.replace(new, link)


def looks(changes, n=4):
    return [changes.due() for _ in range(n)]


def test_a_link_that_moves_is_told_once_when_two_looks_agree(bundles):
    one, other, link = bundles
    changes = Changes(link)
    assert looks(changes) == [False] * 4
    point(link, other)
    assert looks(changes) == [False, True, False, False]
    changes.taken()
    point(link, one)
    assert looks(changes) == [False, True, False, False]


def test_what_was_refused_is_not_told_again_until_a_file_changes_or_somebody_asks(bundles):
    one, other, link = bundles
    changes = Changes(link)
    data = (other / "model.onnx").read_bytes()
    (other / "model.onnx").write_bytes(data[:-1])
    point(link, other)
    assert looks(changes) == [False, True, False, False]
    assert changes.due(at_once=True)
    (other / "model.onnx").write_bytes(data)
    assert looks(changes) == [False, True, False, False]
    point(link, one)  # it was never taken, so there is nothing to do
    assert looks(changes) == [False] * 4


def test_a_copy_that_goes_on_is_not_read(bundles):
    one, other, _ = bundles
    changes = Changes(one)
    for name in ("p2l.json", "tokenizer.json", "model.onnx"):
        shutil.copy(other / name, one / name)
        os.utime(one / name, ns=(0, hash(name)))
        assert not changes.due()
    assert changes.due()


def test_the_same_manifest_is_nothing_new(bundles):
    one, _, link = bundles
    changes = Changes(link)
    (one / "p2l.json").touch()
    assert not changes.due(at_once=True)
    copy = shutil.copytree(one, one.with_name("copy"))
    point(link, copy)
    assert looks(changes) == [False] * 4


def test_a_folder_that_is_gone_is_told_and_never_sought_elsewhere(bundles):
    _, _, link = bundles
    changes = Changes(link)
    link.unlink()
    assert looks(changes) == [False, True, False, False]
    with pytest.raises(BundleError, match="there is no such folder any more"):
        changes.check()


@pytest.mark.parametrize("source", ["starter", "someone/something"])
def test_what_is_no_folder_never_changes(source):
    changes = Changes(source)
    assert not changes.due(at_once=True)
    changes.check()
