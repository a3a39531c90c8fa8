"""No message, repr or log repeats what stands between the scheme and the host of an address, however it is written."""

import asyncio
import json
import logging

import pytest
from helpers.servers import server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from litellm_router.settings import P2LSettings
from p2l_plugins.cache.address import Clients, Malformed, check, connect, parse, shown, split
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.settings import CacheSettings
from p2l_plugins.cli import app
from p2l_plugins.errors import ConfigError, P2LError, first_problem, without_credentials

#: Passwords of letters that stand in no message of ours, and of all that parsers stumble over.
ODD = "/#?@:%[]\\'\"\u2100&=+,;<>{}|^`~!$*() \t\n"
PASSWORDS = st.text(st.sampled_from("ЖQЩZЮXЯ0189" + ODD), min_size=6, max_size=24)

FORMS = [
    "{scheme}://me:{password}@host.example:6379/0",
    "{scheme}://:{password}@host.example",
    "{scheme}://{password}@host.example:6379",
    "{scheme}://me:{password}@host.example,other.example:7/scores/0",
    "{scheme}://me:{password}@[::1]:6379/0?ssl_ca_certs=/etc/ca.pem",
    "{scheme}://me:{password}@/run/server.sock",
    "{scheme}://me:pw@host.example:6379/0?password={password}",
    "{scheme}://host.example/scores?sentinel_password={password}",
]
SCHEMES = ["redis", "rediss", "valkey", "unix", "redis+sentinel", "rediss+cluster", "redis+odd", "http", ""]
ADDRESSES = st.tuples(st.sampled_from(FORMS), st.sampled_from(SCHEMES))


def secrets_in(text, password):
    """Pieces of six characters of a password that a text shows, as they are or as `repr` writes them."""
    text = str(text)
    pieces = {password[i : i + 6] for i in range(len(password) - 5)}
    return [piece for piece in pieces if piece in text or repr(piece)[1:-1] in text]


def said(work):
    """What an operation says: its error's message and repr, or the repr of its result."""
    try:
        result = work()
    except (ConfigError, P2LError) as error:
        return f"{error} {error!r}"
    return f"{result!r} {result}"


@given(PASSWORDS, ADDRESSES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_message_and_no_repr_shows_a_piece_of_a_password(password, address):
    form, scheme = address
    url = form.format(scheme=scheme, password=password)
    works = [
        lambda: parse(url, "cache.url"),
        lambda: shown(url),
        lambda: check(url, "cache.url"),
        lambda: Clients(url),
        lambda: connect(url),
        lambda: CacheSettings(url=url).build(),
        lambda: P2LSettings.read({"endpoint": url}).headers,  # what was wrong with it, if it was
        lambda: P2LSettings.read({"cahce": {"url": url}}),
        lambda: P2LSettings.read({"cache": {"url": url, "entries": 0}}),
        lambda: P2LSettings.read({"cache": url}),
    ]
    for i, work in enumerate(works):
        assert not secrets_in(said(work), password), (i, url)


@given(PASSWORDS)
@settings(max_examples=50, deadline=None)
def test_a_password_that_is_percent_encoded_arrives_as_it_is(password):
    from urllib.parse import quote

    kwargs = connect(f"redis://me:{quote(password, safe='')}@host:7/0").connection_pool.connection_kwargs
    assert (kwargs["username"], kwargs["password"], kwargs["port"]) == ("me", password, 7)


@pytest.mark.parametrize("password", ["pa[ss", "p@ssword", "p\u2100ss", "p\\ss", "a b", "pa%zz"])
def test_what_does_not_end_the_host_needs_no_encoding(password):
    assert connect(f"redis://me:{password}@host:7/0").connection_pool.connection_kwargs["password"] == password


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:hidden/word@host:6379/0",
        "redis://me:hidden#word@host:6379/0",
        "redis://me:hidden?word@host:6379/0",
        "redis://me:12345/678901@host:6379/0",
        "redis://me:12345?a=678901@host",
        "redis://:hidden#@host",
        "redis://me:hidden",
        "redis://host:99999",
        "redis://host:6379/zero",
        "redis://a,b",
        "unix://run/redis.sock",
        "unix://",
        "redis+sentinel://me:hidden/word@host/scores/0",
        "redis+cluster://me:hidden?word@host",
        "rediss+cluster://",
    ],
)
def test_a_malformed_address_is_said_with_its_key_and_the_remedy(url):
    for work in (parse, Clients, check):
        with pytest.raises(ConfigError, match=r"^cache\.url is malformed: .* percent-encoded: / as %2F") as caught:
            work(url, "cache.url")
        assert "hidden" not in str(caught.value)
        assert "678901" not in str(caught.value)
    assert shown(url) == "the address"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rediss://me:hidden@h:1/0?password=x", "rediss://h:1/0"),
        ("redis://me:hid@den@h", "redis://h"),
        ("unix://me:hidden@/run/a%40b.sock", "unix:///run/a%40b.sock"),
        ("redis+sentinel://:hidden@a,[::1]:7/scores/0", "redis+sentinel://a,[::1]:7/scores/0"),
        ("valkey+cluster://:hidden@a:1,b", "valkey+cluster://a:1,b"),
    ],
)
def test_what_is_shown_of_an_address(url, expected):
    assert shown(url) == expected


def test_an_option_that_redis_does_not_know_is_not_repeated():
    with pytest.raises(ConfigError, match=r"--url \(redis://h/0\): TypeError in its options") as caught:
        check("redis://h/0?password=ab&hidden=x", "--url")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ConfigError, match="ValueError in its options"):
        check("redis://h/0?socket_timeout=hidden")


def test_an_address_in_any_message_loses_its_credentials():
    for text, expected in [
        ("see http://h:80/a, it is", "see http://h:80/a, it is"),
        ("endpoint = 'http://h:80'", "endpoint = 'http://h:80'"),
        ("must be http://HOST:PORT or https://HOST:PORT, without", None),
        ("x = {'url': 'redis://u:p w@h'} is", "x = {'url': 'redis://…'} is"),
        (
            "x = {'url': 'redis://u:1... is not a setting; valid: 'y'",
            "x = {'url': 'redis://… is not a setting; valid: 'y'",
        ),
        ("x = {'url': \"redis://u:'w@h\"} is", "x = {'url': \"redis://…\"} is"),
        ("at redis://u:p@h:1/0 now", "at redis://… now"),
        ("at redis://h?password=p now", "at redis://… now"),
        ("at redis://u:hidden/word", "at redis://…"),
    ]:
        assert without_credentials(text) == (expected or text)
        assert str(P2LError(text)) == (expected or text)


def test_first_problem_keeps_secrets():
    with pytest.raises(ValidationError) as caught:
        CacheSettings(url=7, entries=1)
    assert first_problem(caught.value, CacheSettings) == "url is not valid: input should be a valid string"


def test_parts_are_read_and_their_repr_hides_the_user():
    parts = split("HTTP://me:hidden@h:8/a?b=c")
    assert tuple(parts) == ("http", "me:hidden", (("h", 8),), "/a", "b=c")
    assert repr(parts) == "Parts(http://h:8/a)"
    for bad in ("me:hidden@h", "http://me:hidden/x@h", "http://h/#x", "http://h:x"):
        with pytest.raises(Malformed) as caught:
            split(bad)
        assert "hidden" not in str(caught.value)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for a password."""
    with server(tmp_path_factory.mktemp("guarded"), "--requirepass", "Правильный") as one:
        yield one


@pytest.mark.parametrize("password", ["ЖQ/ЩZЮX1", "ЖQ#ЩZЮX1", "ЖQ?ЩZЮX1", "ЖQ%2FЩZЮX1", "ЖQ@ЩZЮX1", "ЖQ[ЩZЮX1"])
def test_commands_and_logs_never_show_it(guarded, password, caplog, tmp_path, monkeypatch):
    caplog.set_level(logging.DEBUG)
    url = f"redis://me:{password}@127.0.0.1:{guarded.port}/0"
    (tmp_path / "p.txt").write_text("hi\n")
    malformed = any(one in password for one in "/#?")
    for arguments in (["stats"], ["purge", "--all"], ["warm", str(tmp_path / "p.txt")], ["serve"]):
        if arguments == ["serve"]:
            if not malformed:
                continue
            command = ["serve", "--cache-url", url]
        else:
            command = ["cache", *arguments, "--url", url]
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, P2LError)
        text = f"{result.output} {result.exception} {result.exception!r} {caplog.text}"
        assert not secrets_in(text, password)
        assert ("url is malformed" in text) == malformed, text
    monkeypatch.setenv("P2L_CACHE_URL", url)
    result = CliRunner().invoke(app, ["cache", "stats"])
    assert ("P2L_CACHE_URL is malformed" in str(result.exception)) == malformed
    if malformed:
        return

    async def asked():
        cache = RedisCache(Clients(url), deadline_s=5)
        for _ in range(4):
            await cache.get_many(["p2l:1:f:x"])
        await cache.aclose()
        return cache

    cache = asyncio.run(asked())
    assert cache.snapshot()["errors"] == {"auth": 3}
    assert "check the user name and password" in caplog.text
    assert not secrets_in(f"{caplog.text} {json.dumps(cache.snapshot())}", password)
