"""Bodies as sensenet's clients send them: any bytes give parameters or a bad request, and soon."""

import json
from contextlib import suppress
from time import process_time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apikey_auth.management.bodies import MAX_PARTS, fields_of
from apikey_auth.management.handler import MAX_BODY, BadRequest


def multipart(*parts: tuple[str, str], boundary: str = "xyz") -> bytes:
    body = ""
    for head, content in parts:
        body += f"--{boundary}\r\n{head}\r\n\r\n{content}\r\n"
    return f"{body}--{boundary}--\r\n".encode()


def named(name: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"'


FORM = "multipart/form-data; boundary=xyz"


class TestJSON:
    @pytest.mark.parametrize(
        ("body", "fields"),
        [
            ('{"apiKey":"abcd"}', {"apikey": "abcd"}),
            ("{'apiKey': 'abcd'}", {"apikey": "abcd"}),
            ('[{"apiKey":"abcd"}]', {"apikey": "abcd"}),
            ('models=[{"apiKey":"abcd"}]', {"apikey": "abcd"}),
            ("models=%5B%7B%22apiKey%22%3A%22abcd%22%7D%5D", {"apikey": "abcd"}),
            ("models=[{'apiKey':'abcd'}]", {"apikey": "abcd"}),
            ('models={"apiKey":"abcd"}', {"apikey": "abcd"}),
            ('  \t\r\n{"apiKey":"abcd"}\n', {"apikey": "abcd"}),
            ('\ufeff{"apiKey":"abcd"}', {"apikey": "abcd"}),
            (
                '{"A":1,"b":null,"C":[{"D":2}],"e":1.5,"f":true}',
                {"a": 1, "b": None, "c": [{"D": 2}], "e": 1.5, "f": True},
            ),
            ("{}", {}),
            ("[]", {}),
            ("[{}]", {}),
            ("[null]", {}),
            ("null", {}),
            ("models=[]", {}),
            ("models=null", {}),
        ],
    )
    def test_every_coat_of_it_is_read(self, body: str, fields: Any) -> None:
        assert fields_of(body.encode(), "application/json") == fields
        assert fields_of(body.encode(), None) == fields
        assert fields_of(body.encode(), "text/plain;charset=UTF-8") == fields

    @pytest.mark.parametrize(
        ("body", "value"),
        [
            ("{'a': 'it\\'s'}", "it's"),
            ("{'a': 'say \"x\"'}", 'say "x"'),
            ("""{"a": "it's"}""", "it's"),
            ("""{'b': 1, "a": "it's"}""", "it's"),
            ("""{'b': 'x', "a": "it's 'quoted'"}""", "it's 'quoted'"),
            ("{'a': 'a\\\\'}", "a\\"),
            ("{'a': '\\u0041\\n'}", "A\n"),
            ("{'a': ''}", ""),
            ("{'a': '{\\'b\\': 1}'}", "{'b': 1}"),
            ("{'a': 'x,y:z]}'}", "x,y:z]}"),
            ("{'a': 'ü'}", "ü"),
            ('{"a": "%41+"}', "%41+"),
        ],
    )
    def test_quotes_of_either_kind_hold_what_stands_between_them(self, body: str, value: str) -> None:
        assert fields_of(body.encode(), None)["a"] == value

    @pytest.mark.parametrize(
        "body",
        [
            "{",
            "{'a': 'b'",
            "{'a': 'b}",
            "{'a': b}",
            "{a: 'b'}",
            '{"a": "b",}',
            "{'a': 'b'}}",
            '{"a":1}{"b":2}',
            "[{},{}]",
            "[1]",
            '["a"]',
            "[[]]",
            "models=1",
            "models=",
            "models=[1,2]",
            '{"a":1,"a":2}',
            '{"a":1,"A":2}',
            '{"x":{"a":1,"A":2}}',
            '{"a":NaN}',
            '{"a":-Infinity}',
            '{"a":' + "1" * 5000 + "}",
            "[" * 10000 + "]" * 10000,
            '{"a":' * 10000 + "1" + "}" * 10000,
            "{'a':" * 10000 + "1" + "}" * 10000,
            "{\0}",
            '{"a":"\t\n"}',
            '{"a":"\\x"}',
            "models=%FF",
            "true",
            "1",
            "abcd",
            "nonsense",
            "a",
            "<xml/>",
            "&",
            "a&b=1",
        ],
    )
    def test_what_is_none_is_a_bad_request(self, body: str) -> None:
        with pytest.raises(BadRequest):
            fields_of(body.encode(), "application/json")

    def test_names_are_matched_without_regard_to_case(self) -> None:
        assert fields_of(b'{"APIKEY":1}', None) == fields_of(b'{"ApiKey":1}', None) == {"apikey": 1}

    def test_depth_is_read_or_refused_and_never_an_error(self) -> None:
        for depth in range(600, 1001, 10):
            for opening, closing in (('{"a":', "}"), ("[", "]"), ("{'a':", "}")):
                with suppress(BadRequest):
                    fields_of((opening * depth + "1" + closing * depth).encode(), None)


class TestForms:
    @pytest.mark.parametrize(
        ("body", "fields"),
        [
            ("apiKey=abcd", {"apikey": "abcd"}),
            ("apiKey=", {"apikey": ""}),
            ("a=1&B=2", {"a": "1", "b": "2"}),
            ("a=%C3%BC+x%2By", {"a": "ü x+y"}),
            ("a=b=c", {"a": "b=c"}),
            ("%61=1", {"a": "1"}),
            ("a=[{}]", {"a": "[{}]"}),
            ("a=%7B", {"a": "{"}),
        ],
    )
    def test_fields_are_read(self, body: str, fields: Any) -> None:
        assert fields_of(body.encode(), "application/x-www-form-urlencoded") == fields
        assert fields_of(body.encode(), None) == fields

    @pytest.mark.parametrize(
        "body", ["a=1&a=2", "a=1&A=1", "a=1&%61=2", "a", "a=%FF", "a=1&&b=2", "%FF=1", "a=1&b"]
    )
    def test_what_is_doubtful_is_a_bad_request(self, body: str) -> None:
        with pytest.raises(BadRequest):
            fields_of(body.encode(), None)


class TestMultipart:
    @pytest.mark.parametrize(
        "content_type",
        [
            FORM,
            'multipart/form-data; boundary="xyz"',
            "MULTIPART/FORM-DATA; BOUNDARY=xyz",
            "multipart/form-data; charset=utf-8; boundary=xyz",
        ],
    )
    def test_parts_are_fields(self, content_type: str) -> None:
        body = multipart((named("apiKey"), "abcd"), (named("B"), "ü\r\nzwei"), (named("empty"), ""))
        assert fields_of(body, content_type) == {"apikey": "abcd", "b": "ü\r\nzwei", "empty": ""}

    def test_a_part_may_have_a_type_a_charset_and_a_file_name(self) -> None:
        head = f'{named("apiKey")}; filename="key.txt"\r\nContent-Type: text/plain; charset=utf-8'
        assert fields_of(multipart((head, "abcd")), FORM) == {"apikey": "abcd"}

    def test_what_looks_like_json_in_a_part_is_text(self) -> None:
        assert fields_of(multipart((named("apiKey"), '{"a":1}')), FORM) == {"apikey": '{"a":1}'}

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (multipart((named("a"), "1"), (named("A"), "2")), FORM),
            (multipart((named("a"), "1")), "multipart/form-data"),
            (multipart((named("a"), "1")), "multipart/form-data; boundary="),
            (multipart((named("a"), "1")), "multipart/form-data; boundary=abc"),
            (multipart((named("a"), "1"))[:-6], FORM),
            (multipart(("Content-Disposition: form-data", "1")), FORM),
            (multipart(("Content-Disposition: form-data; name*", "1")), FORM),
            (multipart(("", "1")), FORM),
            (multipart(("X: y", "1")), FORM),
            (b"--xyz--\r\n", "multipart/mixed"),
            (b"nonsense", FORM),
            (b'{"apiKey":"abcd"}', FORM),
            (b"apiKey=abcd", FORM),
            (b"--xyz\r\n", FORM),
            (b"--xyz\r\n\r\n\xff\r\n--xyz--", FORM),
        ],
    )
    def test_what_is_none_is_a_bad_request(self, body: bytes, content_type: str) -> None:
        with pytest.raises(BadRequest):
            fields_of(body, content_type)

    def test_no_encoding_smuggles_anything_in(self) -> None:
        for encoding in ("base64", "quoted-printable", "uuencode", "x-nonsense", "7bit", "binary"):
            head = f"{named('apiKey')}\r\nContent-Transfer-Encoding: {encoding}"
            for content in ("YWJjZA==", "=FF=FE", "a=\xff", "begin 644 x\r\n#86)C\r\n \r\nend"):
                try:
                    (value,) = fields_of(multipart((head, content)), FORM).values()
                except BadRequest:
                    continue
                assert isinstance(value, str)

    def test_forms_within_forms_are_a_bad_request_however_deep(self) -> None:
        for depth in (2, 50, 1500):
            body = b""
            for level in range(depth):
                body += f"--b{level}\r\nContent-Type: multipart/mixed; boundary=b{level + 1}\r\n\r\n".encode()
            with pytest.raises(BadRequest):
                fields_of(body[:MAX_BODY], "multipart/form-data; boundary=b0")

    def test_messages_within_messages_are_a_bad_request_however_deep(self) -> None:
        for depth in (1, 50, 1500):
            part = f"--xyz\r\n{named('a')}\r\n".encode() + b"Content-Type: message/rfc822\r\n\r\n" * depth
            with pytest.raises(BadRequest):
                fields_of(part + b"1\r\n--xyz--\r\n", FORM)

    @pytest.mark.parametrize("newline", [b"\r\n", b"\n", b"\r"])
    def test_a_form_of_too_many_parts_is_refused_before_it_is_taken_apart(
        self, monkeypatch: pytest.MonkeyPatch, newline: bytes
    ) -> None:
        parts = [(named(f"p{number}"), "1") for number in range(MAX_PARTS)]
        fields_of(multipart(*parts).replace(b"\r\n", newline), FORM)
        monkeypatch.setattr("apikey_auth.management.bodies.BytesParser", None)
        with pytest.raises(BadRequest, match="over 100 parts"):
            fields_of(multipart(*parts, (named("one more"), "1")).replace(b"\r\n", newline), FORM)

    @pytest.mark.parametrize(
        "head",
        [
            "Content-Disposition: form-data; name*=utf-8''a%FF",
            "Content-Disposition: form-data; name*=nonsense''a",
            "Content-Disposition: form-data; name*0=a; name*1=b",
            "Content-Disposition: form-data; name*x=a; name",
            "Content-Disposition: ;;;=;name==",
            'Content-Disposition: form-data; name="a',
            "Content-Type: text/plain; charset=nonsense\r\nContent-Disposition: form-data; name=a",
            "Content-Type: message/rfc822\r\nContent-Disposition: form-data; name=a",
            "Content-Type: message/delivery-status\r\nContent-Disposition: form-data; name=a",
            "Content-Type: multipart/digest\r\nContent-Disposition: form-data; name=a",
            "Content-Type: \xff/\xff; =\r\nContent-Disposition: form-data; name=a",
            'Content-Disposition: form-data; name="=?utf-8?q?=00?="',
            "Content-Disposition: form-data; name=?utf-8?b?!!!?=",
            "Content-Disposition: \r\n form-data;\r\n name=a",
        ],
    )
    def test_any_head_of_a_part_is_read_or_refused(self, head: str) -> None:
        with suppress(BadRequest):
            assert isinstance(fields_of(multipart((head, "x")), FORM), dict)


class TestSize:
    def test_sixty_four_kibibytes_are_read_and_not_one_byte_more(self) -> None:
        assert fields_of(b"{}".ljust(MAX_BODY), None) == {}
        with pytest.raises(BadRequest, match="65536"):
            fields_of(b"{}".ljust(MAX_BODY + 1), None)
        with pytest.raises(BadRequest):
            fields_of(b" " * (MAX_BODY + 1), None)

    @pytest.mark.parametrize("body", [b"", b" ", b"\r\n\t ", b"\xef\xbb\xbf"])
    def test_nothing_is_no_parameters_whatever_its_type(self, body: bytes) -> None:
        for content_type in (None, "", "application/json", FORM):
            assert fields_of(body, content_type) == {}

    @pytest.mark.parametrize("body", [b"\xff", b"\xed\xa0\x80", '{"a":1}'.encode("utf-16"), b"a=\xe9"])
    def test_another_charset_is_a_bad_request(self, body: bytes) -> None:
        for content_type in (None, "application/json; charset=utf-16", "text/plain; charset=latin-1"):
            with pytest.raises(BadRequest, match="UTF-8"):
                fields_of(body, content_type)

    @pytest.mark.parametrize(
        ("unit", "content_type"),
        [
            ("\\'", None),
            ("'", None),
            ("'\\", None),
            ("''\\", None),
            ("\"'", None),
            ("'a':", None),
            ("{'", None),
            ("[", None),
            ("&a", None),
            ("a=1&", None),
            ("%27", None),
            ("--xyz\r\n", FORM),
            ("--xyz\r\n\r\n", FORM),
            ("a:\r\n ", FORM),
            ("--xyz\r\nContent-Type: multipart/mixed; boundary=xyz\r\n\r\n", FORM),
            (";name=", FORM),
            ("\r\n", FORM),
        ],
    )
    @pytest.mark.parametrize("start", ["{", "models=", "--xyz\r\nContent-Disposition: form-data; name="])
    def test_no_body_takes_more_than_its_length_in_time(
        self, unit: str, content_type: str | None, start: str
    ) -> None:
        """Bodies are read for anybody, before rights: a quadratic step in 64 KiB would be a door."""

        def cost(size: int) -> float:
            body = (start + unit * size)[:size].encode()
            began = process_time()
            with suppress(BadRequest):
                fields_of(body, content_type)
            return process_time() - began

        if (sixteen := cost(16384)) > 0.2:  # a linear step takes a few milliseconds
            assert sixteen < 10 * cost(4096)


pieces = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        "'",
        '"',
        "\\",
        ",",
        ":",
        "=",
        "&",
        "%",
        "apiKey",
        "models=",
        "null",
        "1e",
        "\0",
        "--xyz",
        "\r\n",
    ]
)
texts = st.lists(pieces | st.text(max_size=3), max_size=30).map("".join)
bodies = st.binary(max_size=200) | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
types = (
    st.none() | st.text(max_size=30) | st.sampled_from([FORM, "multipart/", "multipart/mixed; boundary=\x00"])
)


@settings(max_examples=300, deadline=None, database=None)
@given(bodies, types)
@example(b"--\r\n\r\n----", "multipart/form-data; boundary=")
def test_any_body_of_any_type_gives_parameters_or_a_bad_request(
    body: bytes, content_type: str | None
) -> None:
    try:
        fields = fields_of(body, content_type)
    except BadRequest:
        return
    assert all(isinstance(name, str) and name == name.lower() for name in fields)


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(texts, max_size=3), st.sampled_from([FORM, "multipart/related; boundary=xyz"]), texts)
def test_any_multipart_body_gives_texts_or_a_bad_request(heads: list[str], kind: str, content: str) -> None:
    body = multipart(*((f"Content-Disposition: form-data; name={head}\r\n{head}", content) for head in heads))
    try:
        fields = fields_of(body, kind)
    except BadRequest:
        return
    assert all(isinstance(value, str) for value in fields.values())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, database=None)
@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_json_is_read_as_it_was_written(fields: dict[str, Any]) -> None:
    lowered = {name.lower(): value for name, value in fields.items()}
    if len(lowered) == len(fields):
        body = json.dumps(fields).encode()
        assert fields_of(body, None) == fields_of(b"[" + body + b"]", None) == lowered
