"""Values set in the text of a YAML file, so that comments, order and quotes of all else stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml


class _Edit(NamedTuple):
    """The characters from `start` to `end` become `text`."""

    start: int
    end: int
    text: str


class _Unable(Exception):
    """The text has a form in which the place of a value was not found."""


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False).strip()[
        1:-1
    ]


def with_values(text: str, changes: Mapping[Any, Any], wanted: object) -> str | None:
    """The text of a YAML file with some values changed or added; None where its form does not let them be put in.

    Args:
        changes: keys inside one another as in the file; in a list, keys are its indices. A list as a value is the list
            that is there with further items at its end.
        wanted: what the new text must be read as.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        edits = sorted(dict.fromkeys(_edits(text, root, changes, True)), key=lambda edit: edit.start)
        for edit in reversed(edits):
            text = text[: edit.start] + edit.text + text[edit.end :]
        return text if yaml.safe_load(text) == wanted else None
    except (_Unable, yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None


def _edits(text: str, node: yaml.Node | None, change: Any, top: bool = False) -> Iterator[_Edit]:
    if isinstance(change, Mapping) and isinstance(node, yaml.MappingNode):
        there = {key.value: value for key, value in node.value}
        for key, inner in change.items():
            if key in there:
                yield from _edits(text, there[key], inner)
        new = {key: inner for key, inner in change.items() if key not in there}
        if new:
            yield _added(text, node, new, top)
    elif isinstance(change, Mapping) and isinstance(node, yaml.SequenceNode):
        for index, inner in change.items():
            yield from _edits(text, node.value[index], inner)
    elif isinstance(change, Sequence) and not isinstance(change, str) and isinstance(node, yaml.SequenceNode):
        yield from _longer(text, node, change[len(node.value) :])
    else:
        yield _replaced(text, node, change)


def _replaced(text: str, node: yaml.Node | None, value: Any) -> _Edit:
    if node is None or not _inline(node):
        raise _Unable
    start, end = node.start_mark.index, node.end_mark.index
    return _Edit(start, end, flow(value) if text[start:end] else f" {flow(value)}")


def _longer(text: str, node: yaml.SequenceNode, items: Sequence[Any]) -> Iterator[_Edit]:
    """Items at the end of a list."""
    if not items:
        return
    if node.flow_style:
        end = node.end_mark.index - 1
        yield _Edit(end, end, (", " if node.value else "") + ", ".join(map(flow, items)))
    elif _inline(node.value[-1]):
        indent = " " * node.start_mark.column
        yield _after_line(text, node.value[-1].end_mark.index, [f"{indent}- {flow(item)}" for item in items])
    else:
        raise _Unable


def _added(text: str, node: yaml.MappingNode, new: Mapping[Any, Any], top: bool) -> _Edit:
    """Keys that a mapping does not have."""
    pairs = [f"{flow(key)}: {flow(value)}" for key, value in new.items()]
    if node.flow_style:
        place = node.start_mark.index + 1
        return _Edit(place, place, ", ".join(pairs) + (", " if node.value else ""))
    if top:
        lines = [line for key, value in new.items() for line in _block(key, value)]
        return _after_line(text, len(text.rstrip("\r\n")), lines)
    indent = " " * node.start_mark.column
    lines = [indent + pair for pair in pairs]
    for _, value in node.value:
        if _inline(value):
            return _after_line(text, value.end_mark.index, lines)
    for key, _ in node.value:
        begin = text.rfind("\n", 0, key.start_mark.index) + 1
        if not text[begin : key.start_mark.index].strip():
            return _Edit(begin, begin, "".join(line + _newline(text) for line in lines))
    raise _Unable


def _block(key: Any, value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{flow(key)}: {flow(value)}"]
    return [f"{flow(key)}:", *(f"  {flow(inner)}: {flow(one)}" for inner, one in value.items())]


def _after_line(text: str, index: int, lines: Sequence[str]) -> _Edit:
    """Lines below the one of a place."""
    newline, end = _newline(text), text.find("\n", index)
    if end < 0:
        return _Edit(len(text), len(text), "".join(newline + line for line in lines))
    return _Edit(end + 1, end + 1, "".join(line + newline for line in lines))


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _inline(node: yaml.Node) -> bool:
    """Whether the end of a value is known: that of a block reaches up to what follows, over comments."""
    if isinstance(node, yaml.ScalarNode):
        return node.style not in ("|", ">")
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)
