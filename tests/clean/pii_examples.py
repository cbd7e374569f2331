"""Labelled sentences for personal data: what must be found, as it looks after redaction, and what must be left alone.

Numbers are made up; those that need a check digit have a right one.
"""

from __future__ import annotations


def luhn(body: str) -> str:
    """Append the check digit of a bank card."""
    total = sum(d if i % 2 else 2 * d - 9 * (d > 4) for i, d in enumerate(map(int, reversed(body))))
    return body + str(-total % 10)


def id_number(body: str) -> str:
    """Append the check digit of a Chinese ID number."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


VISA, MASTER, UNION, AMEX = luhn("453201511283036"), luhn("542418123456789"), luhn("622202390001234567"), luhn("37144963539843")
ID = id_number("11010519491231002")
KEY = "Zx8Kq2LmW7vRt4Yp9BcD3FgH6JsN1QaE5UiOabc7"
PEM_BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKjMzEfYyjiWA4R4ypbHqGC0H0+tG3hGbN6Qk1d8LrYxUz2wVq9"
SPACED = " ".join(VISA[i : i + 4] for i in range(0, 16, 4))

POSITIVE = [
    # e-mail
    ("Write to jane.doe+news@mail.example.com today.", "Write to <EMAIL> today."),
    ("联系邮箱：zhang_san@163.com，谢谢", "联系邮箱：<EMAIL>，谢谢"),
    ("请发邮件到wang.wu@example.com.cn。", "请发邮件到<EMAIL>。"),
    ("<a href='mailto:x@y.de'>", "<a href='mailto:<EMAIL>'>"),
    ("Maintainer: J. R. Hacker <jrh@debian.org>", "Maintainer: J. R. Hacker <<EMAIL>>"),
    ("From: O'Neil <o'neil@example.ie>;bob@x.io", "From: O'Neil <<EMAIL>>;<EMAIL>"),
    ("reach me: john.smith [at] example.com or jane (at) example (dot) org", "reach me: <EMAIL> or <EMAIL>"),
    ("邮箱 lisi（at）example.cn", "邮箱 <EMAIL>"),
    ("10086@qq.com 是我的邮箱", "<EMAIL> 是我的邮箱"),
    # addresses
    ("The server at 93.184.216.34 answered; dns 8.8.8.8", "The server at <IP> answered; dns <IP>"),
    ("服务器地址 45.33.32.156 已上线", "服务器地址 <IP> 已上线"),
    ("listens on 2001:4860:4860::8888 now", "listens on <IP> now"),
    ("curl http://151.101.1.69/index.html", "curl http://<IP>/index.html"),
    ("Failed login from 185.220.101.4 port 4711", "Failed login from <IP> port 4711"),
    ("来自主机 114.114.114.114 的请求", "来自主机 <IP> 的请求"),
    ("2606:2800:220:1:248:1893:25c8:1946 -> example.com", "<IP> -> example.com"),
    # phones
    ("Call +44 20 7946 0958 or +1 (555) 234-5678.", "Call <PHONE> or <PHONE>."),
    ("(415) 555-2671, 415-555-2671", "<PHONE>, <PHONE>"),
    ("1-800-555-0199 is free", "<PHONE> is free"),
    ("530.216.6131x86091 or 001-579-470-1687x731, (860) 753-6630 ext. 12", "<PHONE> or <PHONE>, <PHONE>"),
    ("请拨打13812345678联系", "请拨打<PHONE>联系"),
    ("电话 +86 138-1234-5678 或 010-62345678", "电话 <PHONE> 或 <PHONE>"),
    ("手机：159 1234 5678", "手机：<PHONE>"),
    ("传真 0755-8234 5678，邮编 518000", "传真 <PHONE>，邮编 518000"),
    ("电话：62345678", "电话：<PHONE>"),
    ("Tel: 020 7946 0958", "Tel: <PHONE>"),
    ("phone number: 030 901820", "phone number: <PHONE>"),
    ("客服热线：400-820-8820", "客服热线：<PHONE>"),
    ("Berlin +49 30 901820, Paris +33 1 42 68 53 00", "Berlin <PHONE>, Paris <PHONE>"),
    ("Tokyo +81-3-1234-5678", "Tokyo <PHONE>"),
    ("<a href='tel:+14155552671'>", "<a href='tel:<PHONE>'>"),
    ("0086 21 6234 5678", "<PHONE>"),
    # ID cards, passports
    (f"身份证号{ID}。", "身份证号<ID_NUMBER>。"),
    (f"ID {ID.lower()}, born there", "ID <ID_NUMBER>, born there"),
    (f"证件 {ID[:6]} {ID[6:14]} {ID[14:]} 已核验", "证件 <ID_NUMBER> 已核验"),
    ("身份证号码：110105491231002", "身份证号码：<ID_NUMBER>"),
    ("护照号码：E12345678", "护照号码：<ID_NUMBER>"),
    ("Passport No. G87654321 was lost", "Passport No. <ID_NUMBER> was lost"),
    ("SSN: 219-09-9999", "SSN: <ID_NUMBER>"),
    # cards
    (f"Pay with {VISA} now", "Pay with <BANK_CARD> now"),
    (f"card {SPACED}, exp 04/27", "card <BANK_CARD>, exp 04/27"),
    (f"{MASTER[:4]}-{MASTER[4:8]}-{MASTER[8:12]}-{MASTER[12:]}", "<BANK_CARD>"),
    (f"银行卡号：{UNION}（工行）", "银行卡号：<BANK_CARD>（工行）"),
    (f"卡号{UNION[:4]} {UNION[4:8]} {UNION[8:12]} {UNION[12:16]} {UNION[16:]}", "卡号<BANK_CARD>"),
    (f"amex {AMEX[:4]} {AMEX[4:10]} {AMEX[10:]}", "amex <BANK_CARD>"),
    # accounts
    ("加我微信：zhang_san88，备注来意", "加我微信：<ACCOUNT>，备注来意"),
    ("微信号 lisi2024", "微信号 <ACCOUNT>"),
    ("WeChat ID: wangwuabc", "WeChat ID: <ACCOUNT>"),
    ("QQ：123456789，QQ群 87654321", "QQ：<ACCOUNT>，QQ群 <ACCOUNT>"),
    ("contact QQ 2345678901", "contact QQ <ACCOUNT>"),
    # secrets
    ('aws_access_key_id = "AKIA' + 'QWERTYUIOPAS2DFG"', 'aws_access_key_id = "<SECRET>"'),
    ("export GITHUB_TOKEN=ghp_" + KEY[:36], "export GITHUB_TOKEN=<SECRET>"),
    ("slack xoxb-" + "123456789012-123456789012-AbCdEfGhIjKlMnOpQrStUvWx", "slack <SECRET>"),
    ("maps key AIza" + "SyD3xK9bQ2mN7vR5tY8uW1zE4cF6hJ0kLpS", "maps key <SECRET>"),
    ("OPENAI_API_KEY=sk-proj-" + KEY, "OPENAI_API_KEY=<SECRET>"),
    ("密钥 sk-ant-api03-" + KEY, "密钥 <SECRET>"),
    ("Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U", "Authorization: Bearer <SECRET>"),
    (f"-----BEGIN RSA PRIVATE KEY-----\n{PEM_BODY}\n-----END RSA PRIVATE KEY-----\n完", "<SECRET>\n完"),
    ('api_key = "9f8c2b7e4a1d6053fbc8e2971a4d3b60"', 'api_key = "<SECRET>"'),
    ("{'password': 'tR7#kq9!Zp2w'}", "{'password': '<SECRET>'}"),
    ("密码：'tR7kq9Zp2wLm'", "密码：'<SECRET>'"),
    ("SECRET_KEY=" + KEY, "SECRET_KEY=<SECRET>"),
    ("git clone https://bot:s3cr8tPw9@git.example.org/x.git", "git clone https://<SECRET>@git.example.org/x.git"),
    ("postgres://admin:hunter2@db.internal:5432/app", "postgres://<SECRET>@db.internal:5432/app"),
]

NEGATIVE = [
    # versions, sections, user agents, private addresses
    "Version 1.2.3.4 came after 1.2.3.3; see section 4.1.2.3 and 4.1.2.3 Title",
    "4.1.2.10 Overview\nChrome/49.0.2623.112 Safari/537.36 kernel 5.10.120.7",
    "版本 120.30.40.50 发布，第 10.20.30.40 节",
    "openssl 1.1.1.1-2ubuntu, libfoo-2.3.4.5.so, package 12.34.56.78-1",
    "驱动 31.0.15.3598，固件 2.20.181.0",
    "private 192.168.1.1, loopback 127.0.0.1, 10.0.0.8, fe80::1, ::1, 300.1.2.3",
    "netmask 255.255.255.0, broadcast 255.255.255.255, any 0.0.0.0, multicast 224.0.0.251",
    "documentation 192.0.2.1, 198.51.100.7, 203.0.113.9, 2001:db8::1",
    "OID 1.3.6.1.4.1.311.2.1.4 and 2.5.29.37.3",
    # @ that is no mailbox
    "git@github.com:user/repo icon@2x.png getty@tty1.service user@host @decorator",
    "pip install pkg@1.2.3, npm i left-pad@1.3.0, actions/checkout@v4, user@localhost",
    "a @ b, matrix @ vector, @property, x@y, foo@bar.service, 邮件@我",
    "systemd-nspawn@.service dbus-:1.2-org.freedesktop@0.service",
    "meet [at] noon (at) the station.Then go",
    "look at example.com and at foo.org",
    # times, dates, hashes
    "1700000000 1234567890123 3.14159265358979 2024-01-02 12:00:00 ISBN 978-7-111-12345-6",
    "ISBN 0-306-40615-2, ISBN-13: 978-0-306-40615-7, ISSN 0378-5955, 9787111123456",
    "2024-05-06 2024.05.06 06.05.2024 20240506 2024-05-06T12:34:56 1998-2003 1998 - 2003",
    "时间戳 1700000000123，纳秒 1700000000123456789，2024年5月6日",
    "d41d8cd98f00b204e9800998ecf8427e e3b0c44298fc1c149afbf4c8996fb92427ae41e4",
    "sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865",
    "commit 1234567890abcdef1234567890abcdef12345678, uuid 550e8400-e29b-41d4-a716-446655440000",
    # amounts, codes, ids
    "order 2138123456789, 12345678901, 1.3812345678, id_13812345678, 0x13812345678",
    "1 000 000 000 and 100 200 3000 40000, 10,000,000,000",
    "人口 1411778724 人，面积 9600000 平方公里，GDP 1260582 亿元",
    "货号 6901234567892，条形码 4006381333931，快递单号 SF1234567890123",
    "part no. 415-5555-26, SKU 100-200-3000, 12-34-56-78-90",
    "+1234 +12345678901234567 diff -0012345 +0012345",
    "coordinates 39.904202, 116.407394; 37.7749 -122.4194; 51°30'26\"N",
    "π = 3.1415926535 8979323846 2643383279 50288, e = 2.71828182845904523536",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
    "0 1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987",
    "1024x768, 1920x1080, 4032x3024 px, 12345678x9 = 111111102, 0x7fff5fbff8a0",
    "RFC 2616, port 8080, 65535, 2147483647, 4294967295, 18446744073709551615",
    "9223372036854775807 1000000007 6700417 299792458",
    "inode 4532015112830360 size 1234567890",
    "身份证 110105194912310021 错误校验, 990105194912310029 无此地区",
    f"4532 0151 1283 0361 fails Luhn; {'4532015112830360'}",
    "6222023900012345670 校验位不对",
    "MAC 00:1a:2b:3c:4d:5e std::vector dead::beef 12:30:45 2024:01:02",
    "ip6: 2001:: 3ffe::/16 ::ffff:0:0",
    "第12章 34页，2003年至2005年，共5,678,901次",
    # secrets that are none
    'password = "secret"\napi_key = "YOUR_API_KEY"\ntoken = "<token>"',
    "token = tokenizer.next_token()\nsecret_key: str | None = None",
    'password = os.environ["DB_PASSWORD"]; pwd=/home/user/project_2024/src/main.c',
    "ftp://user:password@host/path http://user:pass@example.com",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
    "sk-learn-compatible-estimators-and-more sk-some-long-hyphenated-css-class-name",
    "AKIAIOSFODNN7EXAMPLE is the key in Amazon's manuals",
    "hf_hub_download_from_the_hub_to_a_local_dir npm_config_registry_and_more_settings",
    "The token: identifier_of_the_node_2 and key=sha256_of_the_file.txt",
    "密码：请输入您的密码，口令: ********",
    "public key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG user",
    "key=value; sort_key=lambda x: x[1]; primary_key=True",
    # words like cues
    "QQ 2013 版本，QQ9.1，微信公众平台，微信：支付宝以外的选择",
    "WeChat: download the app. WeChat is used by 1200000000 people",
    "passport control, Passport to 12 countries; phone 12 has 128 GB; call 911",
    "telephone exchanges of 1998-2003, fax machines sold: 12",
    "电话 110、119、120 是紧急号码",
]
