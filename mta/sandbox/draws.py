"""The sandbox's dice, which always fall the same way, so that a test can say beforehand who is refused."""

from __future__ import annotations

from hashlib import blake2b


def chosen(share: float, subject: str, rule: int = 0) -> bool:
    """Whether `subject` (a recipient, a sender, the number of a connection) is in the `share` that a rule holds for.

    `rule` is the position of the rule in its list, from 0, so that the rules of one list choose independently.
    Addresses count without regard to case.
    """
    if share >= 1.0:
        return True
    digest = blake2b(f"{rule} {subject.lower()}".encode("utf-8", "surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") < share * 2**48
