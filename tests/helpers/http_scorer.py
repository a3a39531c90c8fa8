"""A real HTTP scorer for tests, that speaks the contract of `litellm_router.endpoint` and can misbehave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from helpers.loopback import Answering, Loopback, serving


class HttpScorer(Loopback):
    """Scores with a `P2L`.

    Attributes:
        mode: `ok`, `busy`, `raise`, `hang` (until `released`), `nan`, `short`, `no_eta`, `odd`, `huge`, `other`,
            `share` (one that is none), `old` (says nothing of unknown tokens), `narrow` (overall scores of too few
            models), `silent` (does not say what it has).
        scoring: in place of `p2l` where prompts are scored, as if another worker had another bundle.
        asked: prompts of each call; connections: how many were opened.
    """

    def __init__(self, p2l, key=None, port=0):
        super().__init__(Handler, port)
        self.p2l, self.key, self.mode = p2l, key, "ok"
        self.scoring = None
        self.asked, self.connections = [], 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def process_request(self, request, client_address):
        self.connections += 1
        super().process_request(request, client_address)


class Handler(Answering):
    server: HttpScorer

    def do_GET(self):  # noqa: N802 - the name that http.server calls
        p2l, mode = self.server.p2l, self.server.mode
        coefs = p2l.overall.coefs.tolist()
        said = {
            "name": "tiny",
            "fingerprint": p2l.fingerprint,
            "family": p2l.family,
            "models": p2l.models,
            "aliases": p2l.bundle.manifest.aliases,
            "ungrounded": [],
            "max_length": p2l.bundle.manifest.text.max_length,
            "overall": {"coefs": coefs[1:] if mode == "narrow" else coefs, "raw_eta": p2l.overall.raw_eta},
            "bounds": {"coefs": 500.0, "raw_eta": 9.0},
        }
        if mode == "old":
            del said["overall"], said["bounds"]
        self._answer(self._status("/v1/bundle"), said)

    def do_POST(self):  # noqa: N802 - the name that http.server calls
        body = self.body()
        p2l, mode = self.server.scoring or self.server.p2l, self.server.mode
        prompts = [tuple(turns) for turns in body["prompts"]]
        self.server.asked.append(prompts)
        if mode == "hang":
            self.server.released.wait(20)
        if mode == "odd":
            return self.send(200, b"<html>")
        if mode == "huge":
            return self.send(200, b'{"coefs": [' + b" " * 2**25)
        scores = p2l.score_turns(prompts)
        coefs, eta = scores.coefs.tolist(), None if scores.raw_eta is None else scores.raw_eta.tolist()
        reply = {
            "fingerprint": "f" * 32 if mode == "other" else p2l.fingerprint,
            "family": p2l.family,
            "models": p2l.models,
            "coefs": [[float("nan")] * len(row) for row in coefs] if mode == "nan" else coefs,
            "raw_eta": None if mode == "no_eta" else eta,
            "truncated": scores.truncated.tolist(),
            "unknown": scores.unknown.tolist(),
        }
        if mode == "share":
            reply["unknown"] = [1.5] * len(prompts)
        if mode == "old":
            del reply["unknown"]
        if mode == "short":
            reply["coefs"] = [row[:-1] for row in coefs]
        return self._answer(self._status("/v1/scores"), reply)

    def _status(self, path):
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return 401
        if self.path != path:
            return 404
        if self.server.mode == "silent" and path == "/v1/bundle":
            return 503
        return {"busy": 429, "raise": 500}.get(self.server.mode, 200)

    def _answer(self, status, content):
        self.send(status, json.dumps(content if status == 200 else {"error": "no"}).encode())


@contextlib.contextmanager
def http_scorer(p2l, key=None, port=0) -> Iterator[HttpScorer]:
    """A scorer on a free loopback port while the block runs."""
    server = HttpScorer(p2l, key, port)
    with serving(server):
        yield server
