"""Digests of key texts: how they are made, named and compared. No record, no store.

A digest is ``algorithm $ pepper id $ lowercase hex``, so that it says how it was made. One fast hash is
right here: a key carries at least 112 bits of randomness, and NIST SP 800-63B-4 (section 3.1.2.2, look-up
secrets) asks for a slow, salted hash only below that. A slow one would cost every request its time, and
would hand anybody who sends garbage the server's CPU.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from itsdangerous import Signer

from .errors import ConfigurationError

MINIMUM_SECRET = 16  # bytes; 112 bits is the least that NIST SP 800-131A accepts for HMAC


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
            f"a pepper or lookup secret needs at least {MINIMUM_SECRET} bytes; make one with "
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
    pepper_id = stored.partition("$")[2].partition("$")[0]
    pepper = next((each for each in peppers if each.id == pepper_id), None)
    return hmac.compare_digest(stored.encode("utf-8", "replace"), digest(text, pepper).encode("ascii"))
