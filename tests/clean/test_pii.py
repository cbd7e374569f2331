"""Personal data is found, and what only looks like it is left alone."""

from __future__ import annotations

import pytest

from llmpipe.clean.pii import redact, valid_id_number

FOUND = [
    ("Write to jane.doe+news@mail.example.com today.", "Write to <EMAIL> today."),
    ("联系邮箱：zhang_san@163.com，谢谢", "联系邮箱：<EMAIL>，谢谢"),
    ("<a href='mailto:x@y.de'>", "<a href='mailto:<EMAIL>'>"),
    ("The server at 93.184.216.34 answered; dns 8.8.8.8", "The server at <IP> answered; dns <IP>"),
    ("服务器地址 45.33.32.156 已上线", "服务器地址 <IP> 已上线"),
    ("listens on 2001:4860:4860::8888 now", "listens on <IP> now"),
    ("Call +44 20 7946 0958 or +1 (555) 234-5678.", "Call <PHONE> or <PHONE>."),
    ("(415) 555-2671, 415-555-2671", "<PHONE>, <PHONE>"),
    ("请拨打13812345678联系", "请拨打<PHONE>联系"),
    ("电话 +86 138-1234-5678 或 010-62345678", "电话 <PHONE> 或 <PHONE>"),
    ("身份证号11010519491231002X。", "身份证号<ID_NUMBER>。"),
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_finds(text: str, expected: str):
    assert redact(text)[0] == expected


LEFT = [
    "Version 1.2.3.4 came after 1.2.3.3; see section 4.1.2.3 and 4.1.2.3 Title",
    "4.1.2.10 Overview\nChrome/49.0.2623.112 Safari/537.36 kernel 5.10.120.7",
    "版本 120.30.40.50 发布，第 10.20.30.40 节",
    "private 192.168.1.1, loopback 127.0.0.1, 10.0.0.8, fe80::1, ::1, 300.1.2.3",
    "git@github.com:user/repo icon@2x.png getty@tty1.service user@host @decorator",
    "std::vector dead::beef 12:30:45 00:1a:2b:3c:4d:5e",
    "1700000000 1234567890123 3.14159265358979 2024-01-02 12:00:00 ISBN 978-7-111-12345-6",
    "order 2138123456789, 12345678901, 1.3812345678, id_13812345678, 0x13812345678",
    "身份证 110105194912310021 错误校验, 990105194912310029 无此地区",
    "+1234 +12345678901234567 diff -0012345 +0012345",
    "1 000 000 000 and 100 200 3000 40000, 10,000,000,000",
]


@pytest.mark.parametrize("text", LEFT)
def test_leaves(text: str):
    assert redact(text) == (text, {})


def test_counts_by_kind_in_both_languages():
    text, counts = redact("a@b.org 和 c@d.cn，手机 13912345678, host 93.184.216.34")
    assert text == "<EMAIL> 和 <EMAIL>，手机 <PHONE>, host <IP>"
    assert counts == {"email": 2, "phone": 1, "ip": 1}


def test_check_digit_of_id_numbers():
    assert valid_id_number("11010519491231002X") and valid_id_number("11010519491231002x")
    assert not valid_id_number("110105194912310020") and not valid_id_number("11010519491331002X")
