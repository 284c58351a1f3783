"""The published formulas, written out slowly, for one document whose words are given."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

SYMBOLS = set("!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»")
SYMBOLS |= {chr(code) for low, high in ((0, 9), (11, 13), (13, 32), (127, 160)) for code in range(low, high)}
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
ENDS = (".", "?", "!", '"', "'")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def duplicates(elements: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    number = size = 0
    for element in elements:
        if element in seen:
            number, size = number + 1, size + len(element)
        seen.add(element)
    return number, size


def top_gram(words: list[str], length: int) -> int:
    grams = [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]
    return len(gram) * count


def repeated_grams(words: list[str], length: int) -> int:
    seen: set[tuple[str, ...]] = set()
    size = place = 0
    while place < len(words) - length + 1:
        gram = tuple(words[place : place + length])
        if gram in seen:
            size += sum(map(len, gram))
            place += length
        else:
            seen.add(gram)
            place += 1
    return size


def reference(text: str, words: list[str], terminal: tuple[str, ...]) -> dict[str, float]:
    symbols = SYMBOLS.union(terminal)
    of_letters = [word for word in words if any(letter not in symbols for letter in word)]
    lines, breaks = [line for line in text.split("\n") if line.strip()], text.splitlines()
    split_lines, paragraphs = re.split("\n+", text), re.split("\n{2,}", text.strip())
    found = {
        "characters": len(text),
        "words": len(of_letters),
        "mean_word_length": share(sum(map(len, of_letters)), len(of_letters)),
        "hashes_per_word": share(text.count("#"), len(words)),
        "ellipses_per_word": share(text.count("...") + text.count("…"), len(words)),
        "bullet_lines": share(sum(line.lstrip().startswith(("•", "-")) for line in breaks), len(breaks)),
        "ellipsis_lines": share(sum(line.rstrip().endswith(("...", "…")) for line in breaks), len(breaks)),
        "alphabetic_words": share(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "stop_words": len(STOP_WORDS & set(words)),
        "duplicate_lines": share(duplicates(split_lines)[0], len(split_lines)) if text else 0.0,
        "duplicate_line_characters": share(duplicates(split_lines)[1], len(text)),
        "duplicate_paragraphs": share(duplicates(paragraphs)[0], len(paragraphs)),
        "duplicate_paragraph_characters": share(duplicates(paragraphs)[1], len(text)),
        "written_lines": len(lines),
        "punctuated_lines": share(sum(line.endswith(terminal) for line in lines), len(lines)),
        "short_lines": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "duplicate_written_characters": share(duplicates(lines)[1], len(text.replace("\n", ""))),
        "newlines_per_word": share(text.count("\n"), len(words)),
    }
    found |= {f"top_{length}_gram": share(top_gram(words, length), len(text)) for length in (2, 3, 4)}
    found |= {f"duplicate_{n}_grams": share(repeated_grams(words, n), len(text)) for n in range(5, 11)}
    return found


def sentences(words: list[str], ends: str) -> int:
    """spaCy's sentencizer: a sentence begins at the first word behind a full stop that is no punctuation."""
    number, seen_stop = 1, False
    for word in words:
        if seen_stop and word not in ends and not all(unicodedata.category(sign)[0] == "P" for sign in word):
            number, seen_stop = number + 1, False
        elif word in ends:
            seen_stop = True
    return number


def reference_c4(text: str, words_of: Callable[[list[str]], list[list[str]]], ends: str) -> dict[str, int]:
    """Of lines, in the order of C4's rules: how many each names; and the sentences of those kept."""
    found, kept = Counter[str](), []
    for line in map(str.strip, text.splitlines()):
        words = line.split()
        cleaned = re.sub(r"\[\d*]|\[edit]|\[citation needed]", "", line)
        if any(len(word) > 1000 for word in words) or not cleaned.endswith(ENDS) or cleaned.endswith("..."):
            continue
        if len(words) < 3:
            continue
        if "lorem ipsum" in cleaned.lower():
            found["c4_lorem_ipsum"] += 1
        elif "javascript" in cleaned.lower():
            found["c4_javascript"] += 1
        elif "{" in cleaned:
            found["c4_curly_bracket"] += 1
        elif any(policy in cleaned.lower() for policy in POLICIES):
            found["c4_policy"] += 1
        else:
            kept.append(cleaned)
    names = ("c4_lorem_ipsum", "c4_curly_bracket", "c4_javascript", "c4_policy")
    return {name: found[name] for name in names} | {
        "c4_sentences": sum(sentences(words, ends) for words in words_of(kept))
    }
