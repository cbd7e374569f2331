"""Numbers that stand for a person: phones, ID cards, passports, bank cards, WeChat and QQ accounts.

    list(find_numbers("手机 138-1234-5678"))  ->  [(3, 16, "phone")]

A run of digits and separators is taken whole and then has to prove what it is: by a check digit, a country code, the range
of a national numbering plan, or a word before it (tel, 电话, 身份证, SSN, QQ).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

Span = tuple[int, int, str]

_HAS_NUMBERS = re.compile(r"[0-9](?:[0-9]{6}|\.[0-9]{1,3}\.[0-9]|[ )\u2010-\u2013.-]{1,2}[0-9]{2})")
_LONG = re.compile(r"[0-9](?:[ .()\u2010-\u2013-]{0,2}[0-9]){6}")  # opens with a class, so that the search skips what is no digit
_NUMBER = re.compile(r"(?<![\w.,#@*^$€£¥%/\\=&?-])(?:\+\s?|00|\()?[0-9](?:[0-9]|(?:[ .()\u2010-\u2013-]|\) |  ?\()(?=[0-9(])){6,24}(?:[0-9](?:x| ?ext\.? ?)[0-9]{1,6}|[0-9Xx])(?!\w|[.,]\d|%|[-/]\d)", re.ASCII)
_EXTENSION = re.compile(r"(?<=\d)(?:x| ?ext\.? ?)\d{1,6}\Z")
_NUMBER_AFTER_SCHEME = re.compile(r"(?<=tel:)\+?[0-9][0-9-]{6,18}[0-9]", re.ASCII | re.IGNORECASE)

_CN_MOBILE = re.compile(r"(?:\+?86|0086)?1(?:3\d|4[014-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])\d{8}")
_CN_LANDLINE = re.compile(r"(?:\+?86[- ])?\(?0(?:10|2[0-57-9]|[3-9]\d{2})\)?[- ][2-8]\d{2,3}[- ]?\d{4}")
_NANP = re.compile(r"(?:(?:\+?1|001)[-. ]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-. ]\d{4}")
_CALLING_CODES = re.compile(
    r"(?:1[2-9]|7[3-9]|2[07]|2[1-69]\d|3[0-469]|3[578]\d|4[013-9]|42[013]|5[1-8]|50\d|59\d|6[0-6]|6[789]\d|8[1246]|80[08]|85[02356]|8[78][0168]|9[0-58]|9[679]\d)"
)
_DIALLED_ABROAD = re.compile(r"00 ?[1-9]\d{0,2}[ (-]")
_LIMITS = {"2147483647", "2147483648", "4294967295", "4294967296"}
_PHONE_CUE = re.compile(
    r"(?:\b(?:tel(?:ephone)?|phone|mobile|cell|fax|whatsapp|hotline|call(?: us)?(?: (?:on|at))?|tlf|tél|telefono|teléfono|telefon)\b\.?(?:\s?(?:no\b\.?|number|nr\b\.?))?"
    r"|电话|電話|手机|手機|传真|傳真|热线|熱線|致电|致電|拨打|撥打|联系方式|聯繫方式)(?:号码|號碼|号|號)?(?:\s?(?:is|为|為|是))?\s{0,2}[:：=]?\s{0,2}$",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:19|20)\d{2}[-. ](?:0?[1-9]|1[0-2])[-. ](?:0?[1-9]|[12]\d|3[01])(?!\d)|(?:19|20)\d{2} ?[-\u2010-\u2013] ?(?:19|20)\d{2}|\d{1,2}[-.]\d{1,2}[-.](?:19|20)\d{2}$")
_CUE_CHARS = 32

_ID_NUMBER = re.compile(r"[1-9]\d{16}[\dXx]")
_ID_SPACED = re.compile(r"[1-9]\d{5}[ -](?:19|20)\d{6}[ -]\d{3}[\dXx]")
_OLD_ID_NUMBER = re.compile(r"[1-9]\d{14}")
_ID_CUE = re.compile(r"(?:身份证|身份證|证件号|證件號|公民身份)[^\d\n]{0,12}$|\b(?:ID card|identity card|resident ID)\b[^\d\n]{0,12}$", re.IGNORECASE)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_PROVINCES = {11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 33, 34, 35, 36, 37, 41, 42, 43, 44, 45, 46, 50, 51, 52, 53, 54, 61, 62, 63, 64, 65, 71, 81, 82, 83, 91}

_CARD_GROUPS = re.compile(r"\d{13,19}|(?P<gap>[ -])?\d{4}(?:[ -]\d{4}){3}(?:[ -]\d{1,3})?|\d{4}[ -]\d{6}[ -]\d{4,5}|\d{6}[ -]\d{10,13}")
_CARDS = (
    (re.compile(r"4"), (16, 19)),  # Visa
    (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"62|81"), (16, 17, 18, 19)),  # UnionPay
    (re.compile(r"6011|65|64[4-9]"), (16, 19)),  # Discover
    (re.compile(r"35(?:2[89]|[3-8]\d)"), (16,)),  # JCB
    (re.compile(r"3(?:0[0-5]|[68])"), (14,)),  # Diners
    (re.compile(r"220[0-4]"), (16,)),  # Mir
)
_CARD_CUE = re.compile(r"(?:\b(?:card|visa|mastercard|amex|account)\b|卡号|卡號|银行卡|銀行卡|信用卡|账号|账户|帐号|储蓄卡)[^\d\n]{0,16}$", re.IGNORECASE)


def has_numbers(text: str) -> bool:
    """Whether there is anything that a number or an address could be made of."""
    return _HAS_NUMBERS.search(text) is not None


def find_numbers(text: str) -> Iterator[Span]:
    """Yield phone, ID and card numbers."""
    if not _LONG.search(text):
        return
    for pattern in (_NUMBER, _NUMBER_AFTER_SCHEME):
        for m in pattern.finditer(text):
            before = text[max(m.start() - _CUE_CHARS, 0) : m.start()]
            for start, end, kind in _classify(m[0], before):
                yield m.start() + start, m.start() + end, kind


def _classify(written: str, before: str) -> Iterator[Span]:
    """Say what a run of digits and separators is. Several numbers with a space between them are looked at one by one."""
    if extension := _EXTENSION.search(written):
        if _kind_of(written[: extension.start()], before) == "phone":
            yield 0, len(written), "phone"
        return
    if kind := _kind_of(written, before):
        yield 0, len(written), kind
        return
    at = 0
    for part in re.split(r"( +)", written):
        if part.strip() and part != written and (kind := _kind_of(part, before if at == 0 else "")):
            yield at, at + len(part), kind
        at += len(part)


def _kind_of(written: str, before: str) -> str | None:
    digits = re.sub(r"[^\dXx+]", "", written)
    if (_ID_NUMBER.fullmatch(written) or _ID_SPACED.fullmatch(written)) and valid_id_number(digits):
        return "id_number"
    if _OLD_ID_NUMBER.fullmatch(written) and _ID_CUE.search(before) and _valid_old_id(digits):
        return "id_number"
    if valid_card_number(written, cued=_CARD_CUE.search(before) is not None):
        return "bank_card"
    if _CN_MOBILE.fullmatch(digits) and _grouped_like_mobile(written):
        return "phone"
    if _CN_LANDLINE.fullmatch(written) or _NANP.fullmatch(written):
        return "phone"
    if digits.startswith("+") or _DIALLED_ABROAD.match(written):
        number = digits.removeprefix("+").removeprefix("00")
        if number.isdigit() and 9 <= len(number) <= 15 and number not in _LIMITS and _CALLING_CODES.match(number) and not _DATE.match(written):
            return "phone"
    if digits.isdigit() and 7 <= len(digits) <= 13 and _PHONE_CUE.search(before) and not _DATE.match(written):
        return "phone"
    return None


def _grouped_like_mobile(written: str) -> bool:
    """Accept 13812345678, 138-1234-5678, 138 1234 5678, each with +86, 86 or 0086 before it; not 1.3812345678 or 1 381 23…"""
    return re.fullmatch(r"(?:(?:\+ ?|00)?86[- ]?|\((?:\+|00)?86\) ?)?1\d{2}(?:\d{8}|-\d{4}-\d{4}| \d{4} \d{4})", written) is not None


def valid_id_number(written: str) -> bool:
    """Check a Chinese resident ID number (GB 11643-1999): province, birth date, check digit (ISO 7064, mod 11-2)."""
    if int(written[:2]) not in _ID_PROVINCES:
        return False
    try:
        born = date(int(written[6:10]), int(written[10:12]), int(written[12:14]))
    except ValueError:
        return False
    if not 1880 <= born.year <= 2100:
        return False
    total = sum(int(d) * w for d, w in zip(written[:17], _ID_WEIGHTS, strict=True))
    return "10X98765432"[total % 11] == written[17].upper()


def _valid_old_id(digits: str) -> bool:
    """Check province and birth date of the 15 digits used until 1999."""
    if int(digits[:2]) not in _ID_PROVINCES:
        return False
    try:
        date(1900 + int(digits[6:8]), int(digits[8:10]), int(digits[10:12]))
    except ValueError:
        return False
    return True


def valid_card_number(written: str, *, cued: bool = False) -> bool:
    """Check issuer, length, grouping and the Luhn digit; a run without gaps of one or two digits needs a word before it."""
    if not _CARD_GROUPS.fullmatch(written):
        return False
    digits = re.sub(r"\D", "", written)
    if not any(len(digits) in lengths and prefix.match(digits) for prefix, lengths in _CARDS):
        return False
    if not cued and len(set(digits)) < 3:
        return False
    total = 0
    for i, d in enumerate(map(int, reversed(digits))):
        total += d if i % 2 == 0 else 2 * d - 9 * (d > 4)
    return total % 10 == 0


# --- what only a word before it can tell ----------------------------------------------------------------------------

_ACCOUNT_HINTS = ("微信", "威信", "加V", "扣扣", "QQ", "qq", "eChat", "echat", "eixin", "VX", "vx")
_WECHAT = re.compile(r"(?:微信|WeChat|wechat|Wechat|weixin|威信|加V信?|(?<![A-Za-z])[Vv][Xx](?=\s?(?:[:：]|号)))\s?(?P<sure>号码?|號碼?|ID|id|账号|帳號)?\s?(?:[:：]|是|为|為)?\s?(?P<name>[A-Za-z][-_A-Za-z0-9]{5,19}|1\d{10})(?![-_A-Za-z0-9.@])")
_QQ = re.compile(r"(?<![A-Za-z])(?:QQ|qq|扣扣)\s?(?:群|号码?|號碼?|交流群|number|No\.?)*\s?(?:[:：]|是|为|為)?\s?(?P<name>[1-9]\d{5,10})(?!\d|[.,]\d|-\d)")
_PASSPORT = re.compile(r"(?:护照|護照|[Pp]assport)\s?(?:号码?|號碼?|编号|[Nn]o\.?|[Nn]umber|#)?\s?(?:[:：]|is|是|为|為)?\s?(?P<name>[A-Z]{0,2}\d{7,9})(?![\w-])", re.ASCII)
_SSN = re.compile(r"(?:SSN|[Ss]ocial [Ss]ecurity(?: [Nn]umber| [Nn]o\.?)?)\s?(?:[:#]|is)?\s?(?P<name>(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4})(?![\w-])", re.ASCII)


def find_accounts(text: str) -> Iterator[Span]:
    """Yield WeChat and QQ names, passports and social security numbers that a word before them names."""
    if any(hint in text for hint in _ACCOUNT_HINTS):
        for m in _WECHAT.finditer(text):
            name = m["name"]
            if any(c.isdigit() or c in "_-" for c in name) or m["sure"]:
                yield *m.span("name"), "account"
        for m in _QQ.finditer(text):
            yield *m.span("name"), "account"
    for hints, pattern in ((("护照", "護照", "assport"), _PASSPORT), (("SSN", "ocial"), _SSN)):
        if any(hint in text for hint in hints):
            for m in pattern.finditer(text):
                yield *m.span("name"), "id_number"
