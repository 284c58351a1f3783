"""Examples that are learnt whole (learn = "all"), with the place where the last answer begins kept.

A model is asked with what stands before it, and it is what a cut spares, whatever else is learnt. So the
tokens learnt are two spans that touch, of which the last one begins with the answer. Where that is says the
same sample with learn = "answers": its tokens are the first of these.
A chat that begins as training does is learnt from its first answer behind that (leaks.py).
Cost: everything is rendered and encoded twice.
"""

from collections.abc import Sequence

from bessemer.data.task.encoding import Document, SampleEncoder
from bessemer.data.task.samples import Sample
from bessemer.data.task.templates import Template
from bessemer.data.task.unusable import Unusable
from bessemer.data.tokens.tokenizer import TextTokenizer


class WholeEncoder(SampleEncoder):
    def __init__(self, tokenizer: TextTokenizer, template: Template) -> None:
        super().__init__(tokenizer, template, "all")
        self._answers = SampleEncoder(tokenizer, template, "answers")

    def documents(self, samples: Sequence[Sample]) -> list[list[Document] | Unusable]:
        found: list[list[Document] | Unusable] = []
        both = zip(samples, super().documents(samples), self._answers.documents(samples), strict=True)
        for sample, whole, answers in both:
            if isinstance(whole, Unusable):
                found.append(whole)
            elif isinstance(answers, Unusable):
                found.append(answers)
            else:
                found.append([_parted(sample, *pair) for pair in zip(whole, answers, strict=True)])
        return found

    def close(self) -> None:
        super().close()
        self._answers.close()


def encoder_for(tokenizer: TextTokenizer, template: Template, learn: str) -> SampleEncoder:
    if learn == "all":
        return WholeEncoder(tokenizer, template)
    return SampleEncoder(tokenizer, template, learn)


def _parted(sample: Sample, whole: Document, answers: Document) -> Document:
    begin, end = answers.spans[-1][0], len(whole.tokens)
    first = answers.spans[0][0] if sample.common else 1
    assert whole.tokens[: len(answers.tokens)] == answers.tokens, "what is learnt changed the tokens"
    return Document(whole.tokens, ((first, begin), (begin, end)) if begin > first else ((begin, end),))
