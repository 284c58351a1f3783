"""From what data.py measured to ratios and goals: the table."""

from typing import Any

from columns import columns

_GB = 1e9


def rows(found: dict[str, Any]) -> list[tuple[str, str, str, str, bool]]:
    """(what, ours, the peer's or the bound, goal, reached)."""
    middle = middle_round(found)
    peer, bytes_of = middle["peer"], middle["peer"]["bytes"]
    ours, theirs = own_rate(found, middle), peer_rate(found, middle)
    own_minhash = found["minhash"]["mb"] / sum(found["minhash"]["cpu_s"].values())
    their_minhash = bytes_of["texts"] / 1e6 / sum(peer["minhash"].values())
    spent = found["tokenize"]["cpu_s"]
    mb = found["tokenize"]["mb"]
    same, wrong = found["duplicates"], found["tokenize"]
    differing = wrong["differing_documents"] + wrong["differing_fuzz_strings"]
    loader = found["loader"]["tokens"] / found["loader"]["cpu_s"] / 1e6
    return [
        _rate("whole path", ours, theirs, 15),
        _rate("MinHash path", own_minhash, their_minhash, 20),
        _rate("tokenizing", mb / spent["ours"], mb / spent["encode_batch_fast"], 20),
        (
            f"tokens that differ, of {wrong['tokens'] / 1e6:.1f} M and {wrong['fuzz_strings']:,} strings",
            f"{differing}", "", "0", differing == 0,
        ),
        (
            "injected near-duplicates refused, whose original stays",
            f"{same['recall']:.3f}", "", ">= 0.90", same["recall"] >= 0.9,
        ),
        (
            f"precision (share {same['same']} of 5-grams or more)",
            f"{same['precision']:.4f}", "", ">= 0.99", same["precision"] >= 0.99,
        ),
        _peak(f"peak memory, {found['kept']['mb_read']:.0f} MB, all kept", found["kept"], 1.5),
        _peak(f"peak memory, {found['whole']['mb_read']:.0f} MB, all rules", found["whole"], 1.5),
        _peak(f"peak memory, {found['large']['mb_read']:.0f} MB, all kept", found["large"], 2.0),
        _peak(f"peak memory, exact, {found['exact']['rows'] / 1e6:.0f} M rows", found["exact"], 1.0),
        ("loader, M tokens/s of one core", f"{loader:.1f}", "", ">= 20", loader >= 20),
        (
            f"order of {found['order']['rows']:,} samples opened, s",
            f"{found['order']['open_s']:.3f}", "", "<= 1", found["order"]["open_s"] <= 1,
        ),
    ]  # fmt: skip


def table(found: dict[str, Any]) -> str:
    body = [
        [what, own, other, goal, "yes" if reached else "NO"]
        for what, own, other, goal, reached in rows(found)
    ]
    sizes = ", ".join(f"{kind} {row['bytes'] / 1e6:.0f} MB" for kind, row in found["corpus"].items())
    head = f"{sizes}; rates in MB read per CPU-second"
    ratios = sorted(own_rate(found, each) / peer_rate(found, each) for each in found["rounds"])
    foot = "whole path, all rounds: " + ", ".join(f"{ratio:.1f} x" for ratio in ratios)
    return "\n".join([head, "", *columns(["", "bessemer", "peer", "goal", "reached"], body), "", foot])


def middle_round(found: dict[str, Any]) -> dict[str, Any]:
    """Of the rounds of the whole path, the one whose ratio is neither the best nor the worst."""
    by_ratio = sorted(found["rounds"], key=lambda each: own_rate(found, each) / peer_rate(found, each))
    middle: dict[str, Any] = by_ratio[len(by_ratio) // 2]
    return middle


def own_rate(found: dict[str, Any], each: dict[str, Any]) -> float:
    """MB of the whole corpus per CPU-second."""
    size = sum(kind["bytes"] for kind in found["corpus"].values())
    return float(size / 1e6 / each["alone"]["cpu_s"])


def peer_rate(found: dict[str, Any], each: dict[str, Any]) -> float:
    """MB per CPU-second of the whole path, had the peer been given all of the corpus.

    Kinds cost differently, and the sample has not the corpus' share of each: a large page is in it or not.
    What comes behind the filters sees texts only, hardly any of which was HTML.
    """
    whole, sampled = each["peer"]["whole"], each["peer"]["bytes"]
    sizes = {kind: row["bytes"] for kind, row in found["corpus"].items()}
    filters_s = sum(whole[f"filters: {kind}"] * size / sampled[kind] for kind, size in sizes.items())
    behind_s = sum(cpu_s for name, cpu_s in whole.items() if not name.startswith("filters"))
    behind_s *= (sizes["man"] + sizes["code"]) / sampled["texts"]
    return sum(sizes.values()) / 1e6 / (filters_s + behind_s)


def _rate(what: str, ours: float, theirs: float, goal: float) -> tuple[str, str, str, str, bool]:
    ratio = ours / theirs
    return what, f"{ours:.2f}", f"{theirs:.3f}: {ratio:.1f} x", f">= {goal:.0f} x", ratio >= goal


def _peak(what: str, part: dict[str, Any], most_gb: float) -> tuple[str, str, str, str, bool]:
    peak = part["peak_bytes"] / _GB
    return what + ", GB", f"{peak:.2f}", "", f"<= {most_gb}", peak <= most_gb
