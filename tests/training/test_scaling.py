"""The scaling law: recovered where it is known, and measured on a tiny grid."""

import json
import sys

import numpy as np
import pytest
from scipy.optimize import curve_fit

from p2l_plugins.cli import main
from p2l_plugins.errors import ConfigError, DataError
from p2l_plugins.training.config import read_config
from p2l_plugins.training.scaling import Run, draw_scaling, fit_law, laws, run_grid, scaling_tables

SIZES = np.array([1e3, 2e3, 4e3, 8e3, 16e3, 32e3])


def test_a_known_law_is_recovered():
    law = fit_law("x", SIZES, 0.5 + 30.0 * SIZES**-0.6)
    assert (law.e, law.a, law.alpha) == pytest.approx((0.5, 30.0, 0.6), rel=1e-3)
    assert law.residual < 1e-6


def test_the_fit_is_the_least_squares_one():
    rng = np.random.default_rng(1)
    losses = 0.5 + 30.0 * SIZES**-0.6 + 0.003 * rng.normal(size=SIZES.size)
    law = fit_law("x", SIZES, losses)
    (e, a, alpha), _ = curve_fit(lambda n, e, a, k: e + a * (n / SIZES.max()) ** -k, SIZES, losses, p0=(0.5, 0.1, 0.5))
    assert (law.e, law.alpha) == pytest.approx((e, alpha), rel=1e-3)
    assert law.a == pytest.approx(a * SIZES.max() ** alpha, rel=1e-2)


def test_the_intervals_cover_the_truth():
    rng = np.random.default_rng(2)
    sizes = np.repeat(SIZES, 3)
    inside = 0
    for _ in range(20):
        law = fit_law("x", sizes, 0.5 + 30.0 * sizes**-0.6 + 0.005 * rng.normal(size=sizes.size))
        inside += (law.e_interval[0] <= 0.5 <= law.e_interval[1]) and (
            law.alpha_interval[0] <= 0.6 <= law.alpha_interval[1]
        )
    assert inside >= 15


def test_two_sizes_are_too_few():
    with pytest.raises(DataError, match="3 different sizes at least, not 2"):
        fit_law("x", [1, 1, 2], [3, 3, 2])


def test_the_grid_trains_each_size_once(train_config, tmp_path):
    config = read_config(train_config).model_copy(update={"epochs": 2.0})
    seen = []
    runs = run_grid(
        config, train_config.parent, tmp_path / "out", [0.25, 0.5, 1.0], [config.backbone], [0], seen.append
    )
    assert [run.fraction for run in runs] == [0.25, 0.5, 1.0]
    assert np.all(np.diff([run.votes for run in runs]) > 0)
    assert len({run.marginal_loss for run in runs}) == 3  # each is fitted to its own votes
    again = run_grid(
        config, train_config.parent, tmp_path / "out", [0.25, 0.5, 1.0], [config.backbone], [0], seen.append
    )
    assert again == runs
    assert len(seen) == 3
    fitted = laws(runs)
    assert f"| {config.backbone} | 0.25 |" in scaling_tables(runs, fitted)
    draw_scaling(runs, fitted, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    other = config.model_copy(update={"max_length": 16})
    with pytest.raises(ConfigError, match="holds runs of another configuration"):
        run_grid(other, train_config.parent, tmp_path / "out", [1.0], [config.backbone], [0])


def test_the_command_refuses_sizes_that_make_no_law(train_config, tmp_path, monkeypatch, capsys):
    arguments = ["scaling", str(train_config), "-o", str(tmp_path / "out"), "--sizes", "0.5,2"]
    monkeypatch.setattr(sys, "argv", ["p2l", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "sizes is '0.5,2', but must be 3 different shares" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_survive_their_file():
    run = Run("b", 0.5, 0, 10, 20, 0.5, 0.6, 1.0)
    assert Run(**json.loads(json.dumps(vars(run)))) == run
