"""How commands end: full disks, closed pipes, Ctrl-C, SIGTERM, and files that are merely wrong."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from helpers.command import called, run

from p2l_plugins.errors import ConfigError
from p2l_plugins.training.config import read_config

COMMAND = [sys.executable, "-m", "p2l_plugins.cli"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("ends") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"what is {i} + {i}?"}) + "\n" for i in range(20_000)))
    return path


def test_the_version():
    assert run("--version").stdout.startswith("p2l-plugins 0.")


def test_a_limit_on_files_names_the_path_and_leaves_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    vote = {"prompt": "p" * 200, "model_a": "x", "model_b": "y", "winner": "model_a"}
    path.write_text("".join(json.dumps({**vote, "category": str(i)}) + "\n" for i in range(300)))

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [*COMMAND, "votes", "from-arena", str(path), "-o", str(tmp_path / "out.jsonl")],
        capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{tmp_path / 'out.jsonl'}: can't be written (File too large); make room" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_standard_output_is_named():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "score", "starter", "-"], input="\n".join(['"hi"'] * 99), stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device: 'standard output'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_enough_ends_the_command_quietly(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"what is {i}?"}) + "\n" for i in range(300)))
    process = subprocess.Popen(
        [*COMMAND, "score", "starter", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert json.loads(process.stdout.readline())["prompt"] == "what is 0?"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait(60)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on(prompts, tmp_path, number, status):
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        [*COMMAND, "score", "starter", str(prompts), "-o", str(output)], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (tmp_path / "out.jsonl.partial" / "state.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (status, 1)
    assert f"stopped; {output}.partial keeps what is done; go on with the same command and --resume" in said
    assert "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl.partial"]


def test_sigterm_leaves_no_hidden_folder(tmp_path):
    code = (
        "import time\nfrom pathlib import Path\nfrom p2l_plugins.console import end_on_sigterm\n"
        "from p2l_plugins.files.tables import replaced_file\nend_on_sigterm()\n"
        "with replaced_file(Path('out.jsonl')) as path:\n    path.write_text('half')\n    print('now', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    process.terminate()
    assert process.wait(30) == 143
    assert list(tmp_path.iterdir()) == []


DEEP = 100_000


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("p.jsonl", '{"prompt": ' + "[" * DEEP, ["score", "starter", "p.jsonl"], "inside one another too deep"),
        ("p.json", "[" * DEEP, ["score", "starter", "p.json"], "inside one another too deep"),
        ("p.json", "[" * DEEP, ["votes", "from-scores", "p.json", "-o", "v.jsonl"], "inside one another too deep"),
        ("p.jsonl.gz", "no gzip", ["score", "starter", "p.jsonl.gz"], "p.jsonl.gz: not readable"),
        ("p.parquet", "no parquet", ["score", "starter", "p.parquet"], "not a readable Parquet file"),
        ("c.json", "[" * DEEP, ["evaluate", "starter", "v.csv", "--costs", "c.json"], "inside one another too deep"),
    ],
)
def test_a_file_that_is_merely_wrong_is_said_to_be(tmp_path, monkeypatch, name, content, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.csv").write_text("prompt,gpt-4o-2024-08-06,claude-3-haiku-20240307\np,1,0\n")
    (tmp_path / name).write_text(content)
    error = called(*arguments, status=1).stderr
    assert message in error
    assert "unexpected" not in error


@pytest.mark.parametrize("content", ["[" * 5000, "date: 2024-99-99", "a: [", "? {a: b}", "- a"])
def test_yaml_that_is_merely_wrong_is_said_to_be(tmp_path, content):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml: "):
        read_config(tmp_path / "c.yaml")


def test_a_lone_surrogate_is_scored_and_written(tmp_path):
    rows = '{"prompt": "a \\ud800 b"}\n{"prompt": ["c \\udfff", "d"]}\n'
    done = run("score", "starter", "-", stdin=rows)
    assert [json.loads(line)["prompt"] for line in done.stdout.splitlines()] == ["a \ufffd b", ["c \ufffd", "d"]]
    run("score", "starter", "-", "-o", tmp_path / "o.jsonl", stdin=rows)
    assert [p.name for p in tmp_path.iterdir()] == ["o.jsonl"]


def test_standard_input_says_which_form_it_has():
    error = run("score", "starter", "-", stdin="plain text\n", status=1).stderr
    assert "standard input (JSONL): line 1 is not valid JSON" in error


def test_the_processes_of_a_pool_end_when_they_are_told_to():
    """They are forked with the command's own handling of SIGTERM, which is not for them."""
    code = (
        "import multiprocessing\nfrom p2l_plugins.console import end_on_sigterm\nend_on_sigterm()\n"
        "with multiprocessing.get_context('fork').Pool(3) as pool:\n    print(sum(pool.map(abs, range(-9, 9))))\n"
        "    pool.terminate()\n    pool.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "81\n", "")
