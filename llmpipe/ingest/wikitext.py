"""Turn MediaWiki's wikitext into plain text, in time linear in its length.

    plain_text("'''北京'''是[[中国|中华人民共和国]]的首都。<ref>x</ref>", wiki)     # 北京是中华人民共和国的首都。

Kept: prose, headings, lists, the text of links, cells of tables as `a | b`, formulas as `$…$`, code. Left out: templates
but for those that hold text of a sentence (wikitemplates.py), references, files, galleries, categories, comments.
One pass over brackets with a stack; what is never closed stays as text. Chinese variants are in variants.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape

from llmpipe.ingest.variants import Conversion
from llmpipe.ingest.wikitemplates import expand

MAX_LINK_CHARS = 2_000
MAX_DEPTH = 40
"""Brackets nested deeper are text. Each level is copied once, so this bounds the cost."""
_FILES = {"file", "image", "media", "文件", "档案", "檔案", "图像", "圖像", "图片", "圖片", "媒体", "媒體", "ファイル", "画像", "파일", "fichier", "datei", "bild", "archivo", "imagen", "файл", "изображение"}
_CATEGORIES = {"category", "分类", "分類", "カテゴリ", "분류", "catégorie", "kategorie", "categoría", "категория"}
_LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z]{2,10}){0,2}$|simple$|be-x-old$")
_NO_LANGUAGES = {"wikt", "cat", "tag", "mw", "phab", "doi", "irc"}

_DROPPED = {"ref", "references", "gallery", "timeline", "score", "imagemap", "graph", "mapframe", "maplink", "templatedata", "hiero", "indicator", "categorytree", "inputbox", "templatestyles", "style", "script", "includeonly", "section", "ce", "chart"}
_VERBATIM = {"nowiki", "pre", "syntaxhighlight", "source", "math", "chem", "code"}
_TAG = re.compile(r"<(!--|/?[A-Za-z][A-Za-z0-9]{0,20})")
_PROTECTED = re.compile("\x7f([0-9]+)\x7f")
_TOKEN = re.compile(r"\{+|-\{|\}-|\}+|\[\[|\]\]|\[(?=(?:https?:|ftp:|mailto:|news:)?//|mailto:)|\]|\||\n[ \t:*#;]*\{\||\n[ \t]*\|\}(?!\})", re.I)
_EMPTY_PARENTHESES = re.compile(r"[ \t]?[(（][\s,，、;；:：]{0,40}[)）]")
_HANGING = re.compile(r"([(（])[\s,，、;；:：]{1,40}|[\s,，、;；]{1,40}([)）])")  # bounded: a long run would be looked at from each of its places
_SWITCH = re.compile("__[A-Z]{3,20}__|__[\u4e00-\u9fff]{2,8}__")


@dataclass(slots=True)
class Wiki:
    """What the site says of itself."""

    base: str = ""
    """`https://zh.wikipedia.org/wiki/`."""
    language: str | None = None
    files: set[str] = field(default_factory=lambda: set(_FILES))
    """Names of the namespaces for files, in lower case."""
    categories: set[str] = field(default_factory=lambda: set(_CATEGORIES))


def plain_text(text: str, wiki: Wiki, *, variant: str = "zh-hans", title: str = "") -> tuple[str, str]:
    """Return (text, title): the title as the page's conversion rules give it."""
    conversion = Conversion(variant)
    kept: list[str] = []
    text = _without_tags(text.replace("\x7f", "").replace("\r\n", "\n"), kept)
    text = _Page("\n" + text, wiki, conversion, kept, title).read()
    text = _lines(text)
    text = conversion.apply(text)
    for _ in range(3):  # code may stand within a variant
        text = _PROTECTED.sub(lambda m: kept[int(m[1])] if int(m[1]) < len(kept) else "", text)
    text = _HANGING.sub(lambda m: m[1] or m[2], _EMPTY_PARENTHESES.sub("", text))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip(), conversion.title or conversion.apply(title)


# --- comments and tags -----------------------------------------------------------------------------------------------


def _without_tags(text: str, kept: list[str]) -> str:
    """Remove comments and tags, drop the content of some, put that of others aside as `\\x7fN\\x7f`."""
    out: list[str] = []
    position = 0
    endless: set[str] = set()  # tags that are closed nowhere further on: looked for once
    lowered = text.lower()
    if len(lowered) != len(text):  # İ and the like change length
        lowered = text
    while (match := _TAG.search(text, position)) is not None:
        out.append(text[position : match.start()])
        name = match[1].lower()
        if name == "!--":
            end = text.find("-->", match.end())
            position = len(text) if end < 0 else end + 3
            # a comment alone on its line goes with the line, as in MediaWiki
            if out and out[-1].endswith("\n") and text.startswith("\n", position):
                position += 1
            continue
        end = text.find(">", match.end(), match.end() + 2_000)
        if end < 0:
            out.append("<")
            position = match.start() + 1
            continue
        position, closed = end + 1, text[end - 1] == "/"
        if name in ("br", "br/", "/p", "p", "/div", "div", "li", "/li", "tr", "/tr", "hr", "blockquote", "/blockquote", "poem", "/poem"):
            out.append("\n")
        elif (name in _DROPPED or name in _VERBATIM) and not closed and name not in endless:
            close = lowered.find(f"</{name}", position)
            if close < 0:
                endless.add(name)
                if name in _DROPPED:  # a <ref> without an end hides what follows up to the next line
                    line_end = text.find("\n", position)
                    position = len(text) if line_end < 0 else line_end
                continue
            body, after = text[position:close], text.find(">", close)
            position = len(text) if after < 0 else after + 1
            if name in _VERBATIM:
                out.append(_put(kept, _verbatim(name, body)))
    out.append(text[position:])
    return "".join(out)


def _put(kept: list[str], text: str) -> str:
    kept.append(text)
    return f"\x7f{len(kept) - 1}\x7f"


def _verbatim(name: str, body: str) -> str:
    if name in ("math", "chem"):
        return f"${' '.join(unescape(body).split())}$"
    body = unescape(body)
    if name in ("pre", "syntaxhighlight", "source") and "\n" in body:
        return "\n" + body.strip("\n") + "\n"
    return body


# --- brackets --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Frame:
    kind: str
    """page, template, parameter, link, external, variant or table."""
    opening: str
    parts: list[list[str]] = field(default_factory=lambda: [[]])

    def add(self, text: str) -> None:
        self.parts[-1].append(text)

    def strings(self) -> list[str]:
        return ["".join(part) for part in self.parts]


@dataclass(slots=True)
class _Page:
    """One page while its brackets are read: what is open, and what was put aside."""

    text: str
    wiki: Wiki
    conversion: Conversion
    kept: list[str]
    title: str
    stack: list[_Frame] = field(default_factory=lambda: [_Frame("page", "")])

    def read(self) -> str:
        """Replace templates, links, tables and variants, innermost first."""
        position = 0
        while (match := _TOKEN.search(self.text, position)) is not None:
            if match.start() > position:
                self.stack[-1].add(self.text[position : match.start()])
            position = self._token(match[0], match.end())
        self.stack[-1].add(self.text[position:])
        while len(self.stack) > 1:
            frame = self.stack.pop()
            self.stack[-1].add("|".join(frame.strings()))
        return "".join(self.stack[0].strings())

    def _token(self, token: str, after: int) -> int:
        """Open or close what a token says; return where reading goes on."""
        top, room = self.stack[-1], len(self.stack) + len(token) // 2 <= MAX_DEPTH
        if token[0] == "{" and len(token) > 1 and room:
            pairs = len(token) // 2
            for n in range(pairs):
                last = n == pairs - 1 and len(token) % 2 == 1
                self.stack.append(_Frame("parameter", "{{{") if last else _Frame("template", "{{"))
        elif token == "-{" and room:
            if self.text.startswith("{", after) and not self.text.startswith("{{", after):
                top.add("-")  # -{{x}}: a hyphen before a template
                return after - 1
            self.stack.append(_Frame("variant", token))
        elif token == "}-" and self._unwind("variant"):
            self._close(self._variant())
        elif token[0] == "}" and len(token) > 1 and token != "}-":
            return self._braces(len(token), after)
        elif token == "[[" and room:
            self.stack.append(_Frame("link", token))
        elif token == "[" and room and "]" in self.text[after : after + MAX_LINK_CHARS].partition("\n")[0]:
            self.stack.append(_Frame("external", token))
        elif token[0] == "]" and top.kind == "external":
            self._close(_external("|".join(top.strings())))
            return after - len(token) + 1  # of ]]], the first closes the inner one
        elif token == "]]" and top.kind == "link":
            self._close(_link(top.strings(), self.wiki))
        elif token == "|" and top.kind in ("template", "parameter", "link"):
            top.parts.append([])
        elif token.endswith("{|") and room:
            self.stack.append(_Frame("table", "{|"))
        elif token.endswith("|}") and self._unwind("table"):
            self._close("\n" + _table("|".join(self.stack[-1].strings())) + "\n")
        else:
            top.add(token)
        return after

    def _close(self, result: str) -> None:
        self.stack.pop()
        self.stack[-1].add(result)

    def _unwind(self, *kinds: str) -> bool:
        """Make text of what is open above the nearest frame of these kinds; False when there is none."""
        if not any(f.kind in kinds for f in self.stack):
            return False
        while self.stack[-1].kind not in kinds:
            frame = self.stack.pop()
            self.stack[-1].add(frame.opening + "|".join(frame.strings()))
        return True

    def _variant(self) -> str:
        """Resolve the variants on top, and protect the text from the page's own rules."""
        self.kept.append(self.conversion.markup("|".join(self.stack[-1].strings())))
        return f"\x7f{len(self.kept) - 1}\x7f"

    def _braces(self, left: int, after: int) -> int:
        """Close templates and parameters with a run of braces."""
        while left:
            top = self.stack[-1]
            if left == 1 and top.kind == "variant" and self.text.startswith("-", after):
                self._close(self._variant())
                return after + 1
            if left >= 2 and top.kind in ("link", "external") and self._unwind("template", "parameter"):
                continue
            if left >= 3 and top.kind == "parameter":
                self._close("|".join(top.strings()[1:2]))  # {{{name|default}}}
                left -= 3
            elif left >= 2 and top.kind in ("template", "parameter"):
                self._close(expand(top.strings(), self.conversion, self.title))
                left -= 2
            else:
                top.add("}")
                left -= 1
        return after


def _link(parts: list[str], wiki: Wiki) -> str:
    target = parts[0].strip()
    shown = parts[-1].strip() if len(parts) > 1 else ""
    if target.startswith(":"):
        return shown or target.lstrip(":").strip()
    prefix, colon, rest = target.partition(":")
    if colon and rest:
        name = prefix.strip().lower().replace("_", " ")
        if name in wiki.files or name in wiki.categories:
            return ""
        if len(parts) == 1 and _LANGUAGE_LINK.match(prefix.strip()) and name not in _NO_LANGUAGES and not rest.startswith(" "):
            return ""
        if len(parts) > 1 and not shown:
            return _without_hint(rest)
    if len(parts) > 1:
        return shown or _without_hint(target)
    return target.replace("_", " ").lstrip("#")


def _without_hint(target: str) -> str:
    """`Mercury (planet)|`: Mercury, the pipe trick."""
    opening = max(target.rfind("("), target.rfind("（"))
    return target[:opening].strip() if opening > 0 and target.endswith((")", "）")) else target.strip()


def _external(text: str) -> str:
    """`[http://x label]`: the label."""
    return text.partition(" ")[2].strip()


def _table(text: str) -> str:
    """Give the rows of a table, cells divided by ` | `, without attributes; nothing for one of a single column of nothing."""
    rows: list[list[str]] = [[]]
    caption = ""
    for number, line in enumerate(text.split("\n")):
        line = line.strip()
        if number == 0:
            continue  # attributes of the table
        if line.startswith("|-"):
            rows.append([])
        elif line.startswith("|+"):
            caption = _cell(line[2:])
        elif line.startswith(("|", "!")):
            cells = line[1:]
            rows[-1] += [_cell(c) for c in re.split(r"\|\||!!" if line[0] == "!" else r"\|\|", cells)]
        elif line and rows[-1]:
            rows[-1][-1] = f"{rows[-1][-1]} {line}".strip()
    lines = [" | ".join(cell for cell in row if cell) for row in rows]
    return "\n".join(line for line in [caption, *lines] if line)


def _cell(text: str) -> str:
    """Take the attributes off a cell: `style="…" | text`."""
    head, bar, rest = text.partition("|")
    return rest.strip() if bar and ("=" in head or not head.strip()) and "[[" not in head else text.strip()


# --- lines -----------------------------------------------------------------------------------------------------------


def _lines(text: str) -> str:
    """Headings, lists, quotes, entities; a heading with nothing under it goes."""
    out: list[str] = []
    headings: list[tuple[int, str]] = []  # seen, and nothing under them yet
    for line in unescape(_SWITCH.sub("", text)).replace("\xa0", " ").split("\n"):
        line = re.sub(r"'{2,5}", "", line).rstrip()
        level = min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")), 6)
        if level and line.strip("= \t"):
            headings = [h for h in headings if h[0] < level] + [(level, line.strip("= \t"))]
            continue
        bare = line.lstrip("*#:;").strip() if line[:1] in "*#:;" else line.strip() if line.strip() else ""
        if not bare or re.fullmatch(r"-{4,}", bare):
            out.append("")
            continue
        for _, heading in headings:
            out += ["", heading, ""]
        headings = []
        mark = re.match(r"[*#:;]*", line)[0]  # type: ignore[index]
        out.append(f"- {bare}" if "*" in mark or "#" in mark else bare if mark else line)
    return "\n".join(out)
