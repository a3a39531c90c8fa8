import copy

import litellm
import numpy as np

from litellm_router.deployments import Group, Groups, takes_part
from litellm_router.request import failed_ids
from p2l_plugins.bundle import resolve_model


class Names:
    """The models of a bundle."""

    models = ("alpha", "beta", "gamma")

    def index(self, model):
        return resolve_model(model, self.models, {"a": "alpha"})


PREFERENCE = ("beta", "alpha", "gamma")


def ordered(deployments, failed=(), target=None):
    group = Group(deployments, Names())
    ranking = sorted(range(len(group.models)), key=lambda i: PREFERENCE.index(group.models[i]))
    return group.ordered(ranking, failed, target)


def orders(*args, **options):
    ranked = ordered(*args, **options)
    return {d["model_info"]["id"]: d["litellm_params"]["order"] for d in ranked}


def test_orders_follow_the_ranking_and_nothing_is_dropped_or_changed(deployment):
    group = [deployment("x", "alpha"), deployment("y", "beta"), deployment("z", "gamma")]
    before = copy.deepcopy(group)
    assert orders(group) == {"y": 1, "x": 2, "z": 3}
    assert group == before


def test_deployments_of_one_model_share_a_rank_by_name_or_alias(deployment):
    group = [deployment("x1", "alpha"), deployment("x2", "a"), deployment("y", "beta")]
    assert orders(group) == {"y": 1, "x1": 2, "x2": 2}


def test_unranked_deployments_come_after_the_ranked_ones_together(deployment):
    group = [deployment("u"), deployment("y", "beta"), deployment("v", "typo"), deployment("x", "alpha")]
    assert orders(group) == {"y": 1, "x": 2, "u": 3, "v": 3}


def test_failed_deployments_come_last(deployment):
    group = [deployment("u"), deployment("y", "beta"), deployment("x", "alpha"), deployment("z", "gamma")]
    assert orders(group, failed=["y", "x"]) == {"z": 1, "u": 2, "y": 3, "x": 4}


def test_the_operators_order_comes_first_and_p2l_ranks_within_it(deployment):
    group = [
        deployment("y", "beta", order=2),
        deployment("x", "alpha", order=1),
        deployment("z", "gamma", order=1),
        deployment("w", "beta"),
    ]
    assert orders(group) == {"x": 1, "z": 2, "y": 3, "w": 4}


def test_an_order_in_model_info_counts_as_it_does_for_litellm(deployment):
    group = [deployment("y", "beta"), deployment("x", "alpha")]
    group[1]["model_info"]["order"] = 1
    assert orders(group) == {"x": 1, "y": 2}


def test_orders_below_the_one_that_litellm_fell_back_to_were_tried_already(deployment):
    group = [deployment("x", "alpha", order=1), deployment("y", "beta", order=2), deployment("z", "gamma", order=3)]
    assert orders(group, target=2) == {"y": 1, "z": 2, "x": 3}


def test_litellm_picks_what_the_orders_say(deployment):
    group = [deployment("x", "alpha"), deployment("y", "beta"), deployment("z", "gamma")]
    ranked = ordered(group)
    assert [d["model_info"]["id"] for d in litellm.utils.get_order_filtered_deployments(ranked)] == ["y"]


def test_failed_ids_are_those_that_litellm_lists_and_those_of_this_requests_attempts():
    assert failed_ids({}) == set()
    request = {"_retry_skipped_deployment_ids": ("a",), "_excluded_deployment_ids": ["b"]}
    attempts = {
        "attempted_retries": 1,
        "previous_models": ({"deployment_id": "of an earlier request"}, {"deployment_id": "c"}),
        "model_info": {"id": "d"},
    }
    assert failed_ids(request | {"metadata": attempts}) == {"a", "b", "c", "d"}
    assert failed_ids({"metadata": attempts | {"attempted_retries": 0}}) == set()


def test_a_model_costs_as_much_as_its_dearest_deployment(deployment):
    group = Group(
        [
            deployment("x1", "alpha", price=1.0),
            deployment("x2", "a", price=2.0),
            deployment("y1", "beta", price=1.0),
            deployment("y2", "beta", price=None),
            deployment("u"),
            deployment("v", "typo"),
            deployment("z", "gamma", price=0.0),
        ],
        Names(),
    )
    assert (group.models, group.columns) == (("alpha", "beta", "gamma"), [0, 1, 2])
    np.testing.assert_array_equal(group.costs(10, np.full(3, 20.0)), [60.0, np.nan, 0.0])


def test_a_group_takes_part_when_two_deployments_give_different_names(deployment):
    x, y, u = deployment("x", "alpha"), deployment("y", "beta"), deployment("u")
    assert takes_part([u, x, u, y])
    assert not takes_part([u, x, x])
    assert not takes_part([])


def test_a_group_is_read_once_and_again_after_a_while(deployment, tiny):
    now = 0.0
    groups = Groups(tiny, clock=lambda: now)
    deployments = [deployment("x", "alpha"), deployment("y", "beta")]
    group = groups.of(deployments)
    assert groups.of(list(deployments)) is group
    assert groups.of(deployments[::-1]) is not group
    deployments[0]["litellm_params"]["order"] = 7  # in place, as LiteLLM might do
    assert groups.of(deployments).ordered([1, 0])[0]["litellm_params"]["order"] == 2
    now = 60.0
    assert groups.of(deployments).ordered([1, 0])[0]["litellm_params"]["order"] == 1
