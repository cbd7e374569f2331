"""Turn the bytes of a page or file into text, whatever its server said of them.

    decoded = decode(body, "text/html; charset=gb2312")      # .text .encoding .source .replacement_ratio

Order: byte-order mark, valid UTF-8, the HTTP charset, the one in the page, detection. One bad byte, or a body cut in
the middle of a character, never changes the verdict for a whole page: errors become U+FFFD and are counted.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

MAX_ERROR_RATIO = 0.001
"""A label that leaves more U+FFFD than this per character loses to the next candidate."""
PRESCAN_BYTES = 8_192
"""Where a page may name its charset. WHATWG says 1,024; pages of news sites put it later."""
SAMPLE_BYTES = 16_384
"""What the detector reads, taken from lines that hold bytes above 0x7F. Its cost grows with this."""


@dataclass(frozen=True, slots=True)
class Decoded:
    text: str
    encoding: str
    """Name of the Python codec."""
    source: str
    """What decided: bom, http, meta, utf-8, detected, fallback."""
    replacement_ratio: float
    """U+FFFD per character."""


# Labels by codec, after the WHATWG Encoding Standard: browsers read gb2312 as GB18030, latin-1 as windows-1252.
_LABELS = {
    "utf-8": "utf-8 utf8 unicode-1-1-utf-8 unicode11utf8 unicode20utf8 x-unicode20utf8 utf-8-sig utf8mb4",
    "gb18030": "gb18030 gbk gb2312 gb_2312 gb_2312-80 x-gbk chinese csgb2312 csiso58gb231280 iso-ir-58 cp936 ms936 windows-936 euc-cn",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5 cp950 windows-950",
    "cp932": "shift_jis shift-jis sjis x-sjis ms932 ms_kanji windows-31j csshiftjis cp932",
    "euc_jp": "euc-jp eucjp x-euc-jp cseucpkdfmtjapanese",
    "iso2022_jp_ext": "iso-2022-jp csiso2022jp",
    "cp949": "euc-kr euckr ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 korean cseuckr csksc56011987 iso-ir-149 windows-949 cp949",
    "cp1252": "iso-8859-1 iso8859-1 iso88591 iso_8859-1 latin1 latin-1 l1 ascii us-ascii ansi_x3.4-1968 cp1252 windows-1252 x-cp1252 cp819 ibm819 iso-ir-100 csisolatin1",
    "iso8859_2": "iso-8859-2 iso8859-2 iso_8859-2 latin2 l2 csisolatin2",
    "iso8859_3": "iso-8859-3 iso8859-3 latin3 l3",
    "iso8859_4": "iso-8859-4 iso8859-4 latin4 l4",
    "iso8859_5": "iso-8859-5 iso8859-5 iso_8859-5 cyrillic csisolatincyrillic",
    "iso8859_6": "iso-8859-6 iso8859-6 iso-8859-6-e iso-8859-6-i arabic ecma-114 asmo-708",
    "iso8859_7": "iso-8859-7 iso8859-7 greek greek8 sun_eu_greek elot_928 ecma-118",
    "iso8859_8": "iso-8859-8 iso8859-8 iso-8859-8-i iso-8859-8-e logical visual hebrew",
    "cp1254": "iso-8859-9 iso8859-9 latin5 l5 cp1254 windows-1254 x-cp1254",
    "iso8859_10": "iso-8859-10 iso8859-10 latin6 l6",
    "cp874": "iso-8859-11 iso8859-11 tis-620 dos-874 windows-874 cp874",
    "iso8859_13": "iso-8859-13 iso8859-13",
    "iso8859_14": "iso-8859-14 iso8859-14",
    "iso8859_15": "iso-8859-15 iso8859-15 iso_8859-15 l9",
    "iso8859_16": "iso-8859-16",
    "cp866": "ibm866 866 cp866 csibm866",
    "koi8_r": "koi8-r koi koi8 koi8_r cskoi8r",
    "koi8_u": "koi8-u koi8-ru",
    "mac_roman": "macintosh mac x-mac-roman csmacintosh",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp1250": "windows-1250 cp1250 x-cp1250",
    "cp1251": "windows-1251 cp1251 x-cp1251",
    "cp1253": "windows-1253 cp1253 x-cp1253",
    "cp1255": "windows-1255 cp1255 x-cp1255",
    "cp1256": "windows-1256 cp1256 x-cp1256",
    "cp1257": "windows-1257 cp1257 x-cp1257",
    "cp1258": "windows-1258 cp1258 x-cp1258",
    "utf-16-le": "utf-16 utf-16le unicode ucs-2 iso-10646-ucs-2 csunicode unicodefeff",
    "utf-16-be": "utf-16be unicodefffe",
}
_CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}

# The commonest characters of each script by the codecs that may hold them. In running text they make a third of what is
# not ASCII and more; read with a wrong codec, a twentieth. That gap decides between codecs that all decode without error.
_HANS = "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长理定位数据新明第分信版件使号法机体实加进程性现关点业外全高系统网页中文"
_HANT = "的一是不了在人有我他這中大來上國個到說們為子和你地出道也時年得就那要下以生會自著去之過家學對可裡後小麼心多天而能好都然沒日於起還發成事只作當想看文無開手十用主行方又如前所本見經頭面公同三已老從動兩長理定位數據新明第分信版件使號法機體實加進程性現關點業外全高系統網頁"
_KANA = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30F7), 0x30FC)))
_HANGUL = "이다는을의에가은하고지한를로도기서사그나인리어자시수대정해일아들부전스보장제있구주상과여니라원적성선유게안공만비오면간국연마신으치우무관트문세조소계경되미동화중학않까했습와행회것했"
_CYRILLIC = "оеаинтсрвлкм"
_DOUBLE_BYTE = {
    "gb18030": frozenset(_HANS + _HANT),
    "big5hkscs": frozenset(_HANT),
    "cp932": frozenset(_KANA),
    "euc_jp": frozenset(_KANA),
    "cp949": frozenset(_HANGUL),
}
_SINGLE_BYTE = {
    "cp1251": frozenset(_CYRILLIC),
    "koi8_r": frozenset(_CYRILLIC),
    "cp866": frozenset(_CYRILLIC),
    "iso8859_5": frozenset(_CYRILLIC),
    "cp1253": frozenset("αοιετσνηυρκπς"),
    "cp1255": frozenset("יולהאתרבמשםנ"),
    "cp1256": frozenset("اليمنرتوبةدسع"),
    "cp874": frozenset("านรอกเงมยลวดท่้ัสคี"),
}
_SURE_DOUBLE, _SURE_SINGLE = 0.2, 0.5
CAPITALS = 0.04
"""Taken off for text in capitals. More of it costs pages that are all in capitals, less those in Greek."""
_LIKELY_DOUBLE, _LIKELY_SINGLE = 0.08, 0.35
"""Enough for the best of them where bytes above 0x7F stand together, so that the text is in no Latin script."""

# Letters beyond ASCII of the languages of each Latin code page. A page is in one language, so its accents fit one of these
# sets; read with another code page they fall into several.
_LATIN = {
    "cp1252": "éèàêçùôîâûëïœæ äöüß áéíóúñü áâãàçéêíóôõú àèéìòù ëïéèöü åäöé æøåé áéíóúýðþæö",
    "cp1250": "áčďéěíňóřšťúůýž ąćęłńóśźż áéíóöőúüű ăâîşţ čćđšž áäčďéíĺľňóôŕšťúýž",
    "cp1254": "çğıöşüâîûi̇",
    "cp1257": "ąčęėįšųūž āčēģīķļņšūž äõöüšž",
    "cp1258": "ăâđêôơưàáãèéìíòóõùúý\u0300\u0301\u0303\u0309\u0323",
}
_ALPHABETS = {codec: [frozenset(letters) for letters in languages.split(" ")] for codec, languages in _LATIN.items()}
_PUNCTUATION = frozenset("\u00a0«»“”„‘’‚–—…·•°§©®€£¿¡ºª²³½×")

_BOMS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_COMMENT = re.compile(rb"<!--.*?-->", re.S)
_META = re.compile(rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.\-]{2,40})", re.I)
_XML = re.compile(rb"^\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9_:.\-]{2,40})", re.I)
_HTTP = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.\-]{2,40})", re.I)
_HIGH_RUN = re.compile(rb"[\x80-\x9f\xa1-\xff]+")  # without the no-break space, of which Latin pages have rows
_BOX = re.compile("[\u2500-\u257f]+")  # a table's lines in a text of one of the double-byte codecs say nothing of its language
_TAG = re.compile(rb"<[^>]{0,2000}>")


def decode(body: bytes, content_type: str | None = None, *, truncated: bool = False) -> Decoded:
    """Decode `body`; never raises.

    `content_type` is the HTTP header as it came. `truncated`: the body was cut at a size limit, so that its last
    character may be incomplete; that is dropped and not counted as an error.
    """
    for bom, codec in _BOMS:
        if body.startswith(bom):
            return _decoded(body[len(bom) :], codec, "bom", truncated)
    http, meta = _http_label(content_type), _page_label(body, content_type)
    if wide := _utf16_without_mark(body):
        return _decoded(body, wide, "http" if http == wide else "detected", truncated)
    if body.isascii():
        return _decode_ascii(body, truncated)
    utf8 = _try_utf8(body, http, meta, truncated)
    if utf8 is not None:
        return utf8
    sample = _sample(body)
    labelled = None
    for codec, source in ((http, "http"), (meta, "meta")):
        if codec is None or codec == "utf-8" or codec.startswith("utf-16"):
            continue
        labelled = _decoded(body, codec, source, truncated)
        if _few_errors(labelled.text) and _plausible(sample, codec):
            return labelled
    return _detect(body, sample, truncated, labelled)


def _http_label(content_type: str | None) -> str | None:
    match = _HTTP.search(content_type or "")
    return _CODECS.get(match[1].lower()) if match else None


def _page_label(body: bytes, content_type: str | None) -> str | None:
    """Find the charset that a page names for itself: an XML declaration or a `<meta>` outside comments."""
    if (content_type or "").lower().startswith(("text/plain", "text/markdown")):
        return None
    head = _COMMENT.sub(b"", body[:PRESCAN_BYTES])
    for pattern in (_META, _XML):
        for match in pattern.finditer(head):
            if codec := _CODECS.get(match[1].decode("ascii").lower()):
                return codec
    return None


def _decoded(body: bytes, codec: str, source: str, truncated: bool) -> Decoded:
    text = codecs.getincrementaldecoder(codec)("replace").decode(body, not truncated)
    return Decoded(text, codec, source, text.count("\ufffd") / max(1, len(text)))


def _few_errors(text: str) -> bool:
    # one bad byte in a short page is above any ratio, and GBK read after a stray byte fails once more
    return text.count("\ufffd") <= max(2, MAX_ERROR_RATIO * len(text))


def _decode_ascii(body: bytes, truncated: bool) -> Decoded:
    codec = "iso2022_jp_ext" if b"\x1b$" in body else "utf-8"  # no other text holds ESC $
    return _decoded(body, codec, "detected" if codec != "utf-8" else codec, truncated)


def _utf16_without_mark(body: bytes) -> str | None:
    head = body[:4096]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) < max(5, len(head) / 50, 3 * min(even, odd)):  # 8-bit text has no NUL; UTF-16 has one in each ASCII character
        return None
    codec = "utf-16-le" if odd > even else "utf-16-be"
    text = _decoded(head, codec, "", True).text
    return codec if _few_errors(text) and sum(" " <= c <= "~" or c in "\r\n\t" for c in text) > 0.7 * max(even, odd) else None


def _try_utf8(body: bytes, http: str | None, meta: str | None, truncated: bool) -> Decoded | None:
    """Return the UTF-8 reading if it is right: strictly valid, or valid but for a few of many characters."""
    label = http or meta
    source = "http" if http == "utf-8" else "meta" if meta == "utf-8" else "utf-8"
    decoded = _decoded(body, "utf-8", source, truncated)
    errors = decoded.text.count("\ufffd") - body.count(b"\xef\xbf\xbd")
    multibyte = len(decoded.text) - errors - sum(len(t) for t in _ascii_runs(decoded.text))
    if multibyte < 6 and label in _DOUBLE_BYTE and (errors or max(decoded.text) < "\u0800") and "\ufffd" not in _decoded(body, label, "http", truncated).text:
        return None  # a handful of sequences may be GBK by chance: then its label decides
    if errors == 0:
        return decoded
    # one bad byte in a character of three leaves up to four U+FFFD in a row
    faults = sum(-(-len(run) // 4) for run in _FAULT.findall(decoded.text))
    trailing = len(decoded.text.encode("utf-8")) - len(decoded.text) - 2 * decoded.text.count("\ufffd")  # bytes after the first of a character: each could have been wrong
    if (trailing >= 4 * faults and multibyte >= 2 * faults) or (multibyte >= 2 * faults and not _runs_are_long(body)) or (label == "utf-8" and multibyte >= errors):
        return decoded
    return None


_FAULT = re.compile("\ufffd+")
_ASCII_RUN = re.compile(r"[\x00-\x7f]+")


def _ascii_runs(text: str) -> list[str]:
    return _ASCII_RUN.findall(text)


def _plausible(sample: bytes, codec: str) -> bool:
    """Whether a label can be right. Most codecs decode anything, so that an error never shows a wrong one."""
    if codec == "cp1252":  # the default label of servers, also on pages in other scripts
        return not _runs_are_long(sample)
    if codec in _DOUBLE_BYTE and len(sample) > 100 and _score(sample, codec, _DOUBLE_BYTE[codec]) < 0.05:
        return max(_score(sample, other, common) for other, common in _DOUBLE_BYTE.items()) < 2 * _SURE_DOUBLE
    return True


def _runs_are_long(sample: bytes) -> bool:
    """Whether bytes above 0x7F stand together: so they do in other scripts; accents stand alone in Latin words."""
    runs = [len(run) for run in _HIGH_RUN.findall(sample)]
    return sum(n for n in runs if n >= 3) > 0.6 * sum(runs)


def _sample(body: bytes) -> bytes:
    """Gather the text of lines that hold bytes above 0x7F, without tags."""
    found, size = [], 0
    for line in body.splitlines():
        if not line.isascii():
            line = _TAG.sub(b" ", line[:SAMPLE_BYTES])
            if not line.isascii():
                found.append(line)
                size += len(line)
                if size >= SAMPLE_BYTES:
                    break
    return b"\n".join(found)


def _detect(body: bytes, sample: bytes, truncated: bool, labelled: Decoded | None) -> Decoded:
    """Guess the codec of a body that is not UTF-8 and has no label that fits."""
    together = _runs_are_long(sample)
    double = {codec: _score(sample, codec, common) for codec, common in _DOUBLE_BYTE.items()}
    best = max(double, key=double.__getitem__)
    if double[best] >= _SURE_DOUBLE:
        return _decoded(body, best, "detected", truncated)
    single = {codec: _score(sample, codec, common) for codec, common in _SINGLE_BYTE.items()} if together else {"": -1.0}
    second = max(single, key=single.__getitem__)
    if single[second] >= _SURE_SINGLE:
        return _decoded(body, second, "detected", truncated)
    if labelled is not None and (_few_errors(labelled.text) or together):
        return labelled
    if not together:
        return _decoded(body, _detect_latin(sample), "detected", truncated)
    for codec, score, likely in ((best, double[best], _LIKELY_DOUBLE), (second, single[second], _LIKELY_SINGLE)):
        if score >= likely:
            return _decoded(body, codec, "detected", truncated)
    return _decoded(body, "gb18030", "fallback", truncated)


def _score(sample: bytes, codec: str, common: frozenset[str]) -> float:
    """Give the share of `common` in what is not ASCII, in any case, less ten times the share of errors (two are free)."""
    text = sample.decode(codec, "replace")
    if codec in _DOUBLE_BYTE:
        text = _BOX.sub("", text)
    other = [c for c in text if c > "\x7f"]
    errors = 10 * max(0, text.count("\ufffd") - 2)
    if codec in _DOUBLE_BYTE:
        return (sum(c in common for c in other) - errors) / max(1, len(other))
    capitals = sum(c.isupper() for c in other)  # KOI8-R read as another code page, and the other way round, comes out in them
    return (sum(c in common for c in "".join(other).lower()) - errors - CAPITALS * capitals) / max(1, len(other))


def _detect_latin(sample: bytes) -> str:
    """Choose among the Latin code pages by the language whose letters cover most of the text; windows-1252 where several do."""
    best, most = "cp1252", -1
    for codec, alphabets in _ALPHABETS.items():
        letters = [c for c in sample.decode(codec, "replace").lower() if c > "\x7f"]
        marks = sum(c in _PUNCTUATION for c in letters)
        covered = marks + max(sum(c in alphabet for c in letters) for alphabet in alphabets)
        if covered > most:
            best, most = codec, covered
    return best
