"""Key texts by the million, as nobody issued them. No part of the library makes them, which would be slow."""

import zlib

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "bench"
SEAL_KEY = "what the keys of the benchmarks are sealed with"
_SECRET = "Zq3v7Kx1" * 4
_SEAL = "0ForgedSeal"


def unknown(n: int) -> str:
    """Make a well-formed text that is nobody's key, another one for each number."""
    return _checked(f"{PREFIX}_{n:012}_{_SECRET}")


def forged(n: int) -> str:
    """Make one with a seal that is of no seal key."""
    return _checked(f"{PREFIX}_{n:012}_{_SECRET}{_SEAL}")


def malformed(n: int) -> str:
    """Make one that is wrong only in its last character, which is the latest that it can be found out."""
    text = unknown(n)
    return text[:-1] + ("a" if text[-1] == "b" else "b")


def _checked(body: str) -> str:
    number, digits = zlib.crc32(body.encode("ascii")), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return body + digits
