"""How the text of a key is laid out: the lengths of its parts, and its check. No scheme, no secret."""

import zlib

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH, SECRET_LENGTH, CHECK_LENGTH = 12, 32, 6  # 32 characters of base62 are 190 bits
SEAL_LENGTH = 11  # characters of base62 that hold 8 bytes


def checksum(body: str) -> str:
    """Compute the check of an ASCII text: its CRC32, in 6 characters of base62."""
    return base62(zlib.crc32(body.encode("ascii")), CHECK_LENGTH)


def fits(body: str, check: str) -> bool:
    """Say whether a check is that of an ASCII text; read from its end, where most others differ at once."""
    number = zlib.crc32(body.encode("ascii"))
    for character in reversed(check):
        if BASE62[number % 62] != character:
            return False
        number //= 62
    return True


def base62(number: int, length: int) -> str:
    """Write the last ``length`` digits of a number, zeros in front."""
    digits = ""
    for _ in range(length):
        digits = BASE62[number % 62] + digits
        number //= 62
    return digits
