import json
from pathlib import Path

import numpy as np
import pytest
from making import TEXTS
from tokenizers import Tokenizer, models

from bessemer.data.tokens import tokenizer
from bessemer.data.tokens.tokenizer import TextTokenizer
from bessemer.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def learnt() -> TextTokenizer:
    return tokenizer.train(TEXTS, 400)


def unicode_fuzz(count: int) -> list[str]:
    """Texts of anything that UTF-8 can say, with what tokenizers stumble over."""
    random = np.random.default_rng(0)
    special = [
        "<|eos|>",
        "<|bos|>",
        "\r\n",
        "\0",
        "\u200d",
        "\ufeff",
        "é",
        "\U0010ffff",
        "  ",
        "\t",
        "'s",
        "123456",
    ]
    texts = []
    for _ in range(count):
        points = random.integers(1, 0x110000, 12)
        letters = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
        ascii_letters = [chr(point) for point in random.integers(32, 127, 12)]
        parts = [*letters, *ascii_letters, *random.choice(special, 3)]
        texts.append("".join(parts[place] for place in random.permutation(len(parts))))
    return texts


def test_any_text_comes_back_exactly(learnt: TextTokenizer) -> None:
    texts = ["", " ", "\n\n", *unicode_fuzz(1000)]
    assert [learnt.decode(ids) for ids in learnt.encode(texts)] == texts


def test_text_never_becomes_a_special_token(learnt: TextTokenizer) -> None:
    (ids,) = learnt.encode(["<|bos|> a <|eos|><|pad|>"])
    assert not {learnt.bos_id, learnt.eos_id, learnt.pad_id} & set(ids)


def test_same_texts_in_any_batches_give_the_same_tokenizer(learnt: TextTokenizer) -> None:
    assert tokenizer.train(iter(TEXTS), 400).text == learnt.text
    assert tokenizer.train(TEXTS[:5], 400).text != learnt.text


def test_small_text_gives_a_smaller_vocabulary_and_ids_stay_below_it() -> None:
    small = tokenizer.train(["ab ab"], 5000)
    assert 259 <= small.vocab < 300
    assert max(max(ids) for ids in small.encode(unicode_fuzz(20))) < small.vocab


def test_document_begins_and_ends_once(learnt: TextTokenizer) -> None:
    assert learnt.document([7, 8]) == [0, 7, 8, 1]
    assert learnt.document([0, 7, 8, 1]) == [0, 7, 8, 1]
    assert learnt.document([]) == [0, 1]


def test_saved_tokenizer_is_the_same_one(learnt: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(learnt.text, encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = tokenizer.load(path)
        assert again.encode(TEXTS) == learnt.encode(TEXTS)
        assert (again.vocab, again.bos_id, again.eos_id, again.pad_id) == (learnt.vocab, 0, 1, 2)


def test_tokenizer_written_here_is_read_with_the_ids_that_were_told_of_it(
    learnt: TextTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "any_name.json"
    path.write_text(learnt.text, encoding="utf-8")
    assert TextTokenizer.read(path).description() == learnt.description()
    told = {**learnt.description(), "bos_id": None, "eos_id": 2}
    again = TextTokenizer.read(path, told)
    assert again.description() == told and again.encode(TEXTS) == learnt.encode(TEXTS)


def test_tokens_made_elsewhere_have_a_tokenizer_of_their_numbers(tmp_path: Path) -> None:
    made = tokenizer.word_level(1000)
    assert (made.vocab, made.bos_id, made.eos_id, made.pad_id) == (1003, 1000, 1001, 1002)
    assert made.encode(["0 17 999", ""]) == [[0, 17, 999], []] and made.decode([0, 17, 999]) == "0 17 999"
    assert made.document([5]) == [1000, 5, 1001]
    (tmp_path / "tokenizer.json").write_text(made.text, encoding="utf-8")
    assert tokenizer.load(tmp_path).description() == made.description()
    for text in ("1000", "iron", "01"):
        with pytest.raises(DataError, match="cannot encode"):
            made.encode([text])


def ready(words: dict[str, int]) -> str:
    return Tokenizer(models.BPE(vocab=words, merges=[])).to_str()


def test_ready_tokenizer_says_itself_what_ends_a_document(tmp_path: Path) -> None:
    text = ready({"a": 0, "<|endoftext|>": 1, "<|im_end|>": 2, "<s>": 9})
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    plain = tokenizer.load(tmp_path)
    assert (plain.eos_id, plain.bos_id, plain.pad_id, plain.vocab) == (1, 9, None, 10)
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert tokenizer.load(tmp_path).eos_id == 2


def test_ready_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(ready({"a": 0}), encoding="utf-8")
    with pytest.raises(RecipeError, match="no end-of-document token"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_what_is_no_tokenizer_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="is no tokenizer"):
        tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="is no tokenizer"):
        tokenizer.load(tmp_path / "missing.json")
