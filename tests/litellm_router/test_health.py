import logging

import pytest

from litellm_router.health import QUIET_S, Health
from litellm_router.reasons import NotRoutedError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock, caplog):
    caplog.set_level(logging.INFO, "litellm_router")
    return Health(clock)


def test_a_state_is_logged_when_it_changes_and_not_per_request(health, caplog):
    for _ in range(5):
        health.not_routed(NotRoutedError("deadline", "too slow"))
    for _ in range(5):
        health.routed()
    # without what a thread of an earlier test may still say of its configuration
    own = [r for r in caplog.records if "model_list" not in r.getMessage()]
    assert [(r.levelname, "too slow" in r.getMessage()) for r in own] == [("WARNING", True), ("INFO", False)]
    assert health.counts == {"deadline": 5, "routed": 5}


def test_a_state_that_flips_with_every_request_is_logged_once_a_minute(health, clock, caplog):
    for _ in range(50):
        health.not_routed(NotRoutedError("deadline", "too slow"))
        health.routed()
    assert len(caplog.records) == 2
    clock.now = QUIET_S
    health.not_routed(NotRoutedError("deadline", "too slow"))
    assert len(caplog.records) == 3


def test_requests_without_text_change_no_state_and_are_counted(health, caplog):
    for _ in range(3):
        health.not_routed(NotRoutedError("no_text"))
        health.routed()
    assert not caplog.records
    assert health.counts == {"no_text": 3, "routed": 3}


def test_each_misconfiguration_is_said_once_as_an_error(health, clock, caplog):
    for _ in range(3):
        for detail in ("this is wrong", "that is wrong"):
            health.not_routed(NotRoutedError("settings", detail))
            clock.now += 2 * QUIET_S
    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR"]
