"""Give the text of the few templates that stand within sentences; all others (infoboxes, navigation, notes) give none.

    expand(["lang", "fr", "Bonjour"], conversion, "")      # Bonjour

A template is named here when leaving it out breaks a sentence: foreign words, dates, units, links to other editions.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llmpipe.ingest.variants import Conversion

_Args = list[str]


def expand(parts: list[str], conversion: Conversion, title: str) -> str:
    """Return the text of `{{name|…}}`, given as [name, argument, …]."""
    name = parts[0].strip().replace("_", " ").lower()
    named: dict[str, str] = {}
    args: _Args = []
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        if equals and re.fullmatch(r"\s*[\w -]{1,30}\s*", key):
            named[key.strip().lower()] = value.strip()
        else:
            args.append(part.strip())
    for number in range(1, 10):
        if str(number) in named:
            args += [""] * (number - len(args))
            args[number - 1] = named[str(number)]
    if name in ("noteta", "noteta/lite"):
        if rule := named.get("t"):
            conversion.title = conversion.chosen(rule) or conversion.title
        for rule in args:
            conversion.add_rule(rule)
        return ""
    if name in ("pagename", "fullpagename", "subpagename"):
        return title
    if name in ("!", "=", "(", ")", "-", "·", "•"):
        return {"!": "|", "(": "(", ")": ")", "=": "=", "-": "-"}.get(name, "·")
    head, colon, value = name.partition(":")
    if colon and head in _FUNCTIONS:
        first = parts[0].strip()[len(head) + 1 :].strip()
        return _FUNCTIONS[head]([first, *(p.strip() for p in parts[1:])])
    if name in _PICK:
        return next((args[i] for i in _PICK[name] if i < len(args) and args[i]), "")
    if name in _SPECIAL:
        return _SPECIAL[name](args)
    if name.startswith("lang-") and args:
        return args[0]
    if name.startswith(("link-", "internal link helper/", "illm/")) and args:
        return args[0]
    return ""


_FIRST = (
    "nowrap|nobr|nobold|small|smaller|big|larger|math|mvar|sub|sup|em|strong|code|kbd|samp|var|tt|u|s|q|abbr|keypress|sc|smallcaps|sic|proper name"
    "|not a typo|ipa|transl|quote|cquote|quotation|blockquote|centered|center|poem|poemquote|visible anchor|linktext|ruby|rubyh|ruby-ja|formatnum"
    "|jpn|kor|僻字|pua|unicode|nihongo|nihongo2|uslink|le|link-en|link|internal link helper|ilh|illm|ill|interlanguage link"
)
_PICK: dict[str, tuple[int, ...]] = {
    # which argument is the text; the next ones where it is empty
    **dict.fromkeys(_FIRST.split("|"), (0,)),
    **dict.fromkeys("lang|color|colored link|font color|fontcolor|語言|语言|tooltip text|color box text|zh-lang".split("|"), (1,)),
    **dict.fromkeys(("tsl", "translink"), (3, 2, 1)),
}


def _unit(args: _Args) -> str:
    """`{{convert|10|km|mi}}`: 10 km; a range `{{convert|10|-|15|km}}`: 10-15 km."""
    if len(args) >= 4 and re.match(r"[-\d.]", args[2]) and not re.match(r"[\d.]", args[1]):
        return f"{args[0]} {args[1]} {args[2]} {args[3]}" if args[1].isalpha() else f"{args[0]}{args[1]}{args[2]} {args[3]}"
    return " ".join(args[:2])


def _life(args: _Args) -> str:
    """`{{bd|1881年|9月25日|1936年|10月19日}}`: the dates of birth and death."""
    born, died = "".join(args[:2]), "".join(args[2:4])
    return f"（{born}－{died}）" if born or died else ""


def _date(args: _Args) -> str:
    return "-".join(a for a in args[:3] if a)


def _fraction(args: _Args) -> str:
    return args[0] if len(args) == 1 else f"{args[0]}/{args[1]}" if len(args) == 2 else f"{args[0]} {args[1]}/{args[2]}" if args else ""


_SPECIAL: dict[str, Callable[[_Args], str]] = {
    **dict.fromkeys(("convert", "cvt", "convert2"), _unit),
    **dict.fromkeys(("bd", "生卒"), _life),
    **dict.fromkeys(("start date", "end date", "birth date", "death date", "birth date and age", "dts", "date", "film date"), _date),
    **dict.fromkeys(("frac", "fraction"), _fraction),
    "as of": lambda args: ("As of " + _date(args)) if args else "",
    "ndash": lambda args: "–",
    "mdash": lambda args: "—",
    **dict.fromkeys(("spaced ndash", "snd", "spnd", "spaces"), lambda args: " – "),
    **dict.fromkeys(("nbsp", "space"), lambda args: " "),
    **dict.fromkeys(("ubl", "unbulleted list", "plainlist", "hlist", "flatlist"), lambda args: "\n".join(args)),
}

_FUNCTIONS: dict[str, Callable[[_Args], str]] = {
    "formatnum": lambda args: args[0],
    "lc": lambda args: args[0].lower(),
    "uc": lambda args: args[0].upper(),
    "ucfirst": lambda args: args[0][:1].upper() + args[0][1:],
    "lcfirst": lambda args: args[0][:1].lower() + args[0][1:],
    "#if": lambda args: args[1] if args[0] and len(args) > 1 else args[2] if len(args) > 2 else "",
}
