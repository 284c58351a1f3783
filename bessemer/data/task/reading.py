"""Rows of a task's files become samples, or are counted with the reason why they are none.

    missing, not_text, not_text_part, undecodable,    errors: the row is not what it should be
    not_messages, not_tools, role.unknown
    empty, role.order, masked, same                   refused: there is nothing (good) to learn
The first few of each reason are kept with their place.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from bessemer.data.ledger import SourceCount
from bessemer.data.sources.parts import Input, Record
from bessemer.data.sources.records import class_names, read_records
from bessemer.data.sources.values import MISSING, usable_label, usable_text
from bessemer.data.task.formats import check_keys, check_untemplated, columns_of, format_of, needed_columns
from bessemer.data.task.inputs import check_columns, first_columns, wanted_of
from bessemer.data.task.messages import checked_order, messages_of, tools_of, with_system, without_nulls
from bessemer.data.task.samples import Message, Sample, common_beginning
from bessemer.data.task.unusable import Unusable
from bessemer.recipe.schema import FinetuneData

SHOWN = 5  # rows of each reason
_TABLES = ("parquet", "huggingface")
Fields = dict[str, Any]
_SPEAKERS = ("role", "from")  # an answer may be a list of JSON too: messages say who speaks
_BEGINS = re.compile(r'\s*\[\s*\{\s*"(?:role|from|content|value)"\s*:')


@dataclass
class Lost:
    """Rows that are no examples: how many are in the ledger, the first ones here."""

    count: SourceCount
    rows: list[dict[str, str]] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)

    def add(self, place: str, why: Unusable) -> None:
        (self.count.errors if why.is_error else self.count.refused)[why.reason] += 1
        self.show(place, why)

    def show(self, place: str, why: Unusable) -> None:
        """Of a row that is counted already."""
        self._seen[why.reason] += 1
        if self._seen[why.reason] <= SHOWN:
            self.rows.append({"place": place, "reason": why.reason, "told": why.told})


@dataclass(frozen=True)
class Reading:
    """How the rows of a task are read."""

    data: FinetuneData
    task_format: str
    columns: dict[str, str]
    names: tuple[str, ...] | None = None  # classification: what labels that are whole numbers stand for
    of_messages: bool = False  # preference: the first pair is one of conversations, not of texts
    unread_tools: bool = False  # chats seem to have tools, which the recipe does not name

    @staticmethod
    def of(data: FinetuneData, method: str, inputs: Sequence[Input]) -> "Reading":
        """Looks into the first file for what recipe and method leave open."""
        there = first_columns(data, inputs)
        task_format = format_of(data, method, there)
        if there is not None and (task_format != "prompt" or data.prompt in there):
            check_keys(data, method, task_format)
        columns, names = columns_of(data, task_format, there), None
        if there is not None:
            check_columns(data, needed_columns(data, task_format, columns), inputs, there)
        if task_format == "classification" and inputs:
            names = class_names(wanted_of(data, ()), inputs[0], columns["label"])
        reading = Reading(data, task_format, columns, None if names is None else tuple(names))
        if task_format == "preference":
            reading = replace(reading, of_messages=reading._is_of_messages(inputs))
            if not reading.is_templated:
                check_untemplated(data, "pairs of texts")
        has_chats = task_format == "messages" or reading.of_messages
        unread = has_chats and data.tools is None and "tools" in (there or ())
        return replace(reading, unread_tools=unread)

    @property
    def is_templated(self) -> bool:
        """Whether texts are written with a chat template; else prompt and answer stand as they are."""
        if self.task_format in ("messages", "instruction") or self.of_messages:
            return True
        return self.task_format in ("prompt", "preference") and self.data.template != "auto"

    def samples(self, inputs: Sequence[Input], lost: Lost) -> Iterator[Sample]:
        wanted = wanted_of(self.data, tuple(self.columns.values()))
        for entry in inputs:
            for record in read_records(wanted, entry):
                lost.count.read(record.num_bytes, None)
                try:
                    yield self._sample(record)
                except Unusable as why:
                    lost.add(record.place, why)

    def _sample(self, record: Record) -> Sample:
        if record.error is not None:
            raise Unusable(record.error, is_error=True)
        values = map(without_nulls, record.values) if self.data.kind in _TABLES else record.values
        fields = dict(zip(self.columns, values, strict=True))
        own_id = _label(fields["id"]) if "id" in fields else None
        group = _label(fields["group"]) if "group" in fields else None
        name = record.place if own_id is None else own_id
        content = _READERS[self.task_format](self, fields)
        return Sample(record.place, name, group, own_id is not None, **content)

    def _prompt(self, fields: Fields) -> Fields:
        prompt, answer = _text(fields["prompt"]), _text(fields["answer"])
        _need(prompt, answer)
        if self.is_templated:
            return {"chats": (self._chat(fields, prompt, answer),)}
        return {"texts": (prompt, answer)}

    def _messages(self, fields: Fields) -> Fields:
        chat = checked_order(with_system(messages_of(fields["messages"]), self._system(fields)))
        return {"chats": (tuple(chat),), "tools": tools_of(fields.get("tools", MISSING))}

    def _instruction(self, fields: Fields) -> Fields:
        about = fields.get("input", MISSING)
        asked, answer = _text(fields["instruction"]), _text(fields["output"])
        more = "" if about is MISSING or about is None else _text(about)
        _need(asked, answer)
        asked = f"{asked}\n\n{more}" if more.strip() else asked
        return {"chats": (self._chat(fields, asked, answer),)}

    def _preference(self, fields: Fields) -> Fields:
        prompt, answers = fields.get("prompt", MISSING), (fields["chosen"], fields["rejected"])
        if any(answer is MISSING or answer is None for answer in answers):
            raise Unusable("missing", is_error=True)
        if all(isinstance(answer, str) and not _is_list(answer) for answer in answers):
            asked, chosen, rejected = _text(prompt), _text(answers[0]), _text(answers[1])
            _need(asked, chosen, rejected)
            _differ(chosen, rejected)
            if not self.is_templated:
                return {"texts": (asked, chosen, rejected)}
            chats = [self._chat(fields, asked, answer) for answer in (chosen, rejected)]
        elif not self.is_templated:
            raise Unusable("not_text", "messages, where the first pair is one of texts", is_error=True)
        else:
            chats = [self._side(fields, prompt, answer) for answer in answers]
            _differ(*chats)
        tools = tools_of(fields.get("tools", MISSING))
        return {"chats": tuple(chats), "common": common_beginning(*chats), "tools": tools}

    def _is_of_messages(self, inputs: Sequence[Input]) -> bool:
        wanted = wanted_of(self.data, (self.columns["chosen"],))
        for entry in inputs:
            with closing(read_records(wanted, entry)) as records:
                for record in records:
                    value = record.values[0]
                    if record.error is None and value is not MISSING and value is not None:
                        return not isinstance(value, str) or _is_list(value)
        return False

    def _side(self, fields: Fields, prompt: Any, answer: Any) -> tuple[Message, ...]:
        """A conversation of a pair; its prompt may be told once, beside both answers."""
        said = messages_of(answer)
        if prompt is not MISSING and prompt is not None and said[0]["role"] == "assistant":
            is_text = isinstance(prompt, str) and not _is_list(prompt)
            asked = [{"role": "user", "content": prompt}] if is_text else prompt
            said = messages_of(asked) + said
        return tuple(checked_order(with_system(said, self._system(fields))))

    def _classification(self, fields: Fields) -> Fields:
        number = fields["label"]
        if self.names is not None and type(number) is int:
            if not 0 <= number < len(self.names):  # `datasets` writes -1 where there is none
                raise Unusable("missing", f"label {number}", is_error=True)
            number = self.names[number]
        text, label = _text(fields["text"]), _label(number)
        _need(text, label)
        return {"texts": (text,), "label": label}

    def _plain(self, fields: Fields) -> Fields:
        text = _text(fields["text"])
        _need(text)
        return {"texts": (text,)}

    def _system(self, fields: Fields) -> str | None:
        """The row's own, else that of the recipe."""
        value = fields.get("system_column", MISSING)
        own = "" if value is MISSING or value is None else _text(value)
        return own if own.strip() else self.data.system

    def _chat(self, fields: Fields, asked: str, answer: str) -> tuple[Message, ...]:
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return tuple(with_system(said, self._system(fields)))


def _text(value: Any) -> str:
    text, error = usable_text(value)
    if text is None:
        raise Unusable(error or "not_text", is_error=True)
    return text


def _label(value: Any) -> str:
    text, error = usable_label(value)
    if text is None:
        raise Unusable(error or "not_text", is_error=True)
    return text


def _need(*texts: str) -> None:
    if not all(text.strip() for text in texts):
        raise Unusable("empty")


def _differ(chosen: object, rejected: object) -> None:
    if chosen == rejected:
        raise Unusable("same", "chosen and rejected are the same")


def _is_list(text: str) -> bool:
    """Messages as a text of JSON, as CSV and databases hold them."""
    if not text.lstrip().startswith("[") or not any(f'"{key}"' in text for key in _SPEAKERS):
        return False
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return _BEGINS.match(text) is not None  # damaged messages: an error, and no answer
    return all(isinstance(row, dict) and not row.keys().isdisjoint(_SPEAKERS) for row in rows)


_READERS: dict[str, Callable[[Reading, Fields], Fields]] = {
    "prompt": Reading._prompt,
    "messages": Reading._messages,
    "instruction": Reading._instruction,
    "preference": Reading._preference,
    "classification": Reading._classification,
    "text": Reading._plain,
}
