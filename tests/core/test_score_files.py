"""Bulk scoring: prompts in chunks are those of the whole file, and an interrupted run ends like any other."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from p2l_plugins import P2L
from p2l_plugins.errors import ConfigError, DataError, PromptError
from p2l_plugins.files.prompts import PromptFile, label, read_prompts
from p2l_plugins.scoring.to_file import FORMATS, check_output, score_to_file

TEXTS = {
    "plain.txt": "one\n\n  \ntwo\r\nthree\x0bfour\nfive\u2028six",
    "bom.txt": "\ufeffone\ntwo\n",
    "mixed.jsonl": '\ufeff{"prompt": "a", "n": 1}\n\n"b"\n'
    '{"prompt": ["c", "d"], "other": null}\r\n{"n": 2, "prompt": "e\\u2028f"}',
    "quoted.csv": 'prompt,n\r\n"a, ""b""\nnew line",1\r\nπ,\r\n',
}


@pytest.fixture(scope="module")
def p2l():
    return P2L.load(threads=1)


def write(path, text):
    path.write_bytes(text.encode())
    return path


def joined(file, size):
    columns = {name: [] for name in file.columns}
    for chunk in file.chunks(size):
        assert 0 < len(chunk["prompt"]) <= size
        for name, values in chunk.items():
            columns[name] += values
    return columns


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_chunks_are_the_whole_file_in_pieces(tmp_path, name, size):
    path = write(tmp_path / name, TEXTS[name])
    prompts, table = read_prompts(path)
    extra = [column for column in ("n", "other") if column in table]
    file = PromptFile(path, extra)
    assert joined(file, size) == {column: table[column] for column in ("prompt", *extra)}
    assert file.scan().prompts == len(prompts)
    assert file.scan().conversations == any(isinstance(prompt, list) for prompt in prompts)


def test_parquet_too(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [["a", "b"], ["c"], ["d"]], "n": [1, None, 3]}), path, row_group_size=2)
    assert joined(PromptFile(path, ["n"]), 2) == {"prompt": [["a", "b"], ["c"], ["d"]], "n": [1, None, 3]}
    with pytest.raises(DataError, match=r"p\.parquet: column 'x' is missing; the file has 'prompt', 'n'"):
        PromptFile(path, ["x"]).scan()
    broken = write(tmp_path / "b.parquet", "no parquet")
    with pytest.raises(DataError, match=r"b\.parquet: not a readable Parquet file"):
        PromptFile(broken).scan()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "the file holds no rows"),
        ("a.txt", "\n \n", "the file holds no prompts"),
        ("a.jsonl", '{"text": "x"}\n', "column 'prompt' is missing; the file has 'text'"),
        ("a.jsonl", '"x"\n{"prompt": \n', "line 2 is not valid JSON"),
        ("a.jsonl", '"x"\n[1]\n', "line 2 is not a JSON object or string"),
        ("a.csv", "prompt,n\nx\x00,1\n", None),
        ("a.xlsx", "x", "the ending '.xlsx' is not one of"),
    ],
)
def test_bad_files_are_a_sentence(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    if message is None:  # whatever the module csv makes of it, it is no traceback
        PromptFile(path).scan()
        return
    with pytest.raises(DataError) as caught:
        PromptFile(path).scan()
    assert f"{name}: {message}" in str(caught.value)


def test_bad_prompts_are_named_by_their_place(tmp_path):
    path = write(tmp_path / "a.jsonl", '"x"\n{"prompt": " "}\n{"prompt": 1}\n')
    with pytest.raises(PromptError, match="prompt 2: the prompt is empty"):
        PromptFile(path).scan()
    broken = tmp_path / "b.txt"
    broken.write_bytes(b"abc\nde\xfff\n")
    with pytest.raises(DataError, match=r"b\.txt: not UTF-8 text \(byte 6\)"):
        PromptFile(broken).scan()


def test_values_of_a_column_are_counted_up_to_a_limit(tmp_path):
    rows = "\n".join(json.dumps({"prompt": "x", "c": c}) for c in [1, "1", None, float("nan"), "", "b", "c", "d", "e"])
    file = PromptFile(write(tmp_path / "a.jsonl", rows), ["c"])
    assert file.scan(["c"]).values["c"] == {"1": 2, "b": 1, "c": 1, "d": 1, "e": 1}
    assert len(file.scan(["c"], distinct=2).values["c"]) == 3
    with pytest.raises(DataError, match="a category or group is text or a number, not list"):
        label(["x"])


def test_reading_takes_the_same_memory_for_any_number_of_prompts(tmp_path):
    path = tmp_path / "many.jsonl"
    line = json.dumps({"prompt": "word " * 40}) + "\n"
    path.write_text(line * 60_000)  # 13 MB
    tracemalloc.start()
    count = sum(len(chunk["prompt"]) for chunk in PromptFile(path).chunks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60_000
    assert peak < 6e6


PROMPTS = ["Prove that 2 + 2 = 4.", ["hi", "and in French?"], "write a haiku", 'a "quoted", text', "π", "six", "seven"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return PromptFile(path)


class Stopped(Exception):
    """In place of the user's Ctrl-C."""


@pytest.mark.parametrize("ending", FORMATS)
def test_a_resumed_run_ends_with_the_same_file(p2l, source, tmp_path, ending):
    found = source.scan()
    whole, resumed = tmp_path / f"whole{ending}", tmp_path / f"resumed{ending}"
    score_to_file(p2l, source, found, whole, chunk=2)
    scored = []

    def stop(n):
        scored.append(n)
        if sum(scored) >= 5:
            raise Stopped

    with pytest.raises(Stopped):
        score_to_file(p2l, source, found, resumed, progress=stop, chunk=2)
    assert not resumed.exists()
    again = []
    score_to_file(p2l, source, found, resumed, resume=True, progress=again.append, chunk=2)
    assert sum(again) == len(PROMPTS)
    assert again[:2] == [2, 2]  # two whole chunks were there
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, resumed.name])


def test_the_output_is_that_of_scoring_at_once(p2l, source, tmp_path):
    scores = p2l.score(PROMPTS)
    paths = {ending: tmp_path / f"s{ending}" for ending in FORMATS}
    for path in paths.values():
        score_to_file(p2l, source, source.scan(), path, chunk=3)
    rows = [json.loads(line) for line in paths[".jsonl"].read_text().splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [list(row["coefs"].values()) for row in rows] == scores.coefs.tolist()
    assert [row["raw_eta"] for row in rows] == scores.raw_eta.tolist()
    with paths[".csv"].open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["prompt", "raw_eta", *p2l.models]
    assert lines[1][0] == '["hi", "and in French?"]'
    assert [[float(x) for x in line[2:]] for line in lines] == scores.coefs.tolist()
    pq = pytest.importorskip("pyarrow.parquet")
    file = pq.ParquetFile(paths[".parquet"])
    assert file.num_row_groups == 3
    table = file.read()
    assert table["prompt"].to_pylist() == [[p] if isinstance(p, str) else p for p in PROMPTS]
    assert table[p2l.models[3]].to_pylist() == scores.coefs[:, 3].tolist()


def test_parts_of_another_run_are_not_mixed_in(p2l, source, tmp_path):
    output = tmp_path / "s.jsonl"

    def stop(n):
        raise Stopped

    with pytest.raises(Stopped):
        score_to_file(p2l, source, source.scan(), output, progress=stop, chunk=2)
    other = PromptFile(write(tmp_path / "other.jsonl", '"other"\n'))
    message = r"s\.jsonl\.partial: made with another input_sha256; leave --resume out to start over"
    with pytest.raises(ConfigError, match=message):
        score_to_file(p2l, other, other.scan(), output, resume=True, chunk=2)
    (tmp_path / "s.jsonl.partial" / "state.json").write_text("{")
    with pytest.raises(ConfigError, match="another state"):
        score_to_file(p2l, source, source.scan(), output, resume=True, chunk=2)
    score_to_file(p2l, other, other.scan(), output)
    assert json.loads(output.read_text())["prompt"] == "other"


KILLED = """
import sys
from pathlib import Path
from p2l_plugins import P2L
from p2l_plugins.files.prompts import PromptFile
from p2l_plugins.scoring.to_file import score_to_file
file = PromptFile(Path(sys.argv[1]))
score_to_file(P2L.load(), file, file.scan(), Path(sys.argv[2]), resume=True, chunk=5)
"""


def test_a_killed_process_loses_one_chunk_at_most(p2l, tmp_path):
    source = tmp_path / "p.jsonl"
    source.write_text("".join(json.dumps(f"question {i} " + "word " * 40) + "\n" for i in range(100)))
    output = tmp_path / "s.jsonl"
    command = [sys.executable, "-c", KILLED, str(source), str(output)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not list(Path(f"{output}.partial").glob("*.part")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not output.exists()
    parts = len(list(Path(f"{output}.partial").glob("*.part")))
    assert 1 <= parts < 20
    file, done = PromptFile(source), []
    score_to_file(p2l, file, file.scan(), output, resume=True, progress=done.append, chunk=5)
    assert done[:parts] == [5] * parts
    whole = tmp_path / "whole.jsonl"
    score_to_file(p2l, file, file.scan(), whole)
    assert output.read_bytes() == whole.read_bytes()


def test_outputs_that_can_t_be_written_are_refused_first(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.xlsx: the ending '\.xlsx' is not one of \.jsonl, \.csv, \.parquet"):
        check_output(Path("x.xlsx"))
    with pytest.raises(ConfigError, match="there is no folder"):
        check_output(tmp_path / "none" / "x.csv")
