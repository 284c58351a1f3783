"""Small tokenizers of the common families, trained here."""

from collections.abc import Callable
from typing import Any

from real_text import real_texts
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bessemer.data.tokens.words import SPLIT

NAMES = ["<unk>", "<s>", "</s>", "<|im_start|>"]
_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _trained(model: Any, trainer: Any, split: Any, normalizer: Any = None) -> Tokenizer:
    engine = Tokenizer(model)
    engine.pre_tokenizer = split
    if normalizer is not None:
        engine.normalizer = normalizer
    engine.train_from_iterator(real_texts(150_000), trainer)
    return engine


def _byte_level(split: Any, normalizer: Any = None, **model: Any) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=NAMES, initial_alphabet=alphabet, show_progress=False
    )
    return _trained(models.BPE(**model), trainer, split, normalizer)


def _regex(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _llama3() -> Tokenizer:
    engine = _byte_level(_regex(SPLIT), ignore_merges=True)
    engine.add_tokens([AddedToken("import os", normalized=False), AddedToken("def ", lstrip=True)])
    engine.enable_truncation(10)
    engine.enable_padding(length=10)
    return engine


def _gpt2() -> Tokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def _qwen() -> Tokenizer:
    return _byte_level(_regex(SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")), normalizers.NFC())


def _gpt4o() -> Tokenizer:
    return _byte_level(_regex(_GPT4O))


def _llama2() -> Tokenizer:
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=NAMES + fallback, show_progress=False)
    model = models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    return _trained(model, trainer, pre_tokenizers.Metaspace())


def _unigram() -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=NAMES, unk_token="<unk>", show_progress=False
    )
    return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), normalizers.NFKC())


def _word_level() -> Tokenizer:
    trainer = trainers.WordLevelTrainer(vocab_size=500, special_tokens=NAMES, show_progress=False)
    return _trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.Whitespace())


def _word_piece() -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=NAMES, show_progress=False)
    model = models.WordPiece(unk_token="<unk>")
    return _trained(model, trainer, pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer())


BYTE_LEVEL: dict[str, Callable[[], Tokenizer]] = {
    "llama3": _llama3,
    "gpt2": _gpt2,
    "qwen": _qwen,
    "gpt4o": _gpt4o,
}
OTHERS: dict[str, Callable[[], Tokenizer]] = {
    "llama2": _llama2,
    "unigram": _unigram,
    "word_level": _word_level,
    "word_piece": _word_piece,
}
