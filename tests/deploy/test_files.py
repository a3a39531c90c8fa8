"""What deploy/ holds is valid by others' schemas, fits together, and names options and settings that there are."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from litellm_router.settings import P2LSettings
from p2l_plugins import P2L, cli

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"

#: Has a list in JSON read as words.
NO_JSON = str.maketrans('[],"', "    ")


def read(name):
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def kubernetes():
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))


def containers():
    return [
        (one["metadata"]["name"], one["spec"]["template"]["spec"], container)
        for one in kubernetes()
        if one["kind"] == "Deployment"
        for container in one["spec"]["template"]["spec"]["containers"]
    ]


def dockerfile():
    """Lines of the Dockerfile, continued ones joined."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def stages():
    """The instructions of each stage by its name, after those of the stages that it is made from."""
    found, lines = {}, []
    for line in dockerfile():
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            lines = found[start[2]] = list(found.get(start[1], []))
        elif found:
            lines.append(line)
    return found


@pytest.mark.parametrize("thing", kubernetes(), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_kubernetes_takes_it(thing):
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(thing, validate.latest_version(), strict=True)


@pytest.fixture(scope="module")
def compose_schema():
    """As the package check-jsonschema carries it, which is not imported: it needs more than that."""
    found = find_spec("check_jsonschema")
    if found is None:
        pytest.skip("the schema is in the package check-jsonschema")
    path = Path(found.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_compose_takes_it(compose_schema):
    jsonschema.validate(read("compose.yaml"), compose_schema)


def test_the_schema_would_refuse_a_wrong_key(compose_schema):
    config = read("compose.yaml")
    config["services"]["proxy"]["port"] = ["4000"]
    with pytest.raises(jsonschema.ValidationError, match="port"):
        jsonschema.validate(config, compose_schema)


def test_every_container_of_ours_is_an_ordinary_user_in_a_read_only_tree():
    for name, pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert container["securityContext"]["readOnlyRootFilesystem"], name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["limits"]["memory"], name
        assert container["readinessProbe"], name
    for name in ("scorer", "proxy", "valkey"):
        service = read("compose.yaml")["services"][name]
        assert service["read_only"], name
        assert service["tmpfs"] == ["/tmp"], name  # noqa: S108
    for name in ("scorer", "proxy"):
        assert "USER 10001:10001" in stages()[name]
        assert any(line.startswith("HEALTHCHECK ") for line in stages()[name])
        assert not any(line.startswith("RUN ") for line in stages()[name])  # nothing is built in the last stage


def test_services_budgets_and_policies_select_what_there_is():
    labels = {name: pod for name, pod, _ in containers()}
    assert set(labels) == {"scorer", "proxy", "valkey"}
    by_kind = {}
    for one in kubernetes():
        by_kind.setdefault(one["kind"], []).append(one)
        chosen = one["spec"].get("selector", one["spec"].get("podSelector"))
        app = chosen.get("matchLabels", chosen).get("app")
        assert app in labels or one["metadata"]["name"] == "default-deny"
    assert {one["metadata"]["name"] for one in by_kind["PodDisruptionBudget"]} == {"scorer", "proxy"}
    assert {one["metadata"]["name"] for one in by_kind["NetworkPolicy"]} == {*labels, "default-deny"}


def test_the_scorer_is_told_options_that_it_has():
    known = {option for param in typer.main.get_command(cli.app).commands["serve"].params for option in param.opts}
    told = [read("compose.yaml")["services"]["scorer"]["command"]]
    told += [container["args"] for name, _, container in containers() if name == "scorer"]
    told.append(shlex.split(next(line for line in stages()["scorer"] if "ENTRYPOINT" in line).translate(NO_JSON)))
    named = [word for words in told for word in words if word.startswith("--")]
    assert len(named) >= 8
    assert set(named) <= known


def test_the_proxy_is_told_options_that_it_has():
    (package,) = find_spec("litellm").submodule_search_locations  # which is not imported: that takes seconds
    source = (Path(package) / "proxy" / "proxy_cli.py").read_text(encoding="utf-8")
    told = read("compose.yaml")["services"]["proxy"]["command"]
    told = told + shlex.split(next(line for line in stages()["proxy"] if "ENTRYPOINT" in line).translate(NO_JSON))
    named = [word for word in told if word.startswith("--")]
    assert len(named) >= 6
    assert not [option for option in named if f'"{option}"' not in source]


def test_the_proxys_configuration_is_one():
    config = read("litellm.yaml")["litellm_settings"]
    assert config["callbacks"] == ["prometheus", "litellm_router.p2l_router"]
    settings = P2LSettings.read(config["p2l_settings"])
    assert settings.endpoint == "http://scorer:8080"
    starter = P2L.load()
    for deployment in read("litellm.yaml")["model_list"]:
        starter.index(deployment["model_info"]["p2l_model"])


def test_what_is_mounted_scraped_and_kept_secret_is_there():
    compose, prometheus = read("compose.yaml"), read("prometheus.yaml")
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in compose["volumes"]
    mounted = [volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]]
    assert all(f"/etc/prometheus/{name}" in mounted for name in prometheus["rule_files"])
    for job in prometheus["scrape_configs"]:
        assert job["authorization"]["credentials_file"].removeprefix("/run/secrets/") in compose["secrets"]
        for target in job["static_configs"][0]["targets"]:
            assert target.split(":")[0] in compose["services"]
