from dataclasses import dataclass


@dataclass(frozen=True)
class Collective:
    count: int
    bytes: int
    sent_bytes: int

    @staticmethod
    def of(kind, payload, ranks, count=1):
        sent = payload if kind == "send" else payload * (ranks - 1) // ranks
        if kind == "all_reduce":
            sent = 2 * payload * (ranks - 1) // ranks
        return Collective(count, count * payload, count * sent)


def add(by_kind, kind, more):
    had = by_kind.get(kind, Collective(0, 0, 0))
    by_kind[kind] = Collective(
        had.count + more.count, had.bytes + more.bytes, had.sent_bytes + more.sent_bytes
    )
