"""A thousand requests through LiteLLM's router while the scorer is in trouble: LiteLLM's own strategy answers each."""

import asyncio
import threading
import time
from collections import Counter

import litellm
import numpy as np
import pytest
from helpers.trouble import REQUESTS, CountingScorer

from litellm_router import P2LRouter, P2LSettings
from p2l_plugins.scoring.scorer import Scores

pytestmark = pytest.mark.alone

DEADLINE_MS = 60.0
SLACK_MS = 20.0


class Troubled(CountingScorer):
    """Raises, hangs, or gives what is no score."""

    def __init__(self, trouble):
        super().__init__()
        self.trouble = trouble
        self.released = threading.Event()

    def score_turns(self, prompts):
        if prompts == [("well",)]:
            return super().score_turns(prompts)
        if self.trouble == "raises":
            raise RuntimeError("out of memory")
        if self.trouble == "hangs":
            self.released.wait(60)
        scores = super().score_turns(prompts)
        if self.trouble == "gives NaN":
            return Scores(self.models, np.full_like(scores.coefs, np.nan), scores.raw_eta, self.family)
        width = slice(None, -1) if self.trouble == "gives too few" else slice(None)
        return Scores(self.models, scores.coefs[:, width], scores.raw_eta, self.family)


async def ask(router, text):
    """Milliseconds of a request, its metadata, and the deployment that answered."""
    metadata = {}
    started = time.perf_counter()
    response = await router.acompletion(
        model="auto", messages=[{"role": "user", "content": text}], metadata=metadata, num_retries=0
    )
    ms = 1e3 * (time.perf_counter() - started)
    return ms, metadata, response.choices[0].message.content


def record_of(metadata):
    return metadata["spend_logs_metadata"]["p2l"]


@pytest.mark.parametrize(
    ("trouble", "reasons"),
    [
        ("raises", {"scorer"}),
        ("hangs", {"deadline", "busy"}),
        ("gives NaN", {"scorer"}),
        ("gives too few", {"scorer"}),
    ],
)
async def test_no_request_fails_and_none_waits_past_the_deadline(deployments, monkeypatch, trouble, reasons):
    for deployment in deployments:
        # a name that LiteLLM knows: its search for the price of another one takes longer than all else
        params = {"model": "openai/gpt-4o-mini", "api_key": "k", "mock_response": deployment["model_info"]["id"]}
        deployment["litellm_params"] |= params
    scorer = Troubled(trouble)
    callback = P2LRouter(P2LSettings(timeout_ms=DEADLINE_MS), lambda _: scorer)
    monkeypatch.setattr(litellm, "callbacks", [callback])
    router = litellm.Router(model_list=deployments)
    while "error" in record_of((await ask(router, "well"))[1]):
        await asyncio.sleep(0.01)
    normal, troubled, records, answers = [], [], [], Counter()
    texts = iter(range(REQUESTS))

    async def client():
        for i in texts:
            ms, metadata, answer = await ask(router, f"in trouble {i}")
            troubled.append(ms)
            records.append(record_of(metadata))
            answers[answer] += 1
            if i % 10 == 0:
                ms, metadata, _ = await ask(router, "well")
                assert record_of(metadata)["cache"] == "hit"
                normal.append(ms)

    try:
        await asyncio.gather(*(client() for _ in range(4)))
        _, last, _ = await ask(router, "in trouble to the end")
    finally:
        scorer.released.set()
    assert len(records) == REQUESTS
    why = Counter(record["error"] for record in records)  # none was decided by P2L
    assert set(why) <= reasons | {"deadline", "busy"}, why  # which a busy machine may miss, or sees that it would
    assert sum(why[reason] for reason in reasons) > 0.5 * REQUESTS, why
    headers = await callback.async_post_call_response_headers_hook({"metadata": last}, None, None)
    assert headers["x-p2l-error"] == record_of(last)["error"]
    # LiteLLM's shuffle gives each of the three a third
    assert min(answers.values()) > REQUESTS / 4
    assert set(answers) == {one["model_info"]["id"] for one in deployments}
    p95, normal_p95 = np.percentile(troubled, 95), np.percentile(normal, 95)
    own = [record["ms"] for record in records]
    print(
        f"p50 {np.median(troubled):.2f} ms, p95 {p95:.2f} ms, in health {np.median(normal):.2f} and {normal_p95:.2f}; "
        f"of it routing: p99 {np.percentile(own, 99):.2f} ms"
    )
    assert p95 <= normal_p95 + DEADLINE_MS + SLACK_MS
