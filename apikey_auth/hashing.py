"""Digests of key texts: how they are made, named and compared. No record, no store.

A digest is ``algorithm $ pepper id $ lowercase hex``, so that it says how it was made. One fast hash is
right here: a key carries at least 112 bits of randomness, and NIST SP 800-63B-4 (section 3.1.2.2, look-up
secrets) asks for a slow, salted hash only below that. A slow one would cost every request its time, and
would hand anybody who sends garbage the server's CPU.

Digests that another system made are verified too, under names of their own, until their keys' first use
(see ``formats``):

    sha512$$<128 hex>                           of the text
    sha512-unhex$$<128 hex>                     of the bytes that the text, lowercase hex, stands for
    pbkdf2_sha256$<iterations>$<salt>$<base64>  as Django writes it
"""

import hashlib
import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from itsdangerous import Signer

from .errors import ConfigurationError

MINIMUM_SECRET = 16  # bytes; 112 bits is the least that NIST SP 800-131A accepts for HMAC
MAX_ITERATIONS = (
    4_000_000  # of PBKDF2; Django 6.1 takes 1,500,000. A forged row must not keep the CPU for hours
)

_SHA512 = re.compile(r"sha512(?:-unhex)?\$\$[0-9a-f]{128}")
_PBKDF2 = re.compile(r"pbkdf2_sha256\$([1-9][0-9]{0,6})\$([!-#%-~]{1,128})\$[0-9A-Za-z+/]{43}=")
_HEX = re.compile(r"(?:[0-9a-f]{2})+")


def derive(secret: str | bytes, purpose: str) -> bytes:
    """Derive a 32-byte key for one purpose, so that no two uses of a secret share a key.

    Raises ConfigurationError for a secret that is missing or under 16 bytes.
    """
    if not isinstance(secret, str | bytes):
        raise ConfigurationError(
            f"a secret is text or bytes, not {type(secret).__name__}; is its variable set?"
        )
    if len(secret if isinstance(secret, bytes) else secret.encode()) < MINIMUM_SECRET:
        raise ConfigurationError(
            f"a pepper, seal key or lookup secret needs at least {MINIMUM_SECRET} bytes; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    salt = f"apikey_auth.{purpose}"
    return Signer(secret, salt, key_derivation="hmac", digest_method=hashlib.sha256).derive_key()


@dataclass(frozen=True, slots=True)
class Pepper:
    """A secret that the digests depend on and the database does not hold."""

    id: str
    key: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: str | bytes) -> "Pepper":
        """Make the pepper of a secret; the id follows from the secret."""
        return cls(derive(secret, "pepper-id")[:4].hex(), derive(secret, "digest"))


def digest(text: str, pepper: Pepper | None = None) -> str:
    """Digest an ASCII text with SHA-256, or with HMAC-SHA256 where a pepper is given."""
    if pepper is None:
        return f"sha256$${hashlib.sha256(text.encode('ascii')).hexdigest()}"
    mac = hmac.digest(pepper.key, text.encode("ascii"), "sha256")
    return f"hmac-sha256${pepper.id}${mac.hex()}"


def matches(stored: str, text: str, peppers: Sequence[Pepper] = ()) -> bool:
    """Say, in constant time, whether a stored digest is this text's.

    A digest under a pepper that is not given, or in a form not known here, matches nothing.
    """
    expected = _foreign(stored, text)
    if expected is None:
        pepper_id = stored.partition("$")[2].partition("$")[0]
        pepper = next((each for each in peppers if each.id == pepper_id), None)
        expected = digest(text, pepper)
    return hmac.compare_digest(stored.encode("utf-8", "replace"), expected.encode("ascii"))


def is_foreign(stored: str) -> bool:
    """Say whether this is another system's digest in a form that ``matches`` verifies."""
    return _foreign_algorithm(stored) is not None


def _foreign(stored: str, text: str) -> str | None:
    """Digest a text in the way of another system's digest; None if the stored one is no such digest."""
    algorithm = _foreign_algorithm(stored)
    return None if algorithm is None else algorithm(stored, text)


def _foreign_algorithm(stored: str) -> Callable[[str, str], str] | None:
    if _SHA512.fullmatch(stored):
        return _sha512_unhex if stored.startswith("sha512-unhex$") else _sha512
    found = _PBKDF2.fullmatch(stored)
    return _pbkdf2 if found and int(found[1]) <= MAX_ITERATIONS else None


def _sha512(_: str, text: str) -> str:
    return f"sha512$${hashlib.sha512(text.encode('ascii')).hexdigest()}"


def _sha512_unhex(_: str, text: str) -> str:
    """Digest the bytes that a text stands for; ``fromhex`` alone would read capitals and blanks too."""
    if not _HEX.fullmatch(text):
        return ""
    return f"sha512-unhex$${hashlib.sha512(bytes.fromhex(text)).hexdigest()}"


def _pbkdf2(stored: str, text: str) -> str:
    algorithm, iterations, salt, _ = stored.split("$")
    raw = hashlib.pbkdf2_hmac("sha256", text.encode("ascii"), salt.encode("ascii"), int(iterations))
    return f"{algorithm}${iterations}${salt}${b64encode(raw).decode('ascii')}"
