import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made_data import HOSTILE, made_sources, make_data

from bessemer.data.prepared import Prepared, open_prepared
from bessemer.recipe.schema import Data, Mixture, Source
from bessemer.report.data_advice import next_steps
from bessemer.report.data_figures import data_document, in_order
from bessemer.report.data_page import data_page


class Balance(HTMLParser):
    """Fails when a tag is closed that is not the innermost open one."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag != "meta" and tag != "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    found = open_prepared(make_data(tmp_path / "abc"))
    assert isinstance(found, Prepared)
    return found


def recipe_data(temperature: float = 1.0) -> Data:
    names = [source["name"] for source in made_sources()]
    pairs = zip(names, (1.0, 2.0, 1.0), strict=True)
    sources = [Source(name=name, kind="text", path="x", weight=weight) for name, weight in pairs]
    return Data(source=sources, mixture=Mixture(temperature=temperature))


def test_reasons_of_unreadable_rows_add_up_to_all_of_them(prepared: Prepared) -> None:
    document = data_document(prepared)
    document["total"]["errors"] = {"unparsable": 2, "undecodable": 1, "corrupt": 1, "missing": 1, "status": 2}
    document["total"]["error_rows"] = 7
    told = re.search(r"<span>Unreadable</span><b>7</b><small>([^<]*)</small>", data_page(prepared, document))
    assert told is not None and sum(map(int, re.findall(r"\d+", told[1]))) == 7
    assert told[1].endswith("3 for other reasons")


def test_page_stands_alone_and_is_well_formed(prepared: Prepared) -> None:
    page = data_page(prepared, data_document(prepared))
    balance = Balance()
    balance.feed(page)
    assert not balance.open
    assert not set(balance.seen) & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"""<[^>]*\s(?:src|href)\s*=\s*["']?(?!["']?#)""", page)
    assert not re.search(r"url\(|@import|@font-face", page)
    assert "default-src 'none'" in page  # the browser's own rule


def test_page_has_every_source_rule_and_sample_escaped(prepared: Prepared) -> None:
    page = data_page(prepared, data_document(prepared))
    for source in made_sources():
        for told in (source["name"], *source["refused"], *source["errors"]):
            assert html.escape(told) in page
    assert html.escape(HOSTILE) in page and HOSTILE not in page and "<b>code</b>" not in page
    balance = Balance()
    balance.feed(page)
    shown = "\n".join(balance.text)
    for row in prepared.samples():
        assert row["id"] in shown
        assert row["text"] is None or row["text"] in shown
    assert "same as web pages/train/0" in shown


def test_page_shows_pictures_with_a_bar_for_each_source(prepared: Prepared) -> None:
    page = data_page(prepared, data_document(prepared))
    assert page.count("<svg") >= 6  # rows, bytes, cascade of all and of each, languages, lengths
    rows = re.search(r"Rows of each source.*?</figure>", page, re.S)
    assert rows is not None
    for source in made_sources():
        share = 100 * source["kept"] / source["rows_in"]
        assert f"<title>kept: {source['kept']:,} ({share:.1f} %)</title>" in rows[0]


def test_pieces_of_a_bar_are_as_wide_as_their_shares(prepared: Prepared) -> None:
    figure = re.search(r"Rows of each source.*?</figure>", data_page(prepared, data_document(prepared)), re.S)
    assert figure is not None
    boxes = re.findall(r'<rect class="fill [^"]*" x="([\d.]+)" y="(\d+)" width="([\d.]+)"', figure[0])
    first = [(float(x), float(width)) for x, y, width in boxes if y == "0"]
    whole = sum(width for _, width in first)
    assert first[0][1] / whole == pytest.approx(7_240 / 20_000, abs=2e-3)
    for (x, width), (following, _) in pairwise(first):
        assert x + width == pytest.approx(following, abs=0.6)


def test_rows_add_up_in_every_row_of_the_table(prepared: Prepared) -> None:
    document = data_document(prepared)
    for told in (*document["sources"], document["total"]):
        assert told["rows_in"] == told["kept"] + told["refused_rows"] + told["error_rows"]
        assert told["missing_rows"] == 0
    page = data_page(prepared, data_document(prepared))
    assert page.count('<span class="good">yes</span>') == 4 and "unaccounted" not in page


def test_rows_that_are_nowhere_are_told_aloud(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "abc")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sources"][1]["kept"] -= 7
    (folder / "manifest.json").write_text(json.dumps(manifest))
    opened = open_prepared(folder)
    page = data_page(opened, data_document(opened))
    assert "7 missing" in page and "books: 7 rows are unaccounted for" in page


def test_document_keeps_the_keys_that_others_read(prepared: Prepared) -> None:
    document = data_document(prepared)
    json.dumps(document, allow_nan=False)
    for told, source in zip(document["sources"], made_sources(), strict=True):
        for name in (
            "name",
            "kind",
            "rows_in",
            "kept",
            "refused",
            "errors",
            "bytes_in",
            "documents",
            "tokens",
        ):
            assert told[name] == source[name]
    assert document["manifest"].endswith("abc/manifest.json")


def test_figures_are_sums_and_ratios_of_the_manifest(prepared: Prepared) -> None:
    document = data_document(prepared)
    pages = document["sources"][0]
    assert pages["bytes_per_token"] == pytest.approx(43_000_000 / 10_750_000)
    assert pages["tokens_per_document"] == pytest.approx(10_750_000 / 7_240)
    assert pages["duplicates"] == {"exact": 1400, "near": 2310, "share": pytest.approx(3710 / 20_000)}
    assert pages["contamination"] == {"contaminated": 12, "leak": 0}
    assert pages["no_text_bytes"] == 910_000_000 - 43_000_000 - sum(pages["refused_bytes"].values())
    assert document["languages"] == {"en": 7190, "de": 251, "fr": 100}
    assert document["pii"] == {"email": 855, "phone": 91, "ip": 51}
    assert document["licences"][""] == {"sources": 1, "documents": 7240, "tokens": 10_750_000}
    assert document["timings"]["total_mb_per_s"] == pytest.approx(1064 / 275.4)


def test_tokens_of_a_language_are_those_of_its_documents(prepared: Prepared) -> None:
    told = data_document(prepared)["language_tokens"]
    assert told["complete"]
    assert told["languages"]["en"] == {"documents": 4, "tokens": 400, "bytes": 1600, "words": 280}
    assert told["languages"]["de"] == {"documents": 2, "tokens": 200, "bytes": 600, "words": 120}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_mixture_shares_follow_tokens_temperature_and_weight(prepared: Prepared, temperature: float) -> None:
    document = data_document(prepared, recipe_data(temperature))
    shares = [source["mixture_share"] for source in document["sources"]]
    wanted = [10_600_000**temperature, 2 * 22_400_000**temperature, 7_000_000**temperature]
    assert shares == pytest.approx([part / sum(wanted) for part in wanted])
    assert "read at first" in data_page(prepared, data_document(prepared, recipe_data(temperature)))


def test_shares_of_another_recipe_are_not_shown(prepared: Prepared) -> None:
    other = Data(source=[Source(name="other", kind="text", path="x")])
    assert [source["mixture_share"] for source in data_document(prepared, other)["sources"]] == [None] * 3
    assert "read at first" not in data_page(prepared, data_document(prepared))


def test_next_steps_name_what_stands_out_and_nothing_else(prepared: Prepared) -> None:
    steps = "\n".join(data_document(prepared)["next"])
    assert "web pages: gopher.min_words refuses 34% of the rows" in steps
    assert 'data.clean.thresholds."gopher.min_words"' in steps
    assert "web pages: 2.0% of the rows could not be read (310 truncated, 90 undecodable)" in steps
    assert "No licence is stated for web pages" in steps
    assert "books" not in steps and "dedup.exact" not in steps
    quiet = data_document(prepared)
    quiet["sources"], quiet["licences"] = quiet["sources"][1:2], {"CC0-1.0": {}}
    assert next_steps(quiet) == []


def test_rules_stand_in_the_order_in_which_they_are_asked() -> None:
    names = ["leak", "fineweb.newlines", "dedup.minhash", "gopher.min_words", "empty", "dedup.exact", "limit"]
    assert in_order(names) == [
        "limit", "empty", "gopher.min_words", "fineweb.newlines", "dedup.exact", "dedup.minhash", "leak",
    ]  # fmt: skip


def test_text_that_html_cannot_hold_is_written_out(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "abc")
    row = {**json.loads((folder / "samples.jsonl").read_text().split("\n")[0]), "text": "a\x00b\ud800c\td"}
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["samples.jsonl"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    opened = open_prepared(folder)
    page = data_page(opened, data_document(opened))
    assert r"a\x00b\ud800c" + "\td" in page
    page.encode("utf-8")
