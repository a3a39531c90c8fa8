"""Does a choice stay when the same prompt is written otherwise? Greetings, thanks, typos, other order, appended words.

    nice python benchmarks/robustness.py --data FOLDER [--bundle starter] [--prompts 40] [--write docs]
    nice python benchmarks/robustness.py --data FOLDER --model gpt-4o-2024-08-06=2.5,10 --model gpt-4-0314=30,60

A group of six models: those given (USD per million tokens of prompt and answer), or the first group below that the
bundle knows. Prompts: of each set of the recipe some that it held out, and all of examples/prompts.jsonl. `best` takes
the model of highest win rate within the group, `paced` the one of highest win rate less λ times its expected cost, with
the one λ that keeps the mean cost of the prompts as they were at the budget.

The search draws strings of eight ordinary words, half of them at random and half as changes of the best so far, appends
them to some prompts, and keeps the string that moves most of them to the dearest model; it sees scores, no gradients.
It is judged on the other prompts. Phrases, blocks and words are none that the training has. No text is printed.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from p2l_plugins.errors import BundleError
from p2l_plugins.files.prompts import read_prompts
from p2l_plugins.files.tables import replaced_file
from p2l_plugins.outcomes import Array, Ids
from p2l_plugins.prompts import Turns, as_turns
from p2l_plugins.routing.policies import values
from p2l_plugins.scoring.scorer import P2L
from p2l_plugins.training.config import TrainConfig, read_config
from p2l_plugins.training.phrases import Phrases
from p2l_plugins.training.variants import WORDS, Variant, forms, typos
from p2l_plugins.votes.votes import held_out

ROOT = Path(__file__).resolve().parent.parent

#: Groups of six with USD per million tokens of prompt and answer; the first that a bundle knows is taken.
GROUPS: tuple[dict[str, tuple[float, float]], ...] = (
    {
        "claude-sonnet-4-5": (3, 15),
        "gpt-5": (1.25, 10),
        "gemini-2.5-pro": (1.25, 10),
        "gpt-5-mini": (0.25, 2),
        "deepseek-v3.1": (0.27, 1),
        "gemini-2.5-flash-lite": (0.1, 0.4),
    },
    {
        "claude-sonnet-4-5-20250929": (3, 15),
        "gpt-5-2025-08-07": (1.25, 10),
        "gemini-2.5-pro": (1.25, 10),
        "gpt-5-mini-2025-08-07": (0.25, 2),
        "deepseek-v3.1": (0.27, 1),
        "gemini-2.5-flash-lite": (0.1, 0.4),
    },
    {
        "claude-sonnet-4-20250514": (3, 15),
        "gpt-5-2025-08-07": (1.25, 10),
        "gemini-2.5-pro": (1.25, 10),
        "gpt-5-mini-2025-08-07": (0.25, 2),
        "deepseek-v3-0324": (0.27, 1.1),
        "gemini-2.5-flash": (0.3, 2.5),
    },
    {
        "gpt-4o-2024-08-06": (2.5, 10),
        "claude-3-5-sonnet-20241022": (3, 15),
        "qwen2.5-72b-instruct": (0.9, 0.9),
        "llama-3.1-70b-instruct": (0.88, 0.88),
        "gpt-4o-mini-2024-07-18": (0.15, 0.6),
        "llama-3.1-8b-instruct": (0.18, 0.18),
    },
)
OUTPUT_TOKENS, CHARS_PER_TOKEN = 500, 4.0
CANDIDATES, CHANGED_WORDS = 128, 2

HELD_OUT = Phrases(
    greetings={
        "en": ("Good evening,", "Greetings!", "Hi team,", "Hey, how are you today?", "Hiya", "Good day to you."),
        "de": ("Moin!", "Grüß Gott,"),
        "fr": ("Coucou !", "Bonne journée,"),
        "es": ("¡Buenas!", "Buenas noches,"),
        "it": ("Salve,", "Buonasera,"),
        "pt": ("Boa tarde,", "E aí,"),
        "nl": ("Goedenavond,", "Hé,"),
        "da": ("Halløj,", "God aften,"),
        "hu": ("Üdvözlöm,", "Helló,"),
        "ru": ("Доброе утро,", "Приветствую!"),
        "zh": ("大家好，", "晚上好，"),
        "ja": ("こんばんは。", "はじめまして。"),
        "ko": ("여보세요,", "좋은 아침이에요."),
        "ar": ("أهلا،", "مساء الخير،"),
        "hi": ("प्रणाम,", "सुप्रभात,"),
        "th": ("หวัดดี",),
    },
    please={
        "en": (
            "Please, {lower}",
            "Would you please look at this: {text}",
            "{text} Please and be precise.",
            "If you could please help: {text}",
            "{text}\nplease reply",
            "Kindly and please: {text}",
        ),
        "de": ("Bitte sehr, {lower}", "{text} Ich bitte darum."),
        "fr": ("Je vous prie : {text}", "{text} Merci d'avance."),
        "es": ("Le ruego: {text}", "{text} Si es tan amable."),
        "it": ("Ti prego: {text}", "{text} Se possibile."),
        "pt": ("Se faz favor: {text}", "{text} Agradeço."),
        "nl": ("Wil je zo vriendelijk zijn: {text}",),
        "da": ("Må jeg bede om hjælp: {text}",),
        "hu": ("Legyen szíves: {text}",),
        "ru": ("Будьте добры: {text}", "{text} Очень прошу."),
        "zh": ("请问：{text}", "{text}拜托了。"),
        "ja": ("どうか教えて。{text}", "{text}頼みます。"),
        "ko": ("부디 {text}", "{text} 답해 주세요."),
        "ar": ("رجاء: {text}", "{text} أرجوك."),
        "hi": ("मेहरबानी करके: {text}",),
        "th": ("รบกวนหน่อย {text}",),
    },
    thanks={
        "en": (
            "Cheers!",
            "Many thanks.",
            "I appreciate it.",
            "ty",
            "Thank you so much for your help!",
            "Much obliged.",
        ),
        "de": ("Besten Dank!", "Dankeschön."),
        "fr": ("Mille mercis !", "Je te remercie."),
        "es": ("¡Mil gracias!", "Se agradece."),
        "it": ("Ti ringrazio.", "Grazie tante!"),
        "pt": ("Valeu!", "Agradecido."),
        "nl": ("Hartelijk dank!", "Dank u."),
        "da": ("Tusind tak!",),
        "hu": ("Hálásan köszönöm.",),
        "ru": ("Благодарю!", "Спасибо заранее."),
        "zh": ("多谢！", "感激不尽。"),
        "ja": ("感謝します。", "どうもです。"),
        "ko": ("고맙습니다!",),
        "ar": ("ممتن لك!",),
        "hi": ("शुक्रिया!",),
        "th": ("ขอบใจนะ",),
    },
    tags=(
        "editor_state",
        "git_status",
        "todo_list",
        "cursor_rules",
        "reminder",
        "selected_code",
        "user_info",
        "notes_app",
    ),
    lines=(
        "OS: Windows 11 Pro, build 22631",
        "Cursor at line 41, column 7",
        "3 files changed, 12 insertions(+), 4 deletions(-)",
        "Meeting at 14:30 in room Delft",
        "Clipboard is empty",
        "Follow the house style.",
        "Signed in as maria@example.org",
        "Screen reader: off",
        "[x] book flights\n[ ] send the invoice",
        "Weather at the user's place: 17 °C, light rain",
        "Response should be concise.",
        "python 3.12.4 (venv)",
    ),
    words=tuple(
        """
        meadow measure meat medal medicine memory merchant message metal middle mild milk million mind minister minute
        mirror mission mixture modern moment money monkey month moral morning mother motion motor mountain mouse mouth
        movie muscle museum music narrow nation nature neat neck needle nephew nerve nest network nice night nobody
        noise noon normal north nose notice novel nurse object ocean office onion open opera orange orbit order organ
        origin outside oven owner oxygen pack page paint pair palace panel paper parcel parent park partner party
        passage path patient pattern pause peace peanut pearl pencil people pepper perfect period person phone photo
        piano picture piece pillow pilot pink pipe pirate place plain planet plant plastic plate player pleasant pocket
        poem poet police polite pond popular porch possible potato powder power prayer present pride prince prison prize
        problem product profit promise proper proud public pupil purple purse quality quarter queen quick quiet rabbit
        race radio railway rain rapid rare razor ready reason recipe record region relief remote repair report rescue
        rest result reward ribbon rice ring rise river road roast robot rocket roof room root rope rough round route
        royal rubber ruler rural sad saddle safe sail salad salt sand satellite sauce scale scarf scene school science
        score screen sea season seat second secret seed senior sense shadow shallow shape share sharp sheep shelf shell
        shine ship shirt shock shoe shop shore short shoulder shower sign silent silk silver simple singer sister skill
        skin sky sleep slice slow small smile smooth snake snow soap social sofa soft soil soldier solid song sound soup
        source south space spare spell spice spider spirit spoon sport spring square stable stage stair stamp star state
        station steam steel stem stone store storm story stove strange straw stream street strong student studio style
        sugar summer sun supper surface sweet swim table tail talent tall taste taxi teacher team tennis tent theatre
        thick thin throat thunder ticket tiger timber tired title toast tomato tongue tool tooth tower town trade train
        travel treasure tree trend trick trip trouble truck trust tunnel uncle uniform unique upper useful valley vast
        velvet victory view village violin visit voice volume voyage wagon waist walk wall warm water weak wealth weapon
        weather wedding weekend welcome west wheat wheel white wide wild wind window wine winter wise wolf woman wonder
        wooden wool world yard yellow young zebra
        """.split()
    ),
)


def measured() -> dict[str, Variant]:
    """The forms that are measured, by the name of their row."""
    own = forms(HELD_OUT)
    return {
        "please": own["please"],
        "greeting": own["greeting"],
        "thanks": own["thanks"],
        "typos, 1 in 40 characters": lambda text, rng: typos(text, rng, 40),
        "clauses rotated": own["clauses"],
        "options re-ordered": own["options"],
        "upper case": lambda text, _: text.upper(),
        "small letters": lambda text, _: text.lower(),
        "spaces": lambda text, _: " " + re.sub(r"(?<=\S) (?=\S)", "  ", text) + " \n",
        "other marks at the end": own["marks"],
        "injected block": own["injected"],
        "eight ordinary words, drawn": own["words"],
    }


@dataclass(frozen=True)
class Group:
    """Models of a bundle, and how one of them is chosen.

    Attributes:
        columns: (M,) of the bundle's coefficients.
        read, written: (M,) USD per token of the prompt and of the answer.
    """

    p2l: P2L
    columns: Ids
    read: Array
    written: Array

    @classmethod
    def of(cls, p2l: P2L, prices: dict[str, tuple[float, float]]) -> Group:
        """From USD per million tokens by model.

        Raises:
            BundleError: a model that the bundle does not have.
        """
        columns = np.array([p2l.index(name) for name in prices], np.int64)
        read, written = 1e-6 * np.array(list(prices.values())).T
        return cls(p2l, columns, read, written)

    @property
    def dearest(self) -> int:
        """Place of the model whose answers cost most."""
        return int(self.written.argmax())

    def values(self, prompts: Sequence[Turns]) -> Array:
        """(P, M) win rate of each model within the group."""
        scores = self.p2l.score_turns(prompts)
        return values("win_rate", scores.family, scores.coefs[:, self.columns], scores.raw_eta)

    def costs(self, prompts: Sequence[Turns]) -> Array:
        """(P, M) expected USD."""
        tokens = np.array([sum(map(len, turns)) for turns in prompts]) / CHARS_PER_TOKEN
        cost: Array = tokens[:, None] * self.read + OUTPUT_TOKENS * self.written
        return cost


def chosen(value: Array, cost: Array, multiplier: float) -> Ids:
    """(P,) the model of highest value less λ times its cost; λ = 0 is the rule `best`."""
    choice: Ids = (value - multiplier * cost).argmax(axis=1)
    return choice


def multiplier_for(value: Array, cost: Array, budget: float) -> float:
    """The smallest λ, to a thousandth, whose choices cost no more than the budget on average; 0 where `best` does."""
    rows = np.arange(len(value))

    def mean(multiplier: float) -> float:
        return float(cost[rows, chosen(value, cost, multiplier)].mean())

    if mean(0.0) <= budget:
        return 0.0
    assert cost.min(axis=1).mean() <= budget, "the budget is below what the cheapest model costs"
    low, high = 0.0, 1.0 / budget
    while mean(high) > budget:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if mean(middle) <= budget else (middle, high)
    return high


def changed(prompts: Sequence[Turns], form: Callable[[str], str]) -> list[Turns]:
    """The prompts with their last turn in another form."""
    return [(*turns[:-1], form(turns[-1])) for turns in prompts]


def followed(prompts: Sequence[Turns], words: Sequence[str]) -> list[Turns]:
    """The prompts with words after their last turn."""
    return changed(prompts, lambda text: " ".join([text, *words]))


def search(group: Group, prompts: Sequence[Turns], words: Sequence[str], rng: random.Random) -> tuple[list[str], float]:
    """The words that move most prompts to the dearest model, and the mean share that it has with words at random."""
    tried: list[tuple[tuple[float, float], list[str]]] = []
    shares = []
    for k in range(CANDIDATES):
        candidate = rng.sample(words, WORDS)
        if k >= CANDIDATES // 2:
            candidate = list(max(tried)[1])
            for place in rng.sample(range(WORDS), CHANGED_WORDS):
                candidate[place] = rng.choice(words)
        value = group.values(followed(prompts, candidate))
        others = np.delete(value, group.dearest, axis=1).max(axis=1)
        margin = value[:, group.dearest] - others
        tried.append(((float((margin > 0).mean()), float(margin.mean())), candidate))
        if k < CANDIDATES // 2:
            shares.append(tried[-1][0][0])
    return max(tried)[1], float(np.mean(shares))


def sample(config: TrainConfig, data: Path, most: int, rng: random.Random) -> list[Turns]:
    """Some held-out prompts of each set, and the examples."""
    found: list[Turns] = []
    for source in config.data:
        prompts = sorted({as_turns(prompt) for prompt in read_prompts(data / source.path)[0]})
        out = [p for p, is_out in zip(prompts, held_out(prompts, config.held_out, config.seed), strict=True) if is_out]
        found += rng.sample(out, min(most, len(out)))
    examples, _ = read_prompts(ROOT / "examples" / "prompts.jsonl")
    return list(dict.fromkeys([*found, *map(as_turns, examples)]))


def priced(pairs: Sequence[str], p2l: P2L) -> dict[str, tuple[float, float]]:
    """The group given as `NAME=INPUT,OUTPUT`, or the first of `GROUPS` that the bundle knows."""
    if pairs:
        given = {}
        for pair in pairs:
            name, _, prices = pair.rpartition("=")
            read, written = map(float, prices.split(","))
            given[name] = (read, written)
        return given
    for group in GROUPS:
        try:
            Group.of(p2l, group)
        except BundleError:
            continue
        return group
    raise SystemExit("the bundle has none of the groups; give one with --model NAME=INPUT,OUTPUT")


def share(hits: Array) -> str:
    """A share with its standard error."""
    mean = float(hits.mean())
    return f"{mean:.3f} ± {np.sqrt(mean * (1 - mean) / len(hits)):.3f}"


def report(group: Group, prompts: list[Turns], budget: float, looked_at: int, seed: int) -> str:
    """The table of the forms, and the sentence on the search."""
    value, cost = group.values(prompts), group.costs(prompts)
    multiplier = multiplier_for(value, cost, budget)
    best, paced = chosen(value, cost, 0.0), chosen(value, cost, multiplier)
    lines = [
        f"| the same prompt with | prompts that change | same choice: best | paced at {budget:g} USD |",
        "|:---|---:|---:|---:|",
    ]
    for name, form in measured().items():
        rng = random.Random(f"{seed} {name}")  # noqa: S311
        other = changed(prompts, lambda text, f=form, r=rng: f(text, r))
        rows = np.flatnonzero([a != b for a, b in zip(prompts, other, strict=True)])
        if not rows.size:
            continue
        new = [other[i] for i in rows]
        v, c = group.values(new), group.costs(new)
        same = [chosen(v, c, 0.0) == best[rows], chosen(v, c, multiplier) == paced[rows]]
        lines.append(f"| {name} | {rows.size} | {share(same[0])} | {share(same[1])} |")
    seen, judged = prompts[:looked_at], prompts[looked_at:]
    rng = random.Random(f"{seed} search")  # noqa: S311
    found, drawn = search(group, seen, HELD_OUT.words, rng)
    after = chosen(group.values(followed(judged, found)), group.costs(judged), 0.0)
    before = best[looked_at:]
    stay = before != group.dearest
    moved = share(after[stay] == group.dearest) if stay.any() else "nothing"
    lines += [
        "",
        f"| eight words found with {CANDIDATES} candidates on {len(seen)} prompts; {len(judged)} others, best | |",
        "|:---|---:|",
        f"| choices of the dearest model before | {share(before == group.dearest)} |",
        f"| with the words found | {share(after == group.dearest)} |",
        f"| moved there, of the choices of others | {moved} |",
        f"| share of the dearest model with words drawn at random, on the prompts of the search | {drawn:.3f} |",
    ]
    return "\n".join(lines)


def write(folder: Path, text: str) -> None:
    """Puts the tables between their marks in `results.md`."""
    page = folder / "results.md"
    begin, end = "<!-- benchmarks/robustness.py -->\n", "<!-- robustness ends -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"{page}: has no lines {begin.strip()} and {end} to put the tables between")
    with replaced_file(page) as partial:
        partial.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files that the recipe names")
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples" / "starter.yaml")
    parser.add_argument("--model", action="append", default=[], help="NAME=INPUT,OUTPUT in USD per million tokens")
    parser.add_argument("--budget", type=float, default=0.002, help="mean USD of a request under paced")
    parser.add_argument("--prompts", type=int, default=40, help="held-out prompts of each set")
    parser.add_argument("--searched", type=int, default=40, help="prompts that the search sees")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="folder whose results.md gets the tables")
    options = parser.parse_args()
    p2l = P2L.load(options.bundle)
    prices = priced(options.model, p2l)
    rng = random.Random(options.seed)  # noqa: S311
    prompts = sample(read_config(options.recipe), options.data, options.prompts, rng)
    rng.shuffle(prompts)
    text = report(Group.of(p2l, prices), prompts, options.budget, options.searched, options.seed)
    print(f"{len(prompts)} prompts; {', '.join(prices)}\n\n{text}")
    if options.write:
        write(options.write, text)


if __name__ == "__main__":
    main()
