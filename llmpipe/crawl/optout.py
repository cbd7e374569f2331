"""Read what a site says about training AI on its pages: who objects, in which words, and where they stand.

    policy = site_policy(robots_body, ai_txt, tdmrep_json, agent="llmpipe", ai_agents=AI_AGENTS)
    policy.before(url)                    # Verdict(optout=True, evidence=("robots:GPTBot Disallow: /",)): no need to fetch
    policy.verdict(url, headers, meta)    # with what the page itself says

The signals, and what they are taken from:

- robots.txt groups that name an AI agent and disallow the path (RFC 9309; never through `*`).
- Content-Signal `ai-train=no` (contentsignals.org) and Content-Usage `train-ai=n` (drafts aipref-attach-05, aipref-vocab-08 and
  their predecessors) in robots.txt, for all or for our agent or for an AI agent, and as headers.
- TDMRep (W3C community group, 2024-05-10): /.well-known/tdmrep.json, header and meta `tdm-reservation`; the later overrides.
- X-Robots-Tag and meta robots: `noai`; `noindex`, `none` and `noai` addressed to an AI agent.
- /ai.txt (Spawning): robots.txt's grammar about file types, for all who train.

`noimageai` and RSL's `License` are noted and decide nothing about text. If signals of two kinds disagree, the objection wins
(aipref-vocab, "Combining Preferences"). Nothing here raises, whatever the bytes, and all of it is linear in their number.
Pure functions, no input or output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmpipe.crawl import robots
from llmpipe.crawl.robots import Robots, Rule, Rules, Statement, printable, product_token

AI_AGENTS = (
    "GPTBot", "CCBot", "Google-Extended", "ClaudeBot", "anthropic-ai", "Claude-Web", "Applebot-Extended", "Bytespider", "meta-externalagent", "FacebookBot",
    "Amazonbot", "PerplexityBot", "cohere-ai", "cohere-training-data-crawler", "Diffbot", "AI2Bot", "DeepSeekBot", "ChatGLM-Spider", "PanguBot", "Timpibot",
    "omgili", "omgilibot", "Webzio-Extended",
)  # fmt: skip
"""Agents that collect for training, and tokens that stand for it. Those that fetch for one user or for search (ChatGPT-User, OAI-SearchBot) are none."""

MAX_RULES = 1_000
"""Of a tdmrep.json; later ones are ignored."""
MAX_VALUE_CHARS = 8_192
MAX_EVIDENCE, MAX_EVIDENCE_CHARS = 8, 300

_TRAINING = frozenset({"train-ai", "ai-train", "train-genai", "ai", "genai"})
"""Categories of use that are training: of aipref-vocab-05 to -08, Content Signals, and aipref-vocab-00 to -03."""
_BROADER = frozenset({"all", "bots", "tdm"})
"""Categories that held training where it was not named itself, while the drafts had a hierarchy."""
_YES_NO = {"y": True, "yes": True, "n": False, "no": False}
_MEMBER = re.compile(r'(?:[^",]|"[^"]*"?)+')
_PREFERENCE = re.compile(r"([A-Za-z*][A-Za-z0-9_.*-]*)[ \t]*=[ \t]*([A-Za-z]+)[ \t]*(?:;.*)?", re.S)
_DOCUMENTS = frozenset("txt text md rst tex pdf doc docx odt rtf wks wps wpd xml json csv epub".split())
_SUFFIX = re.compile(r"\.([A-Za-z0-9]{1,10})")
_NO_AI = frozenset({"noai", "noindex", "none"})


@dataclass(frozen=True, slots=True)
class Signal:
    optout: bool | None
    """True: an objection; False: a permission; None: noted, decides nothing."""
    evidence: str
    """Where it stands and its words."""


@dataclass(frozen=True, slots=True)
class Verdict:
    optout: bool | None = None
    """None: nobody said anything that decides."""
    evidence: tuple[str, ...] = ()
    """Of the signals that decided; of those that were noted, where none did."""

    @property
    def word(self) -> str:
        return {True: "yes", False: "no", None: "unclear"}[self.optout]

    @property
    def value(self) -> str:
        return "; ".join(self.evidence)


NOTHING = Verdict()


def judge(signals: Iterable[Signal]) -> Verdict:
    """One objection decides; else one permission."""
    found = list(signals)
    for optout in (True, False, None):
        if evidence := tuple(dict.fromkeys(s.evidence[:MAX_EVIDENCE_CHARS] for s in found if s.optout is optout)):
            return Verdict(optout, evidence[:MAX_EVIDENCE])
    return NOTHING


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """What an origin's robots.txt, ai.txt and tdmrep.json say of its pages."""

    agent: str
    """Our product token."""
    tokens: frozenset[str] = frozenset()
    """Product tokens of the AI agents, in lower case."""
    named: tuple[tuple[str, Rules], ...] = ()
    """AI agents that robots.txt names, with their rules."""
    statements: tuple[tuple[Statement, ...], ...] = ()
    """Of everybody, of us, and of each AI agent: in each lot, the longest path decides."""
    notes: tuple[Signal, ...] = ()
    ai_txt: tuple[Rules, ...] = ()
    reservations: tuple[Rule, ...] = ()
    """Of tdmrep.json, in its order; one that allows lifts."""

    def before(self, url: str) -> Verdict:
        """Judge by what is known before the page is: all but tdmrep.json, which the page may override."""
        return judge(self._before(url)) if self.named or self.statements or self.ai_txt or self.notes else NOTHING

    def verdict(self, url: str, headers: Sequence[tuple[str, str]] = (), meta: Sequence[tuple[str, tuple[str, ...]]] = ()) -> Verdict:
        """Judge by everything: `headers` of the answer, `meta` as `Extracted.meta_robots` has it."""
        signals = [*self._before(url), *_usage_headers(headers), *self._directives(headers, meta)]
        if (tdm := self._reservation(url, headers, meta)) is not None:
            signals.append(tdm)
        return judge(signals) if signals else NOTHING

    def reserves(self, url: str) -> bool:
        """Whether tdmrep.json reserves a page, unless the page lifts it."""
        found = self._reservation(url, (), ())
        return found is not None and found.optout is True

    def _before(self, url: str) -> list[Signal]:
        signals = []
        for name, rules in self.named:
            found = rules.verdict(url)
            if not found.allowed:
                signals.append(Signal(True, f"robots:{name} {found.rule}"))
                break  # sites name them by the dozen
        if self.statements:
            target, decoded = robots.targets(url)
            for lot in self.statements:
                signals += _longest(lot, target, decoded)
        for rules in self.ai_txt:
            if (line := _refused_by_ai_txt(rules, url)) is not None:
                signals.append(Signal(True, f"ai.txt {line}"))
                break
        return [*signals, *self.notes]

    def _reservation(self, url: str, headers: Sequence[tuple[str, str]], meta: Sequence[tuple[str, tuple[str, ...]]]) -> Signal | None:
        """TDMRep, "Processing priority": the file, overridden by the header, overridden by the page's metadata."""
        in_meta = [(name, value) for name, directives in meta if name.startswith("tdm-") for value in directives or ("",)]
        for place, pairs in (("meta", in_meta), ("header", [(k.lower(), v.strip()) for k, v in headers])):
            values = [value for name, value in pairs if name == "tdm-reservation" and value in ("0", "1")]
            if values:
                policy = next((f", tdm-policy: {printable(v)}" for k, v in pairs if k == "tdm-policy" and v), "")
                return Signal("1" in values, f"{place} tdm-reservation: {max(values)}{policy if '1' in values else ''}")
        if self.reservations:
            target, decoded = robots.targets(url)
            for rule in self.reservations:
                if rule.matches(target, decoded):
                    return Signal(not rule.allow, f"tdmrep.json {rule.line}")
        return None

    def _directives(self, headers: Sequence[tuple[str, str]], meta: Sequence[tuple[str, tuple[str, ...]]]) -> list[Signal]:
        said = [("header X-Robots-Tag:", name, directive) for name, directive in robots.tag_directives(headers)]
        said += [("meta", "" if name == "robots" else name, directive) for name, directives in meta for directive in directives]
        signals = []
        for place, name, directive in said:
            token = product_token(name)
            to_all, to_ai = not name or token == self.agent, bool(name) and token in self.tokens
            if directive == "noimageai" and (to_all or to_ai):
                optout = None
            elif (to_all and directive == "noai") or (to_ai and directive in _NO_AI):
                optout = True
            else:
                continue
            who = f" {name or 'robots'}:" if place == "meta" else f" {name}:" if name else ""
            signals.append(Signal(optout, f"{place}{printable(who)} {directive}"))
        return signals


def site_policy(robots_txt: bytes, ai_txt: bytes, tdmrep: bytes, *, agent: str, ai_agents: Sequence[str] = AI_AGENTS) -> SitePolicy:
    """Compile the three files of an origin; an empty body is a file that isn't there."""
    parsed, token = robots.parse(robots_txt), product_token(agent)
    tokens = {product_token(name): name for name in reversed(ai_agents)}
    lots = _statements(parsed, token, tokens)
    return SitePolicy(
        agent=token,
        tokens=frozenset(tokens),
        named=_named(parsed, ai_agents),
        statements=tuple(dict.fromkeys(tuple(lot) for lot in lots if lot)),
        notes=tuple(Signal(None, f"robots License: {url}") for url in parsed.licenses),
        ai_txt=_parse_ai_txt(ai_txt, [token, *tokens]),
        reservations=parse_tdmrep(tdmrep),
    )


def _named(parsed: Robots, ai_agents: Sequence[str]) -> tuple[tuple[str, Rules], ...]:
    """List the AI agents that groups name, those with the rules of one before them left out."""
    there, found = parsed.agents(), {}
    for name in ai_agents:
        if product_token(name) in there and (rules := parsed.rules(name, wildcard=False)) is not None and any(not r.allow for r in rules.rules):
            found.setdefault(rules.rules, (name, rules))
    return tuple(found.values())


# --- preferences: Content-Signal, Content-Usage ----------------------------------------------------------------------------


def training_preference(text: str, *, separators: str = ",") -> bool | None:
    """Read `search=yes, ai-train=no`: True allows training, False objects, None says nothing of it.

    The syntax is a dictionary of structured fields (RFC 9651), of which the last member of a name counts and only bare
    tokens are preferences. Read in good faith: capitals, `yes` for `y`, and a broken member beside a whole one are forgiven,
    since who wrote `train-ai=N` did object.
    """
    stated: dict[str, bool | None] = {}
    text = text[:MAX_VALUE_CHARS]
    for separator in separators[1:]:
        text = text.replace(separator, ",")
    for member in _MEMBER.findall(text):
        found = _PREFERENCE.fullmatch(member.strip())
        name = (found[1] if found else member.strip().partition(";")[0].partition("=")[0].strip()).lower()
        stated[name] = _YES_NO.get(found[2].lower()) if found else None
    for names in (_TRAINING, _BROADER):
        said = {stated[name] for name in names if stated.get(name) is not None}
        if said:
            return False not in said
    return None


def _statements(parsed: Robots, agent: str, tokens: Iterable[str]) -> list[list[Statement]]:
    """Choose the lines that count: ours, or everybody's where ours say nothing of training, and those for AI agents."""
    there = parsed.agents()
    lots = [_about_training(parsed.statements_for(agent)) if agent in there else []]
    if not lots[0]:
        lots[0] = _about_training(parsed.statements_for("*"))
    return lots + [_about_training(parsed.statements_for(token)) for token in sorted(there.intersection(tokens) - {agent})]


def _about_training(lines: list[Statement]) -> list[Statement]:
    return [line for line in lines if _preference_of(line) is not None]


def _preference_of(line: Statement) -> bool | None:
    return training_preference(line.value, separators=",;" if line.key == "Content-Signal" else ",")


def _longest(lines: Sequence[Statement], target: str, decoded: str) -> list[Signal]:
    """Of each kind of line, take those with the longest path that matches."""
    signals = []
    for key in ("Content-Signal", "Content-Usage"):
        matching = [line for line in lines if line.key == key and line.rule.matches(target, decoded)]
        length = max((line.rule.length for line in matching), default=0)
        signals += [Signal(not _preference_of(line), f"robots {line.line}") for line in matching if line.rule.length == length]
    return signals


def _usage_headers(headers: Sequence[tuple[str, str]]) -> list[Signal]:
    signals = []
    for name, separators in (("Content-Usage", ","), ("Content-Signal", ",;")):
        value = ", ".join(v for k, v in headers if k.lower() == name.lower())
        if value and (allowed := training_preference(value, separators=separators)) is not None:
            signals.append(Signal(not allowed, f"header {name}: {printable(value)}"))
    return signals


# --- ai.txt --------------------------------------------------------------------------------------------------------------


def _parse_ai_txt(body: bytes, agents: Sequence[str]) -> tuple[Rules, ...]:
    """Compile the groups that speak to us: to our agent or else to `*`, and to AI agents. A page of HTML is no ai.txt."""
    if not body or _is_markup(body):
        return ()
    parsed = robots.parse(body)
    there, found = parsed.agents(), {}
    for number, agent in enumerate(agents):
        if number == 0 or agent in there:
            rules = parsed.rules(agent, wildcard=number == 0)
            if rules is not None and any(not r.allow for r in rules.rules):
                # of equal length, Disallow goes first: here it is the objection that must not be missed
                found[Rules(tuple(sorted(rules.rules, key=lambda r: (-r.length, r.allow))))] = None
    return tuple(found)


def _is_markup(body: bytes) -> bool:
    return body[:512].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


def _refused_by_ai_txt(rules: Rules, url: str) -> str | None:
    """Return the Disallow line that decides. `*.html` means a type of file, and stands for every page without a document's suffix."""
    target, decoded = robots.targets(url)
    suffix = urlsplit(url).path.rpartition("/")[2].rpartition(".")[2].lower()
    types = {suffix} if suffix in _DOCUMENTS else {"html", "htm"}
    for rule in rules.rules:
        kind = _SUFFIX.fullmatch(rule.parts[1]) if len(rule.parts) == 2 and rule.parts[0] in ("", "/") else None
        if kind[1].lower() in types if kind else rule.matches(target, decoded):
            return None if rule.allow else rule.line
    return None


# --- tdmrep.json ---------------------------------------------------------------------------------------------------------


def parse_tdmrep(body: bytes) -> tuple[Rule, ...]:
    """Compile `[{"location": "/a/*", "tdm-reservation": 1, "tdm-policy": URL}]`, dropping rules that break the protocol."""
    if not body or _is_markup(body):
        return ()
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    rules = []
    for entry in (found if isinstance(found, list) else [found])[:MAX_RULES]:
        if not isinstance(entry, dict):
            continue
        location, reservation, policy = entry.get("location"), entry.get("tdm-reservation"), entry.get("tdm-policy")
        if not isinstance(location, str) or not location or isinstance(reservation, bool | float) or reservation not in (0, 1, "0", "1"):
            continue
        location = printable(location[:MAX_VALUE_CHARS])
        rule = robots.compile_rule(location, allow=str(reservation) == "0")
        line = f"{location} tdm-reservation: {reservation}"
        if isinstance(policy, str) and policy and not rule.allow:
            line += f", tdm-policy: {printable(policy[:MAX_VALUE_CHARS])}"
        rules.append(Rule(rule.allow, line, rule.length, rule.parts, rule.anchored, rule.decoded))
    return tuple(rules)
