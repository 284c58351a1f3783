"""Merges learnt from counts against Hugging Face's trainer on the texts."""

import random
from pathlib import Path

import pytest
from real_text import real_texts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bessemer.data.tokens import bpe, tokenizer
from bessemer.data.tokens.bpe import byte_letters
from bessemer.data.tokens.learn import learn
from bessemer.data.tokens.tokenizer import BOS, EOS, PAD
from bessemer.data.tokens.words import SPLIT, count_words, write_counts
from bessemer.log import Console


def by_hugging_face(texts: list[str], vocab: int) -> str:
    """tokenizer.json"""
    engine = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return str(engine.to_str())


@pytest.mark.parametrize("vocab", [200, 1000, 6000])
def test_tokenizer_is_the_one_that_hugging_face_trains(vocab: int) -> None:
    texts = real_texts(600_000)
    assert tokenizer.train(texts, vocab).text == by_hugging_face(texts, vocab)


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [1000, 8000, 32_768])
def test_tokenizer_of_much_text_is_the_one_that_hugging_face_trains(vocab: int) -> None:
    texts = real_texts(40_000_000)
    assert tokenizer.train(texts, vocab).text == by_hugging_face(texts, vocab)


@pytest.mark.parametrize("letters", ["a", "ab", "abc", "=-", "é"])
def test_ties_and_overlaps_are_decided_as_there(letters: str) -> None:
    for seed in range(15):
        own = random.Random(seed)
        words = ["".join(own.choices(letters, k=own.randint(1, 25))) for _ in range(own.randint(1, 40))]
        texts = [word for word in words for _ in range(own.randint(1, 5))]
        vocab = 259 + own.randint(1, 300)
        assert tokenizer.train(texts, vocab).text == by_hugging_face(texts, vocab), (seed, texts)


def test_words_read_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = real_texts(50_000)
    whole = tokenizer.train(texts, 600)
    monkeypatch.setattr(bpe, "_BLOCK", 97)
    assert tokenizer.train(texts, 600).text == whole.text


def test_letters_of_bytes_are_those_of_the_library() -> None:
    assert sorted(byte_letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    text = "".join(map(chr, range(0x80, 0x800)))
    (found,) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    letters = byte_letters()
    assert found[0] == "".join(letters[byte] for byte in text.encode())


def test_parts_counted_apart_give_the_tokenizer_of_the_whole(tmp_path: Path) -> None:
    texts = real_texts(200_000)
    paths = [tmp_path / f"{number}.arrow" for number in range(3)]
    for number, path in enumerate(paths):
        write_counts(path, count_words(texts[number::3]))
    assert learn(paths, 700, Console(quiet=True)).text == tokenizer.train(texts, 700).text
    assert learn([], 700, Console(quiet=True)).vocab == 259
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in paths]
