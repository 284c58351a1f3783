"""Personal data and secrets."""

import random
import time

import pyarrow as pa
import pytest

from bessemer.data.clean.pii import KINDS, redact
from bessemer.data.clean.pii_numbers import _luhn_remainder, _remainder_97

# Made up after their issuers' formats; joined here, so that no scanner takes this file for a leak.
_SECRETS = {
    "AWS": "AKIA" + "QWERTZ234567ABCD",
    "AWS, temporary": "ASIA" + "QWERTZ234567ABCD",
    "GitHub": "ghp_" + "a1B2c3D4e5F6" * 3,
    "GitHub, fine": "github_pat_" + "11ABCDEFG0" * 8 + "ab",
    "GitLab": "glpat-" + "x1-Y2_z3AbCdEfGhIjKl",
    "Slack": "xoxb-" + "123456789012-1234567890123-AbCdEfGhIjKlMnOp",
    "Google": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"[:35],
    "Stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "OpenAI": "sk-" + "a1B2c3D4e5F6g7H8i9J0" + "T3BlbkFJ" + "a1B2c3D4e5F6g7H8i9J0",
    "Anthropic": "sk-ant-" + "api03-" + "aB3-_" * 18 + "xAA",
    "Hugging Face": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
    "npm": "npm_" + "a1B2c3D4e5F6" * 3,
    "PyPI": "pypi-AgE" + "IcHlwaS5vcmc" + "Ab3_-" * 12,
    "SendGrid": "SG." + "a" * 22 + "." + "B" * 43,
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9."
    + "eyJzdWIiOiIxMjM0NTY3ODkwIn0."
    + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEow\n" * 12 + "-----END RSA PRIVATE KEY-----",
}


def _redact(text: str) -> str:
    texts, counts = redact(pa.array([text]))
    found = texts.to_pylist()[0]
    for kind in KINDS:
        placeholder = f"[{kind.upper()}]"
        assert found.count(placeholder) - text.count(placeholder) == counts[kind].to_pylist()[0]
    assert redact(texts)[0] is texts
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Joe <joe.doe+x@mail.example.com>, ann@b.org.", "Joe <[EMAIL]>, [EMAIL]."),
        ("联系foo@bar.com或josé@müller.de", "联系[EMAIL]或[EMAIL]"),
        ("mailto:o'neil@x.co.uk?subject=1", "mailto:[EMAIL]?subject=1"),
        ("call +49 30 901820 441, or +1 (212) 555-0123", "call [PHONE], or [PHONE]"),
        ("(212) 555-0123 212-555-0123 212.555.0123 1-800-555-1212", "[PHONE] [PHONE] [PHONE] [PHONE]"),
        (
            "Tel.: 030 / 123 45 67, Fax 089-1234567. Тел: 8 495 1234567",
            "Tel.: [PHONE], Fax [PHONE]. Тел: [PHONE]",
        ),
        (
            "from 52.1.2.33, http://203.5.7.9:80/ and (2a00:1450:4001:81b::200e)",
            "from [IP], http://[IP]:80/ and ([IP])",
        ),
        ("ip=165.87.54.14", "ip=[IP]"),
        ("DE89 3704 0044 0532 0130 00, GB29NWBK60161331926819.", "[IBAN], [IBAN]."),
        ("4111 1111 1111 1111; 5500-0000-0000-0004; 378282246310005", "[CARD]; [CARD]; [CARD]"),
        ("git clone https://joe:hunter2@host.com/x.git", "git clone https://[SECRET]@host.com/x.git"),
        (
            "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"[:40],
            "aws_secret_access_key = [SECRET]",
        ),
    ],
)
def test_personal_data_is_replaced_and_counted(before: str, after: str):
    assert _redact(before) == after


@pytest.mark.parametrize("name", _SECRETS)
def test_tokens_and_keys_are_replaced_whole(name: str):
    assert _redact(f'key = "{_SECRETS[name]}"\n') == 'key = "[SECRET]"\n'


@pytest.mark.parametrize(
    "trap",
    [
        "version 52.1.2.33, v61.2.3.4, Chrome/91.0.44.124, libx.so.61.2.3.4, x==61.2.3.4, 61.2.3.4-rc1",
        "section 1.2.3.4, object 1.3.6.1.4.1.311, build 61.2.3.4.5, 999.1.2.3, 61.2.3",
        "127.0.0.1 10.1.2.99 192.168.0.77 172.16.0.99 169.254.0.99 224.0.0.99 192.0.2.99 255.255.255.255",
        "::1 fe80::1 2001:db8::1 12:30:45 00:1a:2b:3c:4d:5e std::vector 2024:01:15 dead::beef 3:2 2000:",
        "2024-01-15 10:30:00, 15.01.2024, 2024/01/15, 1999-2000, 20240115103000, 1700000000000000",
        "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, ISSN 0317-8471, EAN 4006381333931",
        "4503599627370496 9007199254740993 0.4111111111111111 0x4111111111111111 4111111111111112",
        "+1.2345678901 +0000 x+12345678901 1e+10000000000 10~+20191229111838 100-200-3000 1 2 3 4 5 6 7 8",
        "GB29NWBK60161331926818 XX29NWBK60161331926819 AB12 DE89370400440532013 ADE89370400440532013000",
        "git@github.com:a/b user@1000.service icon@2x.png a@b @decorator x @ y foo@1.2.3 @ @@ a..@b.c",
        "risk-adjusted task_live_, sk-learn, eyJust, AKIAshort, ghp_short, SG.x, hf_hub_download, npm_config",
        "http://user:<password>@host https://${USER}:${PASSWORD}@host https://host:80/@x",
        "telephone 12, phone 3.14, fax machine 2000, mobile phones: 100000 sold in 2007",
        "-----BEGIN PUBLIC KEY-----\n" + "MIIE\n" * 20 + "-----END PUBLIC KEY-----",
        "[EMAIL] [PHONE] [IP] [IBAN] [CARD] [SECRET]",
    ],
)
def test_what_only_looks_like_it_stays(trap: str):
    assert _redact(trap) == trap


def test_checksums_agree_with_their_definition():
    draw = random.Random(0)
    for _ in range(200):
        digits = "".join(draw.choices("0123456789", k=draw.randint(12, 19)))
        total = 0
        for place, digit in enumerate(map(int, reversed(digits))):
            doubled = digit * (1 + place % 2)
            total += doubled - 9 if doubled > 9 else doubled
        assert _luhn_remainder(digits) == total % 10
    # Registry examples of ISO 13616.
    for account in ("AL47212110090000000235698741", "NO9386011117947", "MT84MALT011000012345MTLCAST001S"):
        assert _remainder_97(account) == 1 and _redact(f"to {account}!") == "to [IBAN]!"


def test_a_second_time_changes_nothing_and_no_text_breaks():
    draw = random.Random(1)
    pieces = [
        *"@.:+-()/ \n09é联\U0001f600[]=", "joe@x.org", "8.8.8.250", "4111 1111 1111 1111", "+49 30 901820441",
        "Tel. ", "212-555-0123", "2a00:1450::5", "GB29NWBK60161331926819", "https://a:b@", *_SECRETS.values(),
    ]  # fmt: skip
    texts = pa.array(
        ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(5000)], pa.large_string()
    )
    once, counts = redact(texts)
    again, none = redact(once)
    assert again is once and sum(sum(none[kind].to_pylist()) for kind in KINDS) == 0
    for text, *numbers in zip(once.to_pylist(), *(counts[kind].to_pylist() for kind in KINDS), strict=True):
        assert [text.count(f"[{kind.upper()}]") for kind in KINDS] == numbers


def test_a_document_ends_where_the_next_begins():
    """Bytes of neighbours lie side by side: nothing may be found across a border, or missed at one."""
    texts = [
        "joe@x.or",
        "g 192",
        ".5.7.9",
        "8.8.8.250",
        "250",
        "+49 30",
        " 901820441",
        "4111111111111111",
        "1",
    ]
    found = redact(pa.array(texts))[0].to_pylist()
    assert found == [_redact(text) for text in texts]
    assert found[3:5] == ["[IP]", "250"] and found[7:] == ["[CARD]", "1"]


def test_nulls_stay_and_counts_are_whole_numbers():
    texts, counts = redact(pa.array(["a@b.org c@d.org", None, ""], pa.large_string()).slice(0))
    assert texts.to_pylist() == ["[EMAIL] [EMAIL]", None, ""] and texts.type == pa.large_string()
    assert counts["email"].to_pylist() == [2, 0, 0] and counts.schema.names == list(KINDS)
    assert {field.type for field in counts.schema} == {pa.int32()}
    assert redact(pa.array([], pa.string()))[1].num_rows == 0


@pytest.mark.parametrize(
    "piece",
    [
        "a@a.",
        "1.",
        "1 2",
        "+1",
        "2001:",
        "-----BEGIN PRIVATE KEY-----",
        "-eyJabcdefghijk",
        "://a:",
        "Tel. ",
        "joe@x.org,",
    ],
)
def test_texts_made_to_be_slow_are_not(piece: str):
    texts = pa.array([piece * (200_000 // len(piece))])
    began = time.process_time()
    redact(texts)
    assert time.process_time() - began < 3  # s; 0.3 at most where it is quiet


def test_nothing_to_find_costs_a_look_at_the_bytes():
    text = "In 1855 he made 12 tons (of 1000 kg) of steel – see section 3.2, Bessemer & Co.\n" * 60
    texts = pa.array([text] * 400)
    began = time.process_time()
    assert redact(texts)[0] is texts
    assert 400 * len(text.encode()) / (time.process_time() - began) > 15e6  # bytes/s; 75e6 where it is quiet
