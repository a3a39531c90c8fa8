"""Where LiteLLM traces, the decision is a span under the request's."""

import asyncio

import litellm
import pytest

from litellm_router import P2LRouter, P2LSettings

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="pip install opentelemetry-sdk")
SECRET = "xyzzy-plugh-my-secret"


@pytest.fixture
def traced(monkeypatch):
    """A tracer, and what gives the spans that it exported."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return provider.get_tracer("test"), exporter.get_finished_spans


async def asked(router, tracer, text):
    """Asks as LiteLLM's proxy does, which hands its span on in the metadata; returns that span."""
    with tracer.start_as_current_span("request") as parent:
        await router.acompletion(
            model="auto",
            messages=[{"role": "system", "content": SECRET}, {"role": "user", "content": text}],
            metadata={"litellm_parent_otel_span": parent},
        )
    return parent


def one(spans):
    """The only decision among them."""
    (span,) = [span for span in spans if span.name == "p2l.decision"]
    return span


async def test_a_decision_is_a_span_under_that_of_its_request(tiny, group, traced, monkeypatch):
    tracer, spans = traced
    monkeypatch.setattr(litellm, "callbacks", [P2LRouter(P2LSettings(timeout_ms=5000), lambda _: tiny)])
    router = litellm.Router(model_list=group)
    parent = await asked(router, tracer, "math")
    span = one(spans())
    assert span.parent.span_id == parent.context.span_id
    assert span.context.trace_id == parent.context.trace_id
    said = dict(span.attributes)
    model = next(d["model_info"]["p2l_model"] for d in group if d["model_info"]["id"] == "x")
    assert said["p2l.group"] == "auto"
    assert said["p2l.model"] == said["p2l.ranking"][0] == model
    assert (said["p2l.rule"], said["p2l.cache"], said["p2l.fingerprint"]) == ("best", "miss", tiny.fingerprint)
    assert (span.end_time - span.start_time) / 1e6 == pytest.approx(said["p2l.ms"], abs=0.01)
    assert SECRET not in span.to_json()
    assert span.start_time >= parent.start_time
    assert span.end_time <= parent.end_time


async def test_a_request_that_is_not_routed_says_why(tiny, group, traced, monkeypatch):
    tracer, spans = traced
    monkeypatch.setattr(litellm, "callbacks", [P2LRouter(P2LSettings(bundle="no/such"))])
    monkeypatch.setattr(litellm, "num_retries", 0)
    await asked(litellm.Router(model_list=group), tracer, "math")
    await asyncio.sleep(0)
    said = dict(one(spans()).attributes)
    assert said["p2l.error"] in ("loading", "bundle")
    assert "p2l.model" not in said


async def test_without_a_span_of_the_request_there_is_none(tiny, group, traced, monkeypatch):
    _, spans = traced
    monkeypatch.setattr(litellm, "callbacks", [P2LRouter(P2LSettings(timeout_ms=5000), lambda _: tiny)])
    await litellm.Router(model_list=group).acompletion(model="auto", messages=[{"role": "user", "content": "math"}])
    assert not spans()
