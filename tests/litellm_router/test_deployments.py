import copy

import litellm
import numpy as np

from litellm_router.abilities import lacks
from litellm_router.called import takes_part
from litellm_router.deployments import Group, Groups
from p2l_plugins.scoring.bundle import resolve_model


class Names:
    """The models of a bundle."""

    models = ("alpha", "beta", "gamma")
    aliases, support = {"a": "alpha"}, {}

    def index(self, model):
        return resolve_model(model, self.models, self.aliases)


PREFERENCE = ("beta", "alpha", "gamma")


RANK = {name: place for place, name in enumerate(PREFERENCE)}


def turns(deployments, target=None):
    """Ids of the deployments in the order in which their turn comes."""
    group = Group(deployments, Names())
    left = [one.id for one in group.members]
    found = []
    while left:
        turn = group.best(RANK, group.of_first_order(left, target))
        if not turn:
            return found
        found.append(turn)
        left = [one for one in left if one not in turn]
    return found


def test_turns_follow_the_ranking(deployment):
    group = [deployment("x", "alpha"), deployment("y", "beta"), deployment("z", "gamma")]
    assert turns(group) == [["y"], ["x"], ["z"]]


def test_deployments_of_one_model_share_a_turn_by_name_or_alias(deployment):
    group = [deployment("x1", "alpha"), deployment("x2", "a"), deployment("y", "beta")]
    assert turns(group) == [["y"], ["x1", "x2"]]


def test_unranked_deployments_come_after_the_ranked_ones_together(deployment):
    group = [deployment("u"), deployment("y", "beta"), deployment("v", "typo"), deployment("x", "alpha")]
    assert turns(group) == [["y"], ["x"], ["u", "v"]]


def test_the_operators_order_comes_first_and_p2l_ranks_within_it(deployment):
    group = [
        deployment("y", "beta", order=2),
        deployment("x", "alpha", order=1),
        deployment("z", "gamma", order=1),
        deployment("w", "beta"),
    ]
    assert turns(group) == [["x"], ["z"], ["y"], ["w"]]


def test_an_order_in_model_info_counts_as_it_does_for_litellm(deployment):
    group = [deployment("y", "beta"), deployment("x", "alpha")]
    group[1]["model_info"]["order"] = 1
    assert turns(group) == [["x"], ["y"]]


def test_only_the_order_that_litellm_fell_back_to_has_turns(deployment):
    group = [deployment("x", "alpha", order=1), deployment("y", "beta", order=2), deployment("z", "gamma", order=3)]
    assert turns(group, target=2) == [["y"]]


def test_deployments_of_other_models_are_found(deployment):
    deployments = [deployment("x", "alpha"), deployment("y1", "beta"), deployment("y2", "beta"), deployment("u")]
    group = Group(deployments, Names())
    assert group.of_models_other_than({"beta"}, ["x", "y1", "u"]) == ["x", "u"]
    assert group.of_models_other_than(set(), ["y2"]) == ["y2"]


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


def test_a_group_takes_part_when_two_deployments_are_called_differently(deployment):
    x, y, u = deployment("x", "alpha"), deployment("y", "beta"), deployment("u")
    assert takes_part([u, x, u, y])
    assert takes_part([u, x, x])
    assert not takes_part([x, x])
    assert not takes_part([u, u])
    assert not takes_part([])


def test_a_group_is_read_once_and_again_after_a_while(deployment, tiny):
    now = 0.0
    groups = Groups(tiny, clock=lambda: now)
    deployments = [deployment("x", "alpha"), deployment("y", "beta")]
    group = groups.of(deployments)
    assert groups.of(copy.deepcopy(deployments)) is group  # as LiteLLM hands them on since 1.110
    assert groups.of(deployments[::-1]) is not group
    now = 60.0
    assert groups.of(deployments) is not group


def test_a_change_that_litellm_makes_in_place_is_seen(deployment, tiny):
    groups = Groups(tiny)
    deployments = [deployment("x", "alpha"), deployment("y", "beta")]
    assert {one.order for one in groups.of(deployments).members} == {None}
    deployments[0]["litellm_params"]["order"] = 7
    assert groups.of(deployments).members[0].order == 7
    deployments[0]["litellm_params"]["order"] = [1]  # of a form that is nobody's
    assert groups.of(deployments).members[0].order is None


def test_what_litellm_does_not_know_of_a_model_is_no_fact(monkeypatch):
    """It lists a model that it does not know once that one has answered, with None for all that models may support."""
    tools = {"supports_function_calling"}
    own = {"litellm_params": {"model": "openai/of-our-own"}, "model_info": {}}
    assert not lacks(own, tools, 10)
    for told, lacking in (({}, False), ({"supports_function_calling": False}, True), ({"supports_vision": True}, True)):
        entry = {
            "litellm_provider": "openai",
            "mode": "chat",
            "supports_vision": None,
            "supports_function_calling": None,
        }
        name = f"openai/of-our-own-{len(told)}-{lacking}-{next(iter(told), '')}"
        monkeypatch.setitem(litellm.model_cost, name, entry | told)
        assert lacks(own | {"litellm_params": {"model": name}}, tools, 10) == lacking
