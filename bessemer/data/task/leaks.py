"""Examples that would teach what is held out: those that learn an answer to a prompt that is held out too.

A prompt is all that stands before an answer, so a chat has one for each answer that is learnt of it, and is
refused (`leak`) for any of them. But how chats begin ("Hello") is nobody's secret: where more than
`MOST_LOST` chats would be refused for one prompt, the held-out side gives way. A held-out chat is measured
behind the last answer to such a prompt, and refused itself where nothing is left to be measured. Either way
no answer that is measured has a prompt that is trained on.
Examples that are no chats have one prompt, without which nothing of them is left: there training gives way.
Cost: 20 bytes of memory an answer.
"""

from array import array
from collections.abc import Mapping

import numpy as np

from bessemer.data import holdout
from bessemer.data.spool import Numbers

MOST_LOST = 10  # training chats for one held-out prompt


class Prompts:
    """Hashes of what every answer that is learnt is given to, whose they are, and where the answer ends."""

    def __init__(self) -> None:
        self._hashes, self._owners, self._ends = array("Q"), array("q"), array("i")

    def add(self, owner: int, ends: Mapping[bytes, int]) -> None:
        """ends: of each prompt of an example, the number of messages up to its answer's end; 0: no chat."""
        self._hashes.extend(holdout.holdout_hash(None, None, key) for key in ends)
        self._owners.extend([owner] * len(ends))
        self._ends.extend(ends.values())

    def refuse_leaks(self, parts: Numbers) -> dict[int, int]:
        """Set LEAK. Of held-out chats that begin as training does, the messages that are not measured."""
        asked, owners = np.array(self._hashes, dtype=np.uint64), np.array(self._owners, dtype=np.int64)
        ends, part = np.array(self._ends, dtype=np.int64), parts[owners]
        held, trains = part == holdout.VALIDATION, part == holdout.TRAIN
        prompts, counts = np.unique(asked[trains], return_counts=True)  # each once of an example
        given_up = held & (ends > 0) & np.isin(asked, prompts[counts > MOST_LOST])
        measured = held & ~given_up
        parts[owners[trains & np.isin(asked, asked[measured])]] = holdout.LEAK
        parts[np.setdiff1d(owners[given_up], owners[measured])] = holdout.LEAK
        begins: dict[int, int] = {}
        for owner, end in zip(owners[given_up].tolist(), ends[given_up].tolist(), strict=True):
            if parts[owner] == holdout.VALIDATION:
                begins[owner] = max(end, begins.get(owner, 0))
        return begins
