"""A caller's trace goes on in the service, where the process has an OpenTelemetry SDK."""

import httpx
import pytest
from helpers.serving import in_thread

from p2l_plugins.service import tracing
from p2l_plugins.service.app import create_app
from p2l_plugins.service.settings import ServiceSettings

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="pip install opentelemetry-sdk")
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_request_with_a_traceparent_is_a_span_under_the_callers(monkeypatch):
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    assert not tracing.is_configured()
    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    secret = "xyzzy-plugh-my-secret"
    with in_thread(create_app(ServiceSettings())) as url, httpx.Client(base_url=url) as client:
        client.get("/healthz")
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        assert client.post("/v1/scores", json={"prompts": [secret]}, headers=headers).status_code == 200
        assert client.post(f"/v1/{secret}", json={}, headers=headers).status_code == 404
        client.post("/v1/scores", json={"prompts": ["no trace"]})
        client.get("/healthz", headers={"traceparent": "nonsense"})
    first, second, odd = exporter.get_finished_spans()
    assert (first.name, dict(first.attributes)) == (
        "POST /v1/scores",
        {"http.request.method": "POST", "http.route": "/v1/scores", "http.response.status_code": 200},
    )
    for span in (first, second):
        assert format(span.context.trace_id, "032x") == TRACE
        assert format(span.parent.span_id, "016x") == CALLER
    assert (second.name, second.attributes["http.response.status_code"]) == ("POST other", 404)
    assert odd.parent is None
    assert not any(secret in span.to_json() for span in (first, second, odd))
