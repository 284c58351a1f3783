"""Keys, tokens and passwords that can be told for certain: by a prefix of their own, or by what they stand
in.

Taken: tokens of AWS, GitHub, GitLab, Slack, Google, Stripe, OpenAI, Anthropic, Hugging Face, npm, PyPI and
SendGrid, JSON web tokens, blocks of private keys (PEM, PGP), AWS's secret where it is named so, user and
password in a URL. Not taken: `password = "..."` and strings that merely look random: in code most of these
are examples, hashes or ids. The formats are their issuers'; the choice follows gitleaks' rules that go by a
prefix (github.com/gitleaks/gitleaks).
"""

import re
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from bessemer.data.clean.buffers import Buffers
from bessemer.data.clean.pii_spans import Span

_SECRETS = [
    # any of these strings must stand in a text for the expression to be tried
    ("AKIA ASIA ABIA ACCA", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    (
        "aws_secret_access_key AWS_SECRET_ACCESS_KEY SecretAccessKey",
        r"(?:aws_secret_access_key|AWS_SECRET_ACCESS_KEY|SecretAccessKey)[\"']?\s{0,4}[:=]\s{0,4}[\"']?"
        r"(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    ),
    ("ghp_ gho_ ghu_ ghs_ ghr_", r"\bgh[pousr]_[A-Za-z0-9]{36,251}\b"),
    ("github_pat_", r"\bgithub_pat_\w{82}\b"),
    ("glpat-", r"\bglpat-[\w-]{20,64}(?![\w-])"),
    ("xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs-", r"\bxox[abeoprs]-\d{1,13}-[A-Za-z0-9-]{10,250}"),
    ("hooks.slack.com", r"https://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/+]{40,60}"),
    ("AIza", r"\bAIza[\w-]{35}(?![\w-])"),
    ("GOCSPX-", r"\bGOCSPX-[\w-]{28}(?![\w-])"),
    ("k_live_ k_test_", r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,99}\b"),
    ("T3BlbkFJ", r"\bsk-[\w-]{20,100}T3BlbkFJ[\w-]{20,100}"),
    ("sk-ant-", r"\bsk-ant-[a-z]{3,6}\d\d-[\w-]{80,120}"),
    ("hf_", r"\bhf_[A-Za-z]{34}\b"),
    ("npm_", r"\bnpm_[A-Za-z0-9]{36}\b"),
    ("pypi-AgE", r"\bpypi-AgE[\w-]{50,1000}"),
    ("SG.", r"\bSG\.[\w-]{22}\.[\w-]{43}(?![\w-])"),
    ("eyJ", r"(?<![\w-])eyJ[\w-]{10,4096}\.eyJ[\w-]{10,8192}\.[\w-]{10,4096}"),
    (
        "PRIVATE",  # "PRIVATE KEY"
        r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----)[\s\S]){64,16384}"
        r"-----END (?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----",
    ),
]
_PATTERNS = [
    (tuple(hint.encode() for hint in hints.split(" ")), re.compile(pattern.encode()))
    for hints, pattern in _SECRETS
]
_ANY_HINT = "|".join(re.escape(hint.decode()) for hints, _ in _PATTERNS for hint in hints)
# What a reader should put in ("user:<password>@", "${PASSWORD}") stays.
_LOGIN = re.compile(rb"://([^\s:/@?#\"'<>\[\]{}$]{0,64}:[^\s:/@?#\"'<>\[\]{}$]{1,128})\Z")
_LONGEST_LOGIN = 200


def secret_spans(buffers: Buffers) -> Iterator[Span]:
    yield from _token_spans(buffers)
    yield from _login_spans(buffers)


def _token_spans(buffers: Buffers) -> Iterator[Span]:
    hinted = pc.match_substring_regex(buffers.texts, _ANY_HINT).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(hinted).tolist():
        content = buffers.row(row)
        for hints, pattern in _PATTERNS:
            if any(hint in content for hint in hints):
                group = "secret" if "secret" in pattern.groupindex else 0
                for match in pattern.finditer(content):
                    yield Span(row, *match.span(group), "secret")


def _login_spans(buffers: Buffers) -> Iterator[Span]:
    """User and password between "://" and "@": https://joe:hunter2@host becomes https://[SECRET]@host."""
    places = np.flatnonzero(buffers.data == ord("@"))
    for row, content, place in buffers.in_rows(places):
        match = _LOGIN.search(content, max(place - _LONGEST_LOGIN, 0), place)
        if match is not None:
            yield Span(row, match.start(1), place, "secret")
