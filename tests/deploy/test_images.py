"""Both images, built on Debian's own packages and driven by an ordinary user in a read-only tree: `make images`."""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from helpers.servers import free_port
from helpers.serving import status, until

ROOT = Path(__file__).resolve().parent.parent.parent
BASE, SUITE = "localhost/p2l-test-base", "bookworm"
KEYS = {
    "P2L_KEY": "a key of the scorer",
    "P2L_CACHE_SECRET": "a secret",
    "LITELLM_MASTER_KEY": "sk-of-the-test-of-images",
}

#: Runs a command in a tree as a container with a read-only root does: /tmp alone can be written to, and is empty.
CONTAINED = """
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -t tmpfs tmpfs "$0/tmp"
mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc"
if [ -n "$CONFIG" ]; then install -m 644 "$CONFIG" "$0/tmp/config.yaml"; fi
exec chroot --userspec="$OWNER" "$0" env -i -C /tmp "$@"
"""

pytestmark = [
    pytest.mark.skipif("P2L_IMAGES" not in os.environ, reason="builds images for minutes: make images"),
    pytest.mark.skipif(
        not (shutil.which("buildah") and shutil.which("debootstrap")), reason="needs buildah, debootstrap"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, so needs root"),
    pytest.mark.timeout(1800),
]


def run(*command, seconds=1200):
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What P2L_BASE names, or Debian with Python, from the mirror that this machine has."""
    if named := os.environ.get("P2L_BASE"):
        return named
    tree = tmp_path_factory.mktemp("base") / "tree"
    mirror = os.environ.get("P2L_DEBIAN", "http://deb.debian.org/debian")
    packages = "--include=ca-certificates,python3,python3-venv"
    run("debootstrap", "--variant=minbase", packages, SUITE, str(tree), mirror)
    run("tar", "-C", str(tree), "-cf", f"{tree}.tar", ".")
    container = run("buildah", "from", "scratch")
    run("buildah", "add", container, f"{tree}.tar", "/")
    run("buildah", "commit", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="module")
def image(base):
    """Builds a target, and gives the path of its tree and its configuration."""
    containers = []
    of_pip = [path for path in ("/etc/pip.conf", "/etc/ssl/certs") if Path(path).exists()]
    volumes = [option for path in of_pip for option in ("--volume", f"{path}:{path}:ro")]

    def built(target):
        name = f"localhost/p2l-test-{target}"
        options = ["--isolation", "chroot", "--layers", "--format", "docker", "--build-arg", f"BASE={base}", *volumes]
        run("buildah", "bud", *options, "--target", target, "--tag", name, "--file", "deploy/Dockerfile", ".")
        containers.append(run("buildah", "from", name))
        inspected = json.loads(run("buildah", "inspect", "--type", "image", name))["Docker"]
        return Path(run("buildah", "mount", containers[-1])), inspected["config"]

    yield built
    for container in containers:
        run("buildah", "rm", container)


@contextlib.contextmanager
def contained(tree, config, *options, mounted="", **environment):
    """A container's process, with its image's user, environment and entrypoint, but for the options."""
    environment = dict(one.split("=", 1) for one in config["Env"]) | environment
    command = [*(f"{name}={value}" for name, value in environment.items()), *config["Entrypoint"], *options]
    log = Path(f"{tree}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", CONTAINED, str(tree), *command],
            stdout=output,
            stderr=output,
            env=os.environ | {"OWNER": config["User"], "CONFIG": mounted},
        )
    try:
        yield process, log
    finally:
        process.terminate()
        assert process.wait(60) in {0, -15, 143}, log.read_text()[-3000:]
        log.unlink()


def in_tree(tree, config, command):
    """Exit status and output of a command in the tree, as `contained`."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", CONTAINED, str(tree), *config["Env"], *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OWNER": config["User"], "CONFIG": ""},
    )
    return done.returncode, done.stdout + done.stderr


def healthy(tree, config, port, of_image):
    """Whether the image's own health check, at this port, is content."""
    check = [word.replace(str(of_image), str(port)) for word in config["Healthcheck"]["Test"][1:]]
    return in_tree(tree, config, check)[0] == 0


def test_scorer_and_proxy_run_as_ordinary_users_in_read_only_trees(image, tmp_path):
    (scorer, of_scorer), (proxy, of_proxy) = image("scorer"), image("proxy")
    for tree, config in ((scorer, of_scorer), (proxy, of_proxy)):
        assert config["User"] == "10001:10001"
        assert in_tree(tree, config, ["id", "-u"]) == (0, "10001\n")
        assert in_tree(tree, config, ["touch", "/tmp/x"])[0] == 0  # noqa: S108
        for path in ("/x", "/opt/p2l/x", "/var/tmp/x"):  # noqa: S108
            assert "Read-only file system" in in_tree(tree, config, ["touch", path])[1]
        for tool in ("gcc", "cc", "make", "pip"):
            assert not [found for folder in ("usr/bin", "opt/p2l/bin") for found in (tree / folder).glob(tool)], tool
    assert "onnxruntime" not in os.listdir(next((proxy / "opt/p2l/lib").glob("python3*")) / "site-packages")

    ports = free_port(), free_port()
    address = f"http://127.0.0.1:{ports[0]}"
    served = ["--port", str(ports[0]), "--api-key-env", "P2L_KEY", "starter"]
    with contained(scorer, of_scorer, "--workers", "2", *served, P2L_KEY=KEYS["P2L_KEY"]) as (process, log):
        until(lambda: status(f"{address}/readyz") == 200 or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        assert healthy(scorer, of_scorer, ports[0], 8080)
        assert not healthy(scorer, of_scorer, ports[1], 8080)
        text = (ROOT / "deploy" / "litellm.yaml").read_text().replace("http://scorer:8080", address)
        text = text.replace("    rule: paced", "    timeout_ms: 5000\n    rule: paced")
        (tmp_path / "config.yaml").write_text(text)
        options = ["--port", str(ports[1]), "--config", "/tmp/config.yaml"]  # noqa: S108
        options += ["--num_workers", "2", "--timeout_worker_healthcheck", "120"]
        nobody = f"redis://127.0.0.1:{free_port()}/0"
        mounted = str(tmp_path / "config.yaml")
        with contained(proxy, of_proxy, *options, mounted=mounted, P2L_CACHE_URL=nobody, **KEYS) as (second, said):
            address = f"http://127.0.0.1:{ports[1]}"
            until(lambda: status(f"{address}/health/readiness") == 200 or second.poll() is not None, 400)
            assert second.poll() is None, said.read_text()
            assert healthy(proxy, of_proxy, ports[1], 4000)
            headers = {"Authorization": f"Bearer {KEYS['LITELLM_MASTER_KEY']}"}
            with httpx.Client(base_url=address, headers=headers, timeout=60) as client:

                def routed():
                    body = {"model": "p2l-auto", "messages": [{"role": "user", "content": "Prove that 2 is even"}]}
                    answer = client.post("/v1/chat/completions", json=body)
                    return answer.status_code == 200 and "x-p2l-model" in answer.headers

                until(routed, 60)
                assert "p2l_decisions_total" in client.get("/metrics/").text
            assert "died" not in said.read_text()
