"""The keys of the fuzzed world, how an input is read, and the inputs to start from."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import unquote_to_bytes

from apikey_auth.layout import checksum

CORPUS = Path(__file__).parent / "corpus"
ADA, BOB, CHIEF = "101", "102", "103"  # two users, and an administrator


def key_text(letter: str, prefix: str = "acme") -> str:
    """Make the text of a key that is the same in every run, so that inputs that hold it can be kept."""
    body = f"{prefix}_{letter * 12}_{letter * 32}"
    return body + checksum(body)


KEYS = {owner: key_text(letter) for owner, letter in ((ADA, "a"), (BOB, "b"), (CHIEF, "c"))}
LEGACY = ["abcdefgh." + "s" * 32, "0123456789abcdef" * 4, "1|" + "t" * 40]  # as other systems make them
UNKNOWN, ELSEWHERE = key_text("u"), key_text("e", "acme_test")
MARKS = {b"<ada>": KEYS[ADA], b"<bob>": KEYS[BOB], b"<chief>": KEYS[CHIEF], b"<unknown>": UNKNOWN}


@dataclass(frozen=True)
class Input:
    """An input read as a request: a byte that chooses the options, then HTTP's lines.

    ``<ada>`` in it stands for ada's key, as mutation would find no 56 characters by itself.
    """

    choice: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> "Input":
        data = written_out(data)
        head, _, body = data[1:].partition(b"\n\n")
        first, *lines = head.split(b"\n")
        method, _, target = first.decode("latin-1").partition(" ")
        pairs = (line.decode("latin-1").partition(":") for line in lines)
        headers = tuple((name, value) for name, _, value in pairs if _is_header(name))
        return cls(data[0] if data else 0, method, target, headers, body)

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def header(self, name: str) -> str | None:
        """Join a header's lines with commas, as servers do."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ",".join(values) if values else None


def written_out(data: bytes) -> bytes:
    """Put keys in the place of their marks."""
    for mark, text in MARKS.items():
        data = data.replace(mark, text.encode("ascii"))
    return data


def _is_header(name: str) -> bool:
    """Say whether servers pass such a header on; those with underscores they drop."""
    return name.isascii() and name.replace("-", "").isalnum()


def parameters(query: str, name: str) -> list[tuple[str, bool]]:
    """Split a query into pairs, and say of each whether it is the parameter, written apart from the library."""

    def named(pair: str) -> bool:
        raw = pair.split("=", 1)[0].replace("+", " ").encode("latin-1")
        return unquote_to_bytes(raw).decode("latin-1").lower() == name

    return [(pair, named(pair)) for pair in query.split("&")]


def value_of(pair: str) -> str:
    """Decode a parameter's value."""
    _, _, value = pair.partition("=")
    return unquote_to_bytes(value.replace("+", " ").encode("latin-1")).decode("latin-1")


TEXTS = [
    *(mark.decode("ascii") for mark in MARKS),
    ELSEWHERE,
    *LEGACY,
    *(f"{text}x" for text in LEGACY),
    KEYS[ADA][:-3],
    "<ada>ab",
    "<ada>0",
    KEYS[ADA].replace("a_", "b_"),
    "Bearer <ada>",
    '"<ada>"',
    "acme_aaaaaaaaaaaa_…aaaa",
    "acme_***",
    "sha256$$" + "ab" * 32,
    "pbkdf2_sha256$1000$salt$",
    "acme%5F",
    "${KEY}",
]
QUERIES = [
    "apikey=<ada>",
    "a=1&ApiKey=<ada>&b=2",
    "%61pi%4Bey=<ada>&&x",
    "apikey=<ada>&apikey=<ada>",
    "apikey=+%20&apikey",
    "apikey=%00%ff",
    "$top=1&$skip=0&$inlinecount=allpages",
    "$top=-1",
    "$skip=x",
]
HEADERS = [
    "Sec-Fetch-Site: same-origin",
    "apikey:<ada>",
    "apikey: <bob>\napikey:<bob>",
    "apikey: \x0b<ada>\xa0",
    "Authorization: Bearer <chief>",
    "Authorization: Basic x\nApiKey:\t<ada> ",
    "X-Forwarded-For: 203.0.113.7, 10.0.0.1",
    "Origin: https://keys.example.com\nHost: keys.example.com",
    "Origin: http://[",
    "Sec-Fetch-Site: same-origin\nContent-Type: application/json",
    "Sec-Fetch-Site: same-origin\nContent-Type: multipart/form-data; boundary=x",
    "Origin: a\nAccess-Control-Request-Method: GET",
]
TARGETS = [
    "/odata.svc/Root/IMS/Public/('101')/GetApiKeys",
    "/odata.svc/('Root')/CreateApiKey",
    "/odata.svc/content(101)/CreateApiKey",
    "/odata.svc/('102')/DeleteApiKey",
    "/odata.svc/('Root')/DeleteApiKeys",
    "/ODATA.svc/('a%00b')/GetCurrentUser",
    "/me",
    "/public/x",
]
BODIES = [
    "",
    '{"apiKey": "<ada>"}',
    '{"apiKey": " aaaaaaaaaaaa"}',
    '{"apiKey": "x", "APIKEY": NaN}',
    "models=[{'apiKey': '<bob>'}]",
    "apiKey=<chief>",
    'models=%5B%7B"apiKey":"aaaaaaaaaaaa"%7D%5D',
    '--x\r\nContent-Disposition: form-data; name="apiKey"\r\n\r\n<ada>\r\n--x--',
    "null",
    "[{}]",
]
_SIGNS = ["apikey", "ApiKey", "%61", "%", "+", "&", "=", ",", " ", "\t", "\n", "\n\n", "\0", "\xa0"]
TOKENS = [
    token.encode()
    for tokens in (TEXTS, QUERIES, HEADERS, TARGETS, BODIES, _SIGNS)
    for token in tokens
    if token
]


def seeds(target: str) -> list[bytes]:
    """List the inputs to start from: those written here, and those that were kept."""
    if target == "parse":
        texts = [text.encode() for text in TEXTS]
        return [bytes([choice]) + text for text in texts for choice in range(15)] + kept(target)
    chance = Random(1)
    made = []
    for _ in range(400):
        method = chance.choice(("GET", "POST", "POST", "OPTIONS"))
        path, query, headers, body = map(chance.choice, (TARGETS, ["", *QUERIES], ["", *HEADERS], BODIES))
        lines = f"{method} {path}?{query}\n{headers}\n\n{body}"
        made.append(bytes([chance.randrange(64)]) + lines.encode())
    return made + kept(target)


def kept(target: str) -> list[bytes]:
    """Read a target's corpus: a JSON list of inputs, each byte a character of Latin-1."""
    path = CORPUS / f"{target}.json"
    return [each.encode("latin-1") for each in json.loads(path.read_text())] if path.exists() else []


def keep(target: str, inputs: list[bytes]) -> None:
    """Write a target's corpus."""
    CORPUS.mkdir(exist_ok=True)
    lines = sorted({each.decode("latin-1") for each in inputs}, key=lambda each: (len(each), each))
    (CORPUS / f"{target}.json").write_text(json.dumps(lines, indent=0) + "\n")
