"""The Redis tier: how it asks, how it writes, and the forms of a server."""

import asyncio
import re
import ssl
import time
from pathlib import Path

import pytest
import redis as sync_redis
from helpers.servers import Server, free_port, server, until
from typer.testing import CliRunner

from p2l_plugins.cache.address import Clients, connect, parse, shown
from p2l_plugins.cache.entry import cache_key
from p2l_plugins.cache.lease import SUFFIX, Leases
from p2l_plugins.cache.redis import RedisCache
from p2l_plugins.cache.scan import remove, survey
from p2l_plugins.cli import app
from p2l_plugins.errors import ConfigError

KEYS = [cache_key("f" * 32, (str(i),)) for i in range(64)]


def calls(valkey, command):
    return valkey.client().info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


@pytest.fixture
def fresh(valkey):
    """The server, empty and with its counters at zero."""
    valkey.client().flushall()
    valkey.client().config_resetstat()
    return valkey


async def test_64_prompts_are_one_round_trip_each_way(redis_cache, fresh, entry):
    cache = redis_cache(fresh.url)
    await cache.set_many({key: entry() for key in KEYS})
    assert all(await cache.get_many(KEYS))
    assert calls(fresh, "mget") == 1
    assert calls(fresh, "get") == 0
    assert calls(fresh, "set") == 64
    assert cache.snapshot()["round_trips"]["count"] == 1


async def test_on_a_cluster_the_keys_are_spread_over_the_nodes(redis_cache, nodes, cluster_url, entry):
    for one in nodes:
        one.client().flushall()
    cache = redis_cache(cluster_url)
    await cache.set_many({key: entry() for key in KEYS})
    assert all(await cache.get_many(KEYS))
    sizes = [one.client().dbsize() for one in nodes]
    assert sum(sizes) == 64
    assert min(sizes) > 5


async def test_a_thousand_callers_of_one_key_ask_for_it_a_few_times_only(redis_cache, fresh, entry):
    cache = redis_cache(fresh.url)
    await asyncio.gather(*(cache.get_many([KEYS[0]]) for _ in range(1000)))
    assert calls(fresh, "mget") == 1


async def test_callers_gather_while_round_trips_are_under_way(redis_cache, fresh, entry):
    cache = redis_cache(fresh.url)
    await cache.set_many({key: entry() for key in KEYS})
    found = await asyncio.gather(*(cache.get_many([KEYS[i % 64]]) for i in range(640)))
    assert all(one for (one,) in found)
    assert calls(fresh, "mget") <= 12


async def test_entries_expire_apart_by_one_command(redis_cache, fresh, entry):
    cache = redis_cache(fresh.url, ttl_s=1000)
    await cache.set_many({key: entry() for key in KEYS})
    ttls = {fresh.client().ttl(key) for key in KEYS}
    assert len(ttls) > 20
    assert 899 <= min(ttls) < max(ttls) <= 1100
    assert calls(fresh, "expire") == calls(fresh, "setex") == 0


async def test_a_shared_entry_is_gone_after_its_time(redis_cache, fresh, entry):
    cache = redis_cache(fresh.url, ttl_s=1)
    await cache.set_many({KEYS[0]: entry()})
    assert fresh.client().pttl(KEYS[0]) <= 1000
    until(lambda: not fresh.client().exists(KEYS[0]), 5)
    assert await cache.get_many(KEYS[:1]) == [None]


async def test_writes_in_the_background_are_bounded_in_number(redis_cache, fresh, entry, monkeypatch):
    monkeypatch.setattr("p2l_plugins.cache.redis.WRITES_WAITING", 10)
    cache = redis_cache(fresh.url)
    cache.set_soon({key: entry() for key in KEYS})
    await cache.flush()
    assert fresh.client().dbsize() == 10
    assert cache.stats["lost"] == 54
    cache.set_soon({KEYS[-1]: entry()})
    await cache.flush()
    assert fresh.client().exists(KEYS[-1])


async def test_a_client_that_decodes_answers_is_no_trouble(fresh, entry):
    import redis.asyncio

    client = redis.asyncio.Redis(port=fresh.port, decode_responses=True)
    cache = RedisCache(lambda: client, deadline_s=5)
    await cache.set_many({KEYS[0]: entry(-7.7, 130)})
    assert (await cache.get_many(KEYS[:2]))[0].coefs[0] == pytest.approx(-7.7)
    await client.aclose()


async def test_under_a_secret_only_its_holders_values_are_read(fresh, entry, redis_cache):
    """By services that were upgraded and by those that were not, on one server: a miss, and never an error."""
    keyed, plain, other = (redis_cache(fresh.url, secret=secret) for secret in (b"s" * 32, b"", b"t" * 32))
    await plain.set_many({KEYS[0]: entry()})
    await keyed.set_many({KEYS[1]: entry()})
    assert [found is not None for found in await keyed.get_many(KEYS[:2])] == [False, True]
    assert [found is not None for found in await plain.get_many(KEYS[:2])] == [True, False]
    assert await other.get_many(KEYS[:2]) == [None, None]
    await keyed.set_many({KEYS[0]: entry()})
    assert None not in await keyed.get_many(KEYS[:2])
    fresh.client().copy(KEYS[1], KEYS[2])  # to another prompt
    assert await keyed.get_many([KEYS[2]]) == [None]
    counts = [cache.snapshot() for cache in (keyed, plain, other)]
    assert [one["unreadable"] for one in counts] == [
        {"forged": 1, "version": 1},
        {"version": 1},
        {"forged": 1, "version": 1},
    ]
    assert [one["errors"] for one in counts] == [{}, {}, {}]


def test_each_event_loop_has_a_client_of_its_own(fresh, entry):
    clients = Clients(fresh.url)
    cache = RedisCache(clients, deadline_s=5)

    async def use(x):
        await cache.set_many({KEYS[x]: entry(float(x))})
        found = await cache.get_many(KEYS[: x + 1])
        await cache.aclose()
        return [one.coefs[0] for one in found]

    assert [asyncio.run(use(x)) for x in range(3)] == [[0], [0, 1], [0, 1, 2]]


async def test_without_a_client_everything_is_a_miss_and_nothing_an_error(entry):
    cache = RedisCache(lambda: None)
    await cache.set_many({KEYS[0]: entry()})
    assert await cache.get_many(KEYS[:2]) == [None, None]
    assert cache.snapshot()["errors"] == {}


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cache.md").read_text()
SERVICE, OPERATOR = re.findall(r"^ACL SETUSER (.*)$", PAGE, re.M)
CLUSTER_RIGHTS = re.search(r"On a cluster both need `(.*?)`", PAGE)[1]


async def test_the_documented_rights_are_enough_for_a_service(redis_cache, valkey, entry):
    valkey.client().execute_command("ACL", "SETUSER", *SERVICE.split())
    cache = redis_cache(f"redis://p2l-service:PASSWORD@127.0.0.1:{valkey.port}/0")
    await cache.set_many({KEYS[0]: entry()})
    assert (await cache.get_many(KEYS[:1]))[0] is not None
    assert await Leases(cache, 1.0).take(KEYS[1])
    assert cache.snapshot()["errors"] == {}
    outside = cache_key("f" * 32, ("a",), namespace="other")
    assert await cache.get_many([outside]) == [None]
    assert cache.snapshot()["errors"] == {"permission": 1}


async def test_the_documented_rights_are_enough_for_the_commands(valkey, fresh):
    fresh.client().execute_command("ACL", "SETUSER", *OPERATOR.split())
    fresh.client().mset(dict.fromkeys(KEYS, "x"))
    clients = Clients(f"redis://p2l-operator:PASSWORD@127.0.0.1:{fresh.port}/0")
    found = await survey(clients(), "p2l")
    assert found["entries"] == 64
    assert found["bundles"][0]["bytes_each"] > 0
    assert found["server"]["used_memory"] > 0
    assert (await remove(clients(), "p2l", None)).total() == 64
    await clients.aclose()


async def test_the_documented_rights_are_enough_on_a_cluster(redis_cache, nodes, cluster_url, entry):
    for one in nodes:
        one.client().flushall()
        for user in (SERVICE, OPERATOR):
            one.client().execute_command("ACL", "SETUSER", *user.split(), *CLUSTER_RIGHTS.split())
    cache = redis_cache(cluster_url.replace("://", "://p2l-service:PASSWORD@"))
    await cache.set_many({key: entry() for key in KEYS})
    assert all(await cache.get_many(KEYS))
    assert cache.snapshot()["errors"] == {}
    clients = Clients(cluster_url.replace("://", "://p2l-operator:PASSWORD@"))
    assert (await survey(clients(), "p2l"))["entries"] == 64
    assert (await remove(clients(), "p2l", frozenset(["f" * 32]))).total() == 64
    await clients.aclose()


async def test_tls_with_the_servers_certificate_checked(redis_cache, valkey, entry, tmp_path):
    certificate, key = certificate_of("localhost", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def forward(reader, writer):
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", valkey.port)

        async def pump(source, target):
            while data := await source.read(65536):
                target.write(data)
            target.close()

        await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer), return_exceptions=True)

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    port = proxy.sockets[0].getsockname()[1]
    cache = redis_cache(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}")
    await cache.set_many({KEYS[0]: entry(4.0)})
    assert (await cache.get_many(KEYS[:1]))[0].coefs[0] == 4.0
    untrusting = redis_cache(f"rediss://localhost:{port}/0")
    assert await untrusting.get_many(KEYS[:1]) == [None]
    assert untrusting.snapshot()["errors"] == {"connection": 1}
    await cache.aclose()
    proxy.close()


def certificate_of(name, folder):
    """A self-signed certificate and its key, as files."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def failover(asking):
    try:
        return asking.execute_command("SENTINEL", "FAILOVER", "scores")
    except sync_redis.ResponseError:  # it knows too little of the replica yet
        return False


async def test_sentinel_leads_to_the_primary_also_after_a_failover(redis_cache, entry, tmp_path):
    with server(tmp_path) as primary, server(tmp_path) as replica:
        replica.client().replicaof("127.0.0.1", primary.port)
        until(lambda: replica.client().info("replication")["master_link_status"] == "up")
        config = tmp_path / "sentinel.conf"
        port = free_port()
        config.write_text(f"port {port}\nsentinel monitor scores 127.0.0.1 {primary.port} 1\n")
        sentinel = Server(tmp_path, "--sentinel", port=port, config=config)
        try:
            asking = sync_redis.Redis(port=sentinel.start().port)
            cache = redis_cache(f"redis+sentinel://127.0.0.1:{port}/scores/0")
            await cache.set_many({KEYS[0]: entry(1.0)})
            assert primary.client().exists(KEYS[0])
            until(lambda: asking.sentinel_master("scores")["num-slaves"] == 1)
            until(lambda: replica.client().exists(KEYS[0]))
            until(lambda: failover(asking))
            until(lambda: asking.sentinel_masters()["scores"]["port"] == replica.port)
            primary.kill()
            for _ in range(3):  # connections to the old primary fail first
                await cache.set_many({KEYS[1]: entry(2.0)})
                await cache.get_many(KEYS[:1])
            assert replica.client().exists(KEYS[1]), cache.snapshot()
            assert [one.coefs[0] for one in await cache.get_many(KEYS[:2])] == [1.0, 2.0]
        finally:
            sentinel.kill()


@pytest.fixture(scope="module")
def guarded_sentinel(valkey, tmp_path_factory):
    """The port of a Sentinel that asks for a password, and knows a primary."""
    folder = tmp_path_factory.mktemp("sentinel")
    config, port = folder / "sentinel.conf", free_port()
    config.write_text(f"port {port}\nrequirepass right\nsentinel monitor scores 127.0.0.1 {valkey.port} 1\n")
    sentinel = Server(folder, "--sentinel", port=port, config=config)
    try:
        sentinel.start()
        yield port
    finally:
        sentinel.kill()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("?sentinel_password=right", None),
        ("?sentinel_password=mistaken", "auth"),
        ("?sentinel_username=me&sentinel_password=mistaken", "auth"),
        ("", "auth"),
    ],
)
async def test_a_sentinel_that_refuses_is_an_error_of_the_password(
    redis_cache, guarded_sentinel, entry, options, kind, caplog
):
    address = f"redis+sentinel://127.0.0.1:{guarded_sentinel}/scores/0{options}"
    cache = redis_cache(address)
    await cache.set_many({KEYS[0]: entry()})
    for _ in range(3):
        await cache.get_many(KEYS[:1])
    assert set(cache.snapshot()["errors"]) == ({kind} if kind else set())
    assert ("(auth); check the user name and password" in caplog.text) == bool(kind)
    assert "mistaken" not in caplog.text


def test_commands_say_that_a_sentinel_refuses(guarded_sentinel):
    address = f"redis+sentinel://127.0.0.1:{guarded_sentinel}/scores/0?sentinel_password=mistaken"
    result = CliRunner().invoke(app, ["cache", "stats", "--url", address])
    assert "auth error" in str(result.exception)
    assert "mistaken" not in str(result.exception)


async def test_a_sentinel_that_is_away_or_knows_another_service_is_no_error_of_the_password(
    redis_cache, guarded_sentinel
):
    for address in (
        f"redis+sentinel://127.0.0.1:{free_port()}/scores/0?sentinel_password=right",
        f"redis+sentinel://127.0.0.1:{guarded_sentinel}/others/0?sentinel_password=right",
    ):
        cache = redis_cache(address)
        await cache.get_many(KEYS[:1])
        assert cache.snapshot()["errors"] == {"connection": 1}


async def test_one_process_of_two_takes_the_lease_and_the_other_gets_its_scores(redis_cache, fresh, entry):
    first, second = (Leases(redis_cache(fresh.url), 2.0) for _ in range(2))
    assert await first.take(KEYS[0])
    assert not await second.take(KEYS[0])
    assert fresh.client().pttl(KEYS[0] + SUFFIX) <= 2000
    waiting = asyncio.create_task(second.wait(KEYS[0], models=3))
    await asyncio.sleep(0.05)
    await redis_cache(fresh.url).set_many({KEYS[0]: entry(6.0)})
    assert (await waiting).coefs[0] == 6.0


@pytest.mark.alone
async def test_a_process_that_dies_holds_the_others_up_for_the_lease_only(redis_cache, fresh, tmp_path):
    leases = Leases(redis_cache(fresh.url), 0.2)
    assert await leases.take(KEYS[0])
    started = time.monotonic()
    assert await leases.wait(KEYS[0]) is None
    assert time.monotonic() - started < 1
    until(lambda: not fresh.client().exists(KEYS[0] + SUFFIX), 5)
    assert await leases.take(KEYS[0])


async def test_without_the_store_everyone_scores(redis_cache):
    leases = Leases(redis_cache(f"redis://127.0.0.1:{free_port()}"), 1.0)
    assert await leases.take(KEYS[0])
    assert await Leases(RedisCache(lambda: None), 1.0).take(KEYS[0])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://u:p@h:1/2?x=1", ("single", (), "", "redis://u:p@h:1/2?x=1", {})),
        ("valkeys://h", ("single", (), "", "rediss://h", {})),
        ("unix:///run/redis.sock", ("single", (), "", "unix:///run/redis.sock", {})),
        ("redis+cluster://a,b:7", ("cluster", (("a", 6379), ("b", 7)), "", "redis://a:6379", {})),
        (
            "rediss+sentinel://u:p@a,[::1]:7/scores/3?sentinel_password=q",
            ("sentinel", (("a", 26379), ("::1", 7)), "scores", "rediss://u:p@a:26379/3", {"password": "q"}),
        ),
    ],
)
def test_forms_of_an_address(url, expected):
    assert tuple(parse(url)) == expected


@pytest.mark.parametrize(
    "url",
    ["secret-password", "http://me:secret-password@h", "redis+sentinel://me:secret-password@h", "redis+cluster://"],
)
def test_a_wrong_address_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError, match=r"address|service") as caught:
        parse(url)
    assert "secret-password" not in str(caught.value)


def test_an_unknown_option_is_refused_without_showing_credentials():
    with pytest.raises(ConfigError, match="TypeError in its options") as refused:
        connect("redis://me:secret-password@h/0?ttl=3")
    assert "secret-password" not in str(refused.value)
    assert shown("redis://me:secret-password@h:1/0?password=x") == "redis://h:1/0"
