"""Parts of a file: rows of one scale, votes between some models, some pairs of many."""

import numpy as np
import pytest

from p2l_plugins.errors import DataError
from p2l_plugins.votes.columns import ModelColumns
from p2l_plugins.votes.read import read_votes


@pytest.fixture
def two_judges(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("prompt,judge,a,b,c\np,one,1,2,\nq,one,3,1,\np,two,9,,7\nq,two,8,,9\n")
    return path


def test_only_the_rows_of_one_judge_and_the_models_that_it_saw(two_judges):
    votes = read_votes(two_judges, where={"judge": "two"})
    assert votes.models == ("a", "c")
    assert votes.outcome.tolist() == [0, 1]
    assert votes.prompts == [("p",), ("q",)]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"judge": "three"}, "no row has 'three' in the column 'judge'; it holds one, two"),
        ({"panel": "one"}, "panel"),
    ],
)
def test_a_part_that_is_not_there(two_judges, where, said):
    with pytest.raises(DataError, match=said):
        read_votes(two_judges, where=where)


def test_votes_of_models_that_are_not_wanted_are_left_out(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("prompt,model_a,model_b,winner\np,a,b,model_a\np,a,c,model_b\nq,b,c,tie\n")
    assert read_votes(path, models=ModelColumns(not_models=("c",))).models == ("a", "b")
    assert len(read_votes(path, models=ModelColumns(models=("b", "c")))) == 1
    with pytest.raises(DataError, match="the model 'd' is not in the file"):
        read_votes(path, models=ModelColumns(not_models=("d",)))


def test_some_pairs_of_each_prompt_the_same_ones_each_time(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "scores.csv"
    rows = [",".join([f"p{i}", *map(str, rng.integers(0, 2, 12))]) for i in range(30)]
    path.write_text("prompt," + ",".join(f"m{i}" for i in range(12)) + "\n" + "\n".join(rows))
    every, some = read_votes(path), read_votes(path, pairs=20)
    assert len(every) == 30 * 66
    assert np.bincount(some.prompt).tolist() == [20] * 30
    again = read_votes(path, pairs=20)
    assert (some.a.tolist(), some.b.tolist()) == (again.a.tolist(), again.b.tolist())
    known = {(p, a, b): o for p, a, b, o in zip(every.prompt, every.a, every.b, every.outcome, strict=True)}
    assert all(known[p, a, b] == o for p, a, b, o in zip(some.prompt, some.a, some.b, some.outcome, strict=True))
    assert len(read_votes(path, pairs=100)) == len(every)
    assert np.unique(np.concatenate([some.a, some.b])).tolist() == list(range(12))
