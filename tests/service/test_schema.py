"""Right and wrong requests that schemathesis makes from the OpenAPI document: answers as documented, never a 5xx."""

import hypothesis
import pytest
from helpers.serving import in_thread, status, until

from p2l_plugins.service.app import create_app
from p2l_plugins.service.settings import ServiceSettings

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

#: What a schema can't say: which prompts are empty, and which models the bundle has. Nor is there a key here.
LEFT_OUT = [checks.positive_data_acceptance, checks.ignored_auth]

COSTS = {"gpt-4o-2024-08-06": 0.01, "llama-3.1-8b-instruct": {"input_price": 0.1, "output_price": 0.2}}


APP = create_app(ServiceSettings(costs=COSTS, overall=(("one",), ("two",))))
schema = schemathesis.openapi.from_dict(APP.openapi())


@pytest.fixture(scope="module")
def url():
    with in_thread(APP) as url:
        until(lambda: status(f"{url}/v1/overall") == 200)
        yield url


@schema.parametrize()
@hypothesis.settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_every_answer_is_one_that_the_document_describes(case, url):
    response = case.call(base_url=url)
    assert response.status_code < 500
    case.validate_response(response, excluded_checks=LEFT_OUT)
