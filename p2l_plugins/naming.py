"""Which model of a bundle a name means that a provider or LiteLLM gives it.

A wrong match is worse than none, so the rules are few and exact, in this order:

1. `name`: the last part of the name is a model of the bundle, or one of its aliases.
2. `spelling`: it is one but for what providers add around names (makers, regions, revisions, variants that are served
   alike), for capitals, and for `.`, `-`, `_` or nothing between parts: `us.anthropic.claude-sonnet-4-5-20250929-v1:0`
   is `claude-sonnet-4-5-20250929`, and `claude-sonnet-4.5-20250929` too.
3. `other name`: a table of what providers call a model, such as Groq's `llama-3.3-70b-versatile`.
4. `only date`: a name without a date is the dated model, and the other way round, where the bundle and LiteLLM's list
   know that model with one date only. Dates are whole ones (20250929, 2025-08-07): a stamp such as -0324 or -2507 is a
   part of the name, because undated names of such models mean other weights.

No part of a name is ever left out otherwise: gpt-5 is not gpt-5-mini, and qwen3-235b-a22b is not its -2507. Names that
their makers point to other models over time (deepseek-chat, mistral-large-latest) match nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: Settings of reasoning, each with those that a bundle may know it by, the nearest first.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "none": ("none", "nothink"),
    "nothink": ("nothink", "none"),
    "minimal": ("minimal",),
    "low": ("low", "thinking"),
    "medium": ("medium", "thinking"),
    "high": ("high", "thinking"),
    "xhigh": ("xhigh", "thinking"),
    "max": ("max", "thinking"),
    "thinking": ("thinking",),
}

#: Providers at which the name is of the operator's choice: only `base_model` says what it is.
OWN_NAMES = frozenset({"azure", "azure_ai", "azure_text", "sagemaker", "sagemaker_chat", "sagemaker_nova", "custom"})

#: Names that mean other models over time.
MOVING = frozenset(
    "chatgpt-4o-latest codestral command deepseek-chat deepseek-coder deepseek-reasoner devstral devstral-medium "
    "devstral-small gemini-flash gemini-pro grok-beta kimi-latest magistral-medium magistral-small mistral-large "
    "mistral-medium mistral-small mistral-tiny qwen-max qwen-plus qwen-turbo qwen3-coder-plus qwen3-max".split()
)

_CLAUDES = {
    "opus-4": "20250514",
    "sonnet-4": "20250514",
    "opus-4-1": "20250805",
    "opus-4-5": "20251101",
    "sonnet-4-5": "20250929",
    "haiku-4-5": "20251001",
}

#: What providers call a model → its maker's names for it, of which a bundle may have one.
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    # Anthropic's own aliases, and names with the version in front
    "claude-opus-4-0": ("claude-opus-4-20250514",),
    "claude-sonnet-4-0": ("claude-sonnet-4-20250514",),
    "claude-3-7-sonnet": ("claude-3-7-sonnet-20250219",),
    "claude-3-7-sonnet-latest": ("claude-3-7-sonnet-20250219",),
    "claude-3-5-sonnet-latest": ("claude-3-5-sonnet-20241022",),
    "claude-3-5-haiku-latest": ("claude-3-5-haiku-20241022",),
    "claude-3-opus-latest": ("claude-3-opus-20240229",),
    **{
        f"claude-{version}-{size}": (f"claude-{size}-{version}-{date}", f"claude-{size}-{version}")
        for name, date in _CLAUDES.items()
        for size, _, version in [name.partition("-")]
    },
    # OpenAI and Google say which dated model these are
    "gpt-4o": ("gpt-4o-2024-08-06",),
    "gpt-4-turbo": ("gpt-4-turbo-2024-04-09",),
    "gemini-2.0-flash": ("gemini-2.0-flash-001",),
    "gemini-2.0-flash-lite": ("gemini-2.0-flash-lite-001",),
    "grok-4": ("grok-4-0709",),
    "grok-4-latest": ("grok-4-0709",),
    "grok-4-fast-reasoning": ("grok-4-fast",),
    "grok-4-fast-non-reasoning": ("grok-4-fast@nothink",),
    "grok-4-1-fast-reasoning": ("grok-4-1-fast",),
    "grok-4-1-fast-non-reasoning": ("grok-4-1-fast@nothink",),
    # Meta published these as instruct models only, or the provider serves these
    "llama-3.3-70b": ("llama-3.3-70b-instruct",),
    "llama-3.3-70b-versatile": ("llama-3.3-70b-instruct",),
    "llama-3.1-8b-instant": ("llama-3.1-8b-instruct",),
    "llama-4-maverick": ("llama-4-maverick-17b-128e-instruct",),
    "llama-4-maverick-17b": ("llama-4-maverick-17b-128e-instruct",),
    "llama-4-maverick-17b-instruct": ("llama-4-maverick-17b-128e-instruct",),
    "llama-4-maverick-instruct-basic": ("llama-4-maverick-17b-128e-instruct",),
    "llama-4-scout": ("llama-4-scout-17b-16e-instruct",),
    "llama-4-scout-17b-instruct": ("llama-4-scout-17b-16e-instruct",),
    "llama-4-scout-instruct-basic": ("llama-4-scout-17b-16e-instruct",),
    # other makers
    "deepseek-chat-v3-0324": ("deepseek-v3-0324",),
    "deepseek-chat-v3.1": ("deepseek-v3.1",),
    "kimi-k2": ("kimi-k2-instruct",),
    "kimi-k2-0711": ("kimi-k2-instruct",),
    "kimi-k2-0711-preview": ("kimi-k2-instruct",),
    "kimi-k2-0905": ("kimi-k2-instruct-0905",),
    "kimi-k2-0905-preview": ("kimi-k2-instruct-0905",),
    "qwen3-235b-a22b-2507": ("qwen3-235b-a22b-instruct-2507",),
    "command-a": ("command-a-03-2025",),
    "mistral-large-instruct-2407": ("mistral-large-2407",),
    "mistral-large-instruct-2411": ("mistral-large-2411",),
    "mistral-large-3": ("mistral-large-2512",),
    "mistral-medium-3": ("mistral-medium-2505",),
    "mistral-medium-3.1": ("mistral-medium-2508",),
    "mistral-small-24b-instruct-2501": ("mistral-small-2501",),
    "mistral-small-3.1-24b-instruct": ("mistral-small-2503",),
    "mistral-small-3.1-24b-instruct-2503": ("mistral-small-2503",),
    "ministral-8b-instruct-2410": ("ministral-8b-2410",),
    "mistral-nemo": ("mistral-nemo-instruct-2407",),
    "open-mistral-nemo": ("mistral-nemo-instruct-2407",),
    "open-mistral-nemo-2407": ("mistral-nemo-instruct-2407",),
    "nova-lite": ("nova-lite-v1",),
    "nova-micro": ("nova-micro-v1",),
    "nova-pro": ("nova-pro-v1",),
    "nova-2-lite": ("nova-2-lite-v1",),
}

#: Ollama's families → the published name of a size, and the sizes that never changed under that name.
_OLLAMA: Mapping[str, tuple[str, str]] = {
    "gemma2": ("gemma-2-{}-it", "2b 9b 27b"),
    "gemma3": ("gemma-3-{}-it", "4b 12b 27b"),
    "gpt-oss": ("gpt-oss-{}", "20b 120b"),
    "llama3": ("llama-3-{}-instruct", "8b 70b"),
    "llama3.1": ("llama-3.1-{}-instruct", "8b 70b 405b"),
    "llama3.2": ("llama-3.2-{}-instruct", "1b 3b"),
    "llama3.3": ("llama-3.3-{}-instruct", "70b"),
    "phi4": ("phi-4", "14b"),
    "qwen2": ("qwen2-{}-instruct", "7b 72b"),
    "qwen2.5": ("qwen2.5-{}-instruct", "3b 7b 14b 32b 72b"),
    "qwen3": ("qwen3-{}", "0.6b 8b 14b 32b"),
}
_OLLAMA_TAG = re.compile(r"(\d+(?:\.\d+)?b)(?:-(?:instruct|it|cloud))?(?:-(?:fp16|bf16|q8_0))?$")

_REGION = r"(?:us|us-gov|eu|apac|ap|jp|au|ca|sa|me|il|global)\."
_MAKER = (
    r"(?:ai21|amazon|anthropic|cohere|deepseek|google|meta|minimax|mistral|moonshot|moonshotai|nvidia|openai|qwen|"
    r"writer|xai|zai)\."
)
_BEDROCK = re.compile(rf"(?:{_REGION})?({_MAKER})(.+)$")
_REVISION = re.compile(r"(?:-v\d+|-\d+)?:\d+(?::\w+)?$|-v\d$")
_ROUTED = re.compile(r":(?:free|nitro|floor|exacto|extended)$")
#: Variants with the same weights, served faster or in FP8.
_SERVED = re.compile(r"-(?:maas|fp8|tput)$")
_TURBO = re.compile(r"^(?:meta-)?(?:llama|qwen)[\w.-]*-turbo$")
_DATE = re.compile(r"-(20\d{2})-?([01]\d)-?([0-3]\d)$")
#: A Llama by its size alone is the base model to some and the instruct model to others.
_BARE_LLAMA = re.compile(r"llama-?[23](?:[.-]\d)?-\d+b$")
_PART = re.compile(r"\d+(?:\.\d+)?[bm](?![a-z\d])|\d+|[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Match:
    """A model of the bundle, and the rule by which a name means it: see the module, or `given` by the operator."""

    model: str
    rule: str


def plain_name(name: str) -> tuple[str, str | None]:
    """The name without what providers add, in small letters, and a setting of reasoning that it holds, or None.

    Empty for a name that says nothing: wildcards, variants with other weights or with tools of the provider's.
    """
    path = name.strip().lower()
    provider, text = path.partition("/")[0], path.rpartition("/")[2]
    if not text or "*" in text:
        return "", None
    if provider in ("ollama", "ollama_chat"):
        return _of_ollama(text), None
    setting = None
    if text.endswith(":thinking"):
        text, setting = text.removesuffix(":thinking"), "thinking"
    text = _ROUTED.sub("", text)
    bedrock = _BEDROCK.match(text)
    if bedrock is not None or provider.startswith("bedrock"):
        text = _REVISION.sub("", text if bedrock is None else bedrock[2])
        if bedrock is not None and bedrock[1] == "deepseek.":  # deepseek.r1-v1:0; v3-v1:0 is V3.1
            text = f"deepseek-{'v3.1' if text == 'v3' else text.removeprefix('deepseek-')}"
    if provider == "fireworks_ai":
        text = re.sub(r"^llama-v(?=\d)", "llama-", re.sub(r"(\d)p(\d)", r"\1.\2", text))
    head, at, tail = text.partition("@")
    if at and tail in SETTINGS:
        text, setting = head, tail
    elif at:  # of Vertex AI: a date, a revision, or what is the default
        text = head if tail == "default" else f"{head}-{tail}"
    text = _SERVED.sub("", text.removeprefix("databricks-"))
    text = text.removesuffix("-turbo") if _TURBO.match(text) else text
    return ("" if ":" in text else text.removeprefix("meta-")), setting


def _of_ollama(text: str) -> str:
    family, _, tag = text.partition(":")
    said, size = _OLLAMA.get(family), _OLLAMA_TAG.match(tag)
    return said[0].format(size[1]) if said is not None and size is not None and size[1] in said[1].split() else ""


def key_of(name: str) -> str:
    """What two spellings of a name share: its parts, in their order; the date, if any, in eight digits."""
    text, _, setting = name.lower().replace("+", "-plus").partition("@")
    stem, date = dated(text)
    parts = _PART.findall(stem)
    return " ".join([*parts, *([date] if date else [])]) + (f" @{setting}" if setting else "")


def dated(name: str) -> tuple[str, str]:
    """A name's part before its date, and the date in eight digits, or nothing."""
    found = _DATE.search(name)
    return (name, "") if found is None else (name[: found.start()], "".join(found.groups()))


class ModelNames:
    """The names of a bundle's models, and of all that LiteLLM lists. Safe to use from several threads.

    Args:
        models: of the bundle.
        aliases: other names of models, to names in `models`.
        listed: names of LiteLLM's list, with their providers.
    """

    def __init__(self, models: Sequence[str], aliases: Mapping[str, str], listed: Iterable[str] = ()) -> None:
        self.models = tuple(models)
        self._exactly = {name: to for name, to in aliases.items() if to in self.models} | {m: m for m in self.models}
        self._by_key: dict[str, set[str]] = {}
        self._dates: dict[str, set[str]] = {}
        for model in self.models:
            self._by_key.setdefault(key_of(model), set()).add(model)
            self._note_date(model.partition("@")[0])
        for name in listed:
            text, _ = plain_name(name)
            self._note_date(text)
        self._others = {key_of(name): targets for name, targets in OTHER_NAMES.items()}
        self._found: dict[tuple[str, str | None, bool], Match | None] = {}

    def _note_date(self, name: str) -> None:
        stem, date = dated(name)
        if date:
            self._dates.setdefault(key_of(stem), set()).add(date)

    def exactly(self, name: str) -> str | None:
        """The bundle's own name of a model, by this or an alias."""
        return self._exactly.get(name)

    def find(self, name: str, setting: str | None = None, base: bool = False) -> Match | None:
        """The model that a name means, or None.

        A setting chooses the bundle's model of that setting (`gpt-5@high`) where it has one, else the model without.

        Args:
            name: with providers.
            setting: of `SETTINGS`.
            base: whether it is a `base_model`, which counts also where the provider's own names say nothing.
        """
        key = (name, setting, base)
        if key not in self._found:
            if len(self._found) >= _MOST:
                self._found.clear()
            self._found[key] = self._find(name, setting, base)
        return self._found[key]

    def _find(self, name: str, setting: str | None, base: bool) -> Match | None:
        if not base and "/" in name and name.partition("/")[0].lower() in OWN_NAMES:
            return None
        text, within = plain_name(name)
        setting = setting or within
        if text in MOVING or (_BARE_LLAMA.match(text) and key_of(text) not in self._others):
            return None
        exact = self._exactly.get(name) or self._exactly.get(name.rpartition("/")[2])
        if exact is None and not text:
            return None
        found = Match(exact, "name") if exact is not None else self._by_rules(text)
        with_setting = self._set(found.model if found else text, setting)
        if with_setting is not None:
            return Match(with_setting, f"{found.rule if found else 'spelling'}, setting {setting}")
        return found

    def _by_rules(self, text: str) -> Match | None:
        own = self._only(key_of(text))
        if own is not None:
            return Match(own, "spelling")
        for target in self._others.get(key_of(text), ()):
            other = self._only(key_of(target))
            if other is not None:
                return Match(other, "other name")
        stem, date = dated(text)
        known = self._dates.get(key_of(stem), set())
        if len(known) == 1 and (not date or known == {date}):
            (only,) = known
            one = self._only(key_of(stem) if date else f"{key_of(stem)} {only}")
            return None if one is None else Match(one, "only date")
        return None

    def _only(self, key: str) -> str | None:
        found = self._by_key.get(key, set())
        return next(iter(found)) if len(found) == 1 else None

    def _set(self, name: str, setting: str | None) -> str | None:
        """The bundle's model of a name in the setting that is asked for."""
        bare = key_of(name.partition("@")[0])
        tried = (self._only(f"{bare} @{one}") for one in SETTINGS.get(setting or "", ()))
        return next((one for one in tried if one is not None), None)


#: Names whose match is kept.
_MOST = 4096
