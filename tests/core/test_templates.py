"""Chat templates: the texts of the library that most use, and bounds on what a hostile one does."""

import resource
import time

import pytest
from helpers.templates import TEMPLATES
from tokenizers import Tokenizer, models

from p2l_plugins.errors import BundleError, PromptError
from p2l_plugins.prompts import TextEncoder, TextForm
from p2l_plugins.templates import MOST_S, ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CONVERSATIONS = [["hi"], ["a\nb ", " c <think>d</think> e"], ["x" * 5_000], [f"turn {i}" for i in range(40)]]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_gives_what_the_library_gives(name):
    library = pytest.importorskip("transformers.utils.chat_template_utils")
    compiled = library._compile_jinja_template(TEMPLATES[name])
    template = ChatTemplate(TEMPLATES[name], TOKENS)
    for turns in CONVERSATIONS:
        messages = [{"role": "user", "content": turn} for turn in turns]
        assert template.render(turns) == compiled.render(messages=messages, add_generation_prompt=False, **TOKENS)


#: Templates that take minutes, gigabytes, or all of the stack.
HOSTILE = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) recursive %}{{ loop(range(100000)) }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{{ 'a' * 10**10 }}",
    "{{ [1] * 10**10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{{ ('f' * 60000) | int(base=16) }}",
    "{{ 'a'.center(10**10) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ 1.5 | round(10**10, 'ceil') }}",
    "{{ lipsum(n=10**9) }}",
    *(
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = X %}{% endfor %}{{ n.x }}".replace(
            "X", grown
        )
        for grown in (
            *("n.x ~ n.x", "n.x + n.x", "n.x * 2", "[n.x, n.x]", "(n.x, n.x)", "{'a': n.x, 'b': n.x}"),
            *("dict(a=n.x, b=n.x)", "namespace(a=n.x, b=n.x)", "n.x.replace('a', 'aa')", "n.x | replace('a', 'aa')"),
            *("n.x.join([n.x, n.x])", "[n.x, n.x, n.x] | join", "n.x | tojson | tojson", "'%s%s' % (n.x, n.x)"),
            "n.x | escape | replace('a', '&' * 9)",
        )
    ),
    "{% set x = 'a' * 30000 %}{{ x.replace('a', x) }}",
    "{% set x = 'a' * 30000 %}{{ x | replace('a', x) }}",
    "{% set x = 'a' * 30000 %}{{ x.join(x) }}",
    "{% set x = 'a' * 30000 %}{{ range(30000) | map('default', x) | join(x) }}",
    "{% set x = 'a' * 30000 %}{{ ([''] * 30000) | map('default', x, true) | join }}",
    "{% set x = '\n' * 30000 %}{{ x | indent(10**6) }}",
    "{% set x = '\n' * 30000 %}{{ x | indent(60) | indent(60) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{% set s %}{% for i in range(60000) %}" + "a" * 5_000 + "{% endfor %}{% endset %}",
    "{% autoescape 'a' * 10**10 %}{% endautoescape %}",
    "{% set x = 'a' * 30000 %}{{ " + " ~ ".join(["x"] * 1000) + " }}",
    "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "{% for i in [1] %}" * 300 + "{% endfor %}" * 300,
    "a" * 300_000,
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{{ messages",
]


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: source[:60])
def test_a_hostile_template_is_refused_at_load_in_time_and_memory(source):
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(BundleError, match="the chat template") as refused:
        ChatTemplate(source, {})
    assert time.thread_time() - started < 2 * MOST_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100 * 1024
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "hostile",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{{ messages[0].content * 10**6 }}",
        "{% for a in messages[0].content %}{% for b in messages[0].content %}{% endfor %}{% endfor %}",
        "{{ messages[0].content.replace('a', messages[0].content) }}",
        "{{ 1 // 0 }}",
    ],
)
def test_one_that_waits_for_a_prompt_is_stopped_by_it(hostile):
    template = ChatTemplate("{% if messages[0].content | length > 9 %}" + hostile + "{% endif %}x", {})
    assert template.render(["short"]) == "x"
    started = time.thread_time()
    with pytest.raises(PromptError, match="the chat template refuses the prompt"):
        template.render(["a" * 2_000])
    assert time.thread_time() - started < 2 * MOST_S
    assert template.render(["short"]) == "x"


def test_the_cost_of_a_long_conversation_is_no_reason_to_refuse():
    template = ChatTemplate(TEMPLATES["chatml"], TOKENS)
    assert len(template.render(["long " * 100_000, *["and?"] * 1000])) > 500_000


@pytest.mark.parametrize("failing", ["{{ {}[messages[0].content](1) }}", "{{ raise_exception(messages[0].content) }}"])
def test_an_error_of_a_template_holds_no_prompt(failing):
    template = ChatTemplate("{% if messages[0].content != 'hi' %}" + failing + "{% endif %}", {})
    with pytest.raises(PromptError) as refused:
        template.render(["xylophone"])
    assert "xylophone" not in str(refused.value)


def test_a_bundle_whose_template_is_hostile_is_refused():
    form = TextForm(form="chat", max_length=64, pad_id=0, cls_token="c")
    with pytest.raises(BundleError, match="the chat template fails on a prompt of 1 turns: too many steps"):
        TextEncoder(Tokenizer(models.BPE()), form, HOSTILE[0])
