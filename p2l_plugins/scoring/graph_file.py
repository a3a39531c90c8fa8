"""What the file of a graph says without its weights being read: in which files its tensors lie, and its operators.

A graph may name files beside it that hold tensors (ONNX's external data), and ONNX Runtime reads whatever it names. The
file is a protobuf message; only the lengths of its parts are read, and what leads to a tensor or an operator.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from p2l_plugins.errors import BundleError

#: Parts of onnx.proto's messages that lead to tensors and operators: message → number of the field → message.
PARTS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}

#: Fields with text: an operator's type; key and value of an entry of external data.
_OPERATOR, _KEY, _VALUE = 4, 1, 2

#: Bytes of values of fixed size, by wire type.
_FIXED = {1: 8, 5: 4}

_Span = tuple[int, int]


class GraphFile(NamedTuple):
    """What a graph's file says.

    Attributes:
        locations: files that hold its tensors, as they are named there, relative to the graph's folder.
        operators: types of its nodes, those in functions and inner graphs too.
    """

    locations: frozenset[str]
    operators: frozenset[str]


def read_graph_file(path: Path) -> GraphFile:
    """Reads what a graph's file says.

    Raises:
        BundleError: it is not the file of a graph.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)
    except (ValueError, IndexError):  # an empty file, or one whose parts do not end where they should
        raise BundleError(f"{path}: the file is damaged or not an ONNX model; export it or copy it again") from None


def _read(data: mmap.mmap) -> GraphFile:
    locations, operators = set(), set()
    waiting = [("ModelProto", (0, len(data)))]
    while waiting:
        message, span = waiting.pop()
        texts: dict[int, str] = {}
        for number, part in _fields(data, span):
            inner = PARTS.get(message, {}).get(number)
            if inner is not None:
                waiting.append((inner, part))
            elif message == "NodeProto" and number == _OPERATOR:
                operators.add(_text(data, part))
            elif message == "StringStringEntryProto":
                texts[number] = _text(data, part)
        if texts.get(_KEY) == "location":
            locations.add(texts.get(_VALUE, ""))
    return GraphFile(frozenset(locations), frozenset(operators))


def _fields(data: mmap.mmap, span: _Span) -> Iterator[tuple[int, _Span]]:
    """Number and place of the parts of a message that have a length of their own.

    Raises:
        ValueError: a part that does not end within the message, or is of no known kind.
    """
    at, end = span
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        elif kind == 2:
            length, at = _varint(data, at)
            yield number, (at, at + length)
            at += length
        else:
            raise ValueError
        if at > end:
            raise ValueError


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError


def _text(data: mmap.mmap, span: _Span) -> str:
    return data[span[0] : span[1]].decode("utf-8", "replace")
