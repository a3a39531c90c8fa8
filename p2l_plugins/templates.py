"""Chat templates, which come with a bundle and may be hostile: no names of Python, and bounds on what they do.

A template is a program. Each item of a loop, each call, filter and operator, and each character of what they make costs
one of a budget that grows with the prompt; what would make much at once is counted before it is made. So neither nested
loops nor strings that double end in minutes or in gigabytes. What ordinary templates don't use is not there.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from p2l_plugins.errors import BundleError, PromptError

#: Steps and characters that a prompt may take: in any case, for each character of it, and for each turn.
STEPS, STEPS_PER_CHAR, STEPS_PER_TURN = 2**16, 64, 256

#: Processor seconds for what costs more than its size, such as comparisons of long texts.
MOST_S = 2.0

#: Characters of a template's source, bits of a number, columns of an indentation, and characters of a refusal.
MOST_SOURCE, MOST_BITS, MOST_INDENT, MOST_SAID = 2**18, 4096, 64, 200

#: Turns of the conversations that a template is tried on.
TRIED_TURNS = (1, 2, 64)

FILTERS = (
    *"abs attr capitalize count d default dictsort e escape first float groupby indent int items join last".split(),
    *"length list lower map max min reject rejectattr replace reverse safe select selectattr sort string title".split(),
    *"trim truncate unique upper wordcount".split(),
)
METHODS = frozenset(
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit islower isnumeric isspace "
    "istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit "
    "rstrip split splitlines startswith strip swapcase title upper".split()
)

#: Names that no template can write, for the filters that count.
EACH, MADE, SHARED = "p2l each", "p2l made", "p2l shared"


class _TooMuch(TemplateError):
    """The budget is spent."""


class _Refused(TemplateError):
    """A template's own refusal."""


class _Budget:
    """What is left of the steps and the time of one rendering."""

    def __init__(self, steps: int) -> None:
        self._left, self._end = steps, time.thread_time() + MOST_S

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0 or time.thread_time() > self._end:
            raise _TooMuch("too many steps, or too long a text")

    def spend_on(self, value: Any) -> None:
        """One step for a value, and its size: characters, and all that a list or a mapping holds."""
        waiting = [value]
        while waiting:
            one = waiting.pop()
            self.spend(1)
            if isinstance(one, str | bytes):
                self.spend(len(one))
            elif isinstance(one, int):
                if one.bit_length() > MOST_BITS:
                    raise _TooMuch("too large a number")
            elif isinstance(one, Mapping):
                self.spend(len(one))
                waiting += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple | set | frozenset):
                self.spend(len(one))
                waiting += one
            elif isinstance(one, Namespace):  # lists of namespaces of lists could hold one another without end
                raise _TooMuch("a namespace inside a value")


_now: ContextVar[_Budget] = ContextVar("budget of the template that is rendered")


class ChatTemplate:
    """A compiled chat template. Safe to call from several threads.

    Args:
        source: Jinja source.
        special_tokens: names that it may use, such as `eos_token`.

    Raises:
        BundleError: it is no template, refuses every prompt, or takes too many steps for a short conversation.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = special_tokens
        if len(source) > MOST_SOURCE:
            raise BundleError(f"the chat template has {len(source)} characters; at most {MOST_SOURCE} are read")
        try:
            self._template = _Environment().from_string(source)
        except Exception as error:  # Python's compiler refuses in many ways
            raise BundleError(f"the chat template can't be read: {_said(error)}") from None
        for turns in TRIED_TURNS:
            try:
                self._rendered(["hi"] * turns)
            except Exception as error:  # whatever a program raises
                if turns == 1 or isinstance(error, _TooMuch):
                    raise BundleError(f"the chat template fails on a prompt of {turns} turns: {_said(error)}") from None

    def render(self, turns: Sequence[str]) -> str:
        """The text of a conversation of user turns, without a prompt for the answer.

        Raises:
            PromptError: the template refuses the turns, or they take too many steps; nothing of them is in the message.
        """
        try:
            return self._rendered(turns)
        except Exception as error:  # whatever a program raises
            said = _said(error) if isinstance(error, _TooMuch | _Refused) else type(error).__name__
            if any(turn.strip() and turn.strip() in said for turn in turns):
                said = type(error).__name__
            raise PromptError(f"the chat template refuses the prompt: {said}") from None

    def _rendered(self, turns: Sequence[str]) -> str:
        size = sum(map(len, turns))
        before = _now.set(_Budget(STEPS + STEPS_PER_CHAR * size + STEPS_PER_TURN * len(turns)))
        try:
            messages = [{"role": "user", "content": turn} for turn in turns]
            return self._template.render(messages=messages, add_generation_prompt=False, **self._special_tokens)
        finally:
            _now.reset(before)


def _said(error: Exception) -> str:
    """What an error says, where it is one of Jinja; the kind of any other."""
    return (str(error) if isinstance(error, TemplateError) else type(error).__name__)[:MOST_SAID]


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which counts."""

    intercepted_binops = frozenset(["+", "*", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            optimized=False,  # or it would work out at once what stands there as constants
            finalize=_written,
        )
        self.filters = {name: _counted(name, self.filters[name]) for name in FILTERS}
        self.filters |= {EACH: _each, MADE: _written, SHARED: _shared, "tojson": _tojson}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counting().visit(source), *args, **kwargs)

    def wrap_str_format(self, value: Any) -> None:
        """Refuses what can make a text of any width of a few characters."""
        if getattr(value, "__name__", "") in ("format", "format_map") and isinstance(value.__self__, str):
            raise SecurityError("texts have no method 'format' here")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator, whose size is known before it is made."""
        budget = _now.get()
        sized = [value for value in (left, right) if isinstance(value, str | bytes | list | tuple)]
        if operator == "%" and sized:
            raise SecurityError("texts have no operator '%' here")
        if operator == "*" and sized:
            times = next((value for value in (left, right) if isinstance(value, int)), 0)
            budget.spend(max(0, times) * (1 + len(sized[0])))
        if operator == "+":
            budget.spend(sum(map(len, sized)))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            budget.spend(0 if left.bit_length() * right <= MOST_BITS else 2**62)
        result = super().call_binop(context, operator, left, right)
        budget.spend_on(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja's
        """Calls what a template calls."""
        budget, name, owner = _now.get(), getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        budget.spend(1)
        if isinstance(owner, int | float) or (isinstance(owner, str | bytes) and name not in METHODS):
            raise SecurityError(f"{type(owner).__name__} has no method {name!r} here")
        if isinstance(owner, str) and name == "replace" and len(args) > 1:
            budget.spend(_replaced(owner, *args[:2]))
        if isinstance(owner, str) and name == "join":
            args = (_joined(args[0], owner), *args[1:]) if args else args
        if __obj is Namespace:
            budget.spend_on([*args, kwargs])
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(result, Namespace):
            budget.spend_on(result)
        return result


class _Counting(NodeTransformer):
    """Has a template count what the sandbox would not see."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802 - as Jinja's
        return nodes.Const(node.data, lineno=node.lineno)  # constants are finalised, which is where they count

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _through(EACH, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_through(MADE, one) for one in node.nodes]
        return _through(MADE, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(SHARED, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _through(MADE, self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _through(MADE, self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(MADE, node) if node.ctx == "load" else node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.target, nodes.NSRef):
            node.node = _through(MADE, node.node)
        return node


def _through(name: str, node: Any) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@pass_context  # with the context, Jinja can't work it out before the template is rendered
def _written(_: Context, value: Any) -> Any:
    """A value that is written, or that holds others."""
    _now.get().spend_on(value)
    return value


@pass_context
def _shared(_: Context, value: Any) -> Any:
    """A piece of a text or a list: what is in it was counted before."""
    _now.get().spend(1 + len(value) if isinstance(value, str | bytes | list | tuple) else 1)
    return value


@pass_context
def _each(_: Context, values: Iterable[Any]) -> Iterator[Any]:
    """What a loop goes through."""
    budget = _now.get()
    for value in values:
        budget.spend(1)
        yield value


def _counted(name: str, of_jinja: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja that counts."""
    wants = getattr(getattr(of_jinja, "jinja_pass_arg", None), "name", "")

    @pass_context
    def counted(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        budget = _now.get()
        if name == "join":
            value = _joined(value, str(args[0] if args else kwargs.get("d", "")))
        elif name == "replace":
            text = value if isinstance(value, str) else str(value)
            budget.spend(_replaced(text, *(str(one) for one in [*args, *kwargs.values()][:2])))
        elif name == "indent":
            width = args[0] if args else kwargs.get("width", 4)
            if (width if isinstance(width, int) else len(width)) > MOST_INDENT:
                raise _TooMuch("too wide an indentation")
            budget.spend((1 + str(value).count("\n")) * MOST_INDENT)
        result = of_jinja(*([first[wants]] if wants else []), value, *args, **kwargs)
        budget.spend_on(result)
        return result

    return counted


def _replaced(text: str, old: str = "", new: str = "", *_: Any) -> int:
    """Most characters of a text in which one piece is replaced by another."""
    return len(text) + text.count(old) * len(new)


def _joined(values: Any, between: str) -> list[Any]:
    """What is joined, once it is known to be short enough."""
    found, budget = [], _now.get()
    for value in values:
        budget.spend(len(between))
        budget.spend_on(value)
        found.append(value)
    return found


@pass_context
def _tojson(_: Context, value: Any, indent: int | None = None, **__: Any) -> str:
    if indent is not None and indent > MOST_INDENT:
        raise _TooMuch("too wide an indentation")
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    _now.get().spend(len(text))
    return text


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
