"""A middleware's options, and one request's way past them: what every adapter shares. Pure.

An adapter makes one ``Policy`` when it starts. For each request it asks for a ``Visit``, cuts the key out
of the URL as the visit says, has the visit admitted by an authenticator, and lets the application go on
or answers with the refusal. Views ask the visit for what they need.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar, Unpack

from .cache import Verdict
from .credentials import DEFAULT_CARRIERS, Bearer, Carrier, Credential, Header, HeaderReader, Query, read
from .decisions import Identity, Networks, client_address, client_scheme, is_loopback, is_proxy, networks
from .errors import AmbiguousKey, ConfigurationError, MissingKey, Refusal
from .keys import checked_block, checked_scopes
from .responses import Answers, Response, guard, vary_on

IDENTITY = "apikey_auth.identity"
"""Where a WSGI environ or an ASGI scope holds the ``Identity`` of a request that came with a good key."""

VISIT = "apikey_auth.visit"
"""Where it holds the ``Visit``."""

UNIX = "unix"
ENCRYPTED = ("https", "wss")

_REALM = re.compile(r"[ !#-\[\]-~]*")  # what a quoted-string holds unescaped, RFC 9110 section 5.6.4


H = TypeVar("H")  # a WSGI environ or an ASGI scope
Render: TypeAlias = Callable[[Refusal, str], "tuple[str, bytes] | None"]


class Options(TypedDict, total=False):
    """The options of every ``APIKeyMiddleware``.

    ``required``: no key, no entry; otherwise a request without a key goes on as a visitor's.
    ``exempt``: paths where no key is looked for, exact or a prefix that ends in ``/`` (``/`` alone is just
    the root), below the application's mount point; a path with ``..`` or ``//`` in it never matches.
    ``carriers``: where keys are looked for, ``[Header("apikey"), Query("apikey")]`` by default.
    ``on_invalid``: ``"reject"``, or ``"anonymous"`` to treat who comes with a bad key (401) as a visitor.
    ``realm``: the realm that challenges name.
    ``render``: writes the body of a refusal, given the refusal and the path below the mount point: a content
    type and the body, or None for the problem details.
    ``trusted_proxies``: CIDR blocks whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed,
    ``"unix"`` for a Unix socket.
    ``insecure``: what becomes of a key that was sent over plain http, unless from this machine: ``"allow"``,
    ``"refuse"`` with 403, good or bad alike, or ``"revoke"`` it as well (draft-ietf-httpapi-privacy).
    ``hide_credentials``: keys are cut out of the headers too, before the application sees them.
    """

    required: bool
    exempt: Sequence[str]
    carriers: Sequence[Carrier]
    on_invalid: Literal["reject", "anonymous"]
    realm: str
    render: "Render | None"
    trusted_proxies: Sequence[str]
    insecure: Literal["allow", "refuse", "revoke"]
    hide_credentials: bool


class Policy:
    """The options of a middleware, checked once. Raises ConfigurationError for one that will not do."""

    __slots__ = (
        "answers",
        "carriers",
        "exact",
        "has_exempt",
        "header",
        "hide_credentials",
        "insecure",
        "lead",
        "on_invalid",
        "parameter",
        "prefixes",
        "proxies",
        "realm",
        "render",
        "required",
        "unix",
        "variable",
        "vary",
    )

    def __init__(self, **options: Unpack[Options]) -> None:
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            known = ", ".join(Options.__annotations__)
            raise ConfigurationError(f"there is no option {', '.join(unknown)}; the options are {known}")
        self.required = options.get("required", False)
        if not isinstance(self.required, bool):
            raise ConfigurationError(f"required is True or False, not {self.required!r}")
        self.on_invalid = options.get("on_invalid", "reject")
        if self.on_invalid not in ("reject", "anonymous"):
            raise ConfigurationError(f"on_invalid is 'reject' or 'anonymous', not {self.on_invalid!r}")
        self.realm = options.get("realm", "api")
        if not isinstance(self.realm, str) or not _REALM.fullmatch(self.realm):
            raise ConfigurationError(
                f"the realm {self.realm!r} must be printable ASCII without quote or backslash"
            )
        self.render = options.get("render")
        if self.render is not None and not callable(self.render):
            raise ConfigurationError(f"render is a function of a refusal and a path, not {self.render!r}")
        self.insecure = options.get("insecure", "allow")
        if self.insecure not in ("allow", "refuse", "revoke"):
            raise ConfigurationError(f"insecure is 'allow', 'refuse' or 'revoke', not {self.insecure!r}")
        self.hide_credentials = options.get("hide_credentials", False)
        if not isinstance(self.hide_credentials, bool):
            raise ConfigurationError(f"hide_credentials is True or False, not {self.hide_credentials!r}")
        self.carriers = _checked_carriers(options.get("carriers", DEFAULT_CARRIERS))
        self.header, self.lead, self.parameter = _usual_places(self.carriers)
        self.variable = self.header and f"HTTP_{self.header.upper().replace('-', '_')}"  # RFC 3875 4.1.18
        self.vary = vary_on(self.carriers)
        self.answers = Answers(self.carriers, self.realm)
        paths = _checked_paths(options.get("exempt", ()))
        self.exact = frozenset(path for path in paths if path == "/" or not path.endswith("/"))
        self.prefixes = tuple(path for path in paths if path not in self.exact)
        self.has_exempt = bool(paths)
        self.proxies, self.unix = _checked_proxies(options.get("trusted_proxies", ()))

    def visit(
        self,
        method: str,
        path: str,
        header: HeaderReader,
        query: str = "",
        peer: str | None = None,
        outer: "Visit | None" = None,
        scheme: str = "https",
    ) -> "Visit":
        """Read what a request says of its key.

        ``path`` is the decoded path below the application's mount point, ``peer`` the address of the other
        end of the connection, ``scheme`` its scheme, ``outer`` the visit of a middleware further out: what
        that one cut out is read all the same.
        """
        sent = query if outer is None else outer.sent
        if outer is not None and outer.hidden:
            header = _with(outer.hidden, header)
        credential = read(self.carriers, header, sent)
        visit = Visit(self, method, path, credential, self.address_of(peer, header), outer)
        visit.exempt = self.exempts(path) or _is_preflight(method, header)
        if self.insecure != "allow" and credential.carried and not visit.exempt:
            visit.is_exposed = not self.is_secure(scheme, peer, header)
        visit.sent = sent
        visit.hidden = None if outer is None else outer.hidden
        visit.query = visit.credential.query if outer is None else self.without_keys(f"?{query}")[1:]
        return visit

    def address_of(self, peer: str | None, header: HeaderReader) -> str | None:
        """Find the client's address; ``peer`` is the one at the other end of the connection."""
        if self.proxies or self.unix:
            return client_address(peer, header("X-Forwarded-For"), self.proxies, self.unix)
        return peer

    def is_secure(self, scheme: str, peer: str | None, header: HeaderReader) -> bool:
        """Say whether nobody could listen between the client and this server, or its named proxies."""
        address = peer
        if is_proxy(peer, self.proxies, self.unix):
            forwarded = header("X-Forwarded-For"), header("X-Forwarded-Proto")
            scheme = client_scheme(scheme, peer, *forwarded, self.proxies, self.unix)
            address = self.address_of(peer, header) if forwarded[0] else None  # not the proxy's own
        return scheme in ENCRYPTED or is_loopback(address)

    def is_plainly_secure(self, scheme: object) -> bool:
        """Say whether a connection's scheme alone tells that it is secure: no proxy has a say in it."""
        return scheme in ENCRYPTED and not self.proxies and not self.unix

    def hides(self, name: str, value: str) -> bool:
        """Say whether a header of a request carries a key that the application is not to see.

        ``name`` is in lower case. An ``Authorization`` of a scheme that no carrier reads stays.
        """
        for carrier in self.carriers:
            if isinstance(carrier, Header) and name == carrier.name.lower():
                return True
            if isinstance(carrier, Bearer) and name == "authorization":
                return bool(carrier.values(lambda _: value))
        return False

    def without_keys(self, target: str) -> str:
        """Cut the key out of a request target, ``/path?query``, and leave the rest, byte for byte."""
        path, _, query = target.partition("?")
        rest = query
        for carrier in self.carriers:
            if isinstance(carrier, Query):
                rest = carrier.split(rest)[1]
        if rest == query:
            return target
        return f"{path}?{rest}" if rest else path

    def exempts(self, path: str) -> bool:
        """Say whether no key is looked for under a path."""
        named = path in self.exact or path.startswith(self.prefixes)
        return named and ".." not in path and "//" not in path


class Visit:
    """One request: what it carried, who it turned out to be, or why it was turned away.

    ``query`` is the query string to leave, ``sent`` what it was with the key in it. ``identity`` and
    ``refusal`` are set by the authenticator that admits it, ``authority`` names that one. ``answered`` says that
    the application has begun an answer, ``accepted`` that it took a websocket. ``is_exposed`` says that the key
    was sent in the clear, ``hidden`` are the headers with keys that were cut out, by their lower-case names.
    """

    exempt = is_exposed = answered = accepted = False
    hidden: Mapping[str, str] | None = None
    outer: "Visit | None" = None
    authority: object = None
    identity: Identity[Any] | None = None
    refusal: Refusal | None = None

    def __init__(
        self,
        policy: Policy,
        method: str,
        path: str,
        credential: Credential,
        address: str | None,
        outer: "Visit | None",
    ) -> None:
        self.policy = policy
        self.method = method
        self.path = path
        self.credential = credential
        self.address = address
        self.outer = outer
        self.query = self.sent = ""
        if credential.text is None:
            self.refusal = AmbiguousKey(detail=credential.clash) if credential.ambiguous else MissingKey()

    @property
    def text(self) -> str | None:
        """The key to check; None where there is nothing to check."""
        return None if self.exempt else self.credential.text

    @property
    def turned_away(self) -> Refusal | None:
        """The refusal that ends the request before the application; None if it may go on."""
        refusal, policy = self.refusal, self.policy
        if refusal is None or self.exempt:
            return None
        if not policy.required:
            if isinstance(refusal, MissingKey):
                return None
            if refusal.status == 401 and policy.on_invalid == "anonymous":
                return None
        return refusal

    def refuse(self, refusal: Refusal) -> None:
        """Keep a refusal for the view that asks, without the frames it came through: they hold the key."""
        refusal.__cause__ = refusal.__context__ = None
        self.refusal = refusal.with_traceback(None)

    @property
    def replaced(self) -> "Identity[Any] | None":
        """The identity that a middleware further out found, where this one, looking too, found none."""
        if self.outer is None or self.exempt or self.identity is not None:
            return None
        return self.outer.identity

    def inherits(self, authority: object) -> bool:
        """Take over the identity that this authenticator found for a middleware further out, if it did."""
        if self.outer is None or self.outer.identity is None or self.outer.authority is not authority:
            return False
        self.identity, self.authority, self.refusal = self.outer.identity, authority, None
        return True

    def require(self, *scopes: str) -> Identity[Any]:
        """Give the identity to a view that needs one with these scopes.

        Raises the refusal that the key met, MissingKey where there was no key, or InsufficientScope.
        """
        if self.identity is None:
            raise anew(self.refusal) if self.refusal else MissingKey()
        self.identity.require(*scopes)
        return self.identity

    def respond(self, refusal: Refusal, rendered: tuple[str, bytes] | None = None) -> Response:
        """Answer the request with a refusal; with a body of its own, or as the policy renders it."""
        policy = self.policy
        if rendered is None and policy.render is not None:
            rendered = policy.render(refusal, self.path)
        _, _, in_url = self.privacy
        return policy.answers.to(refusal, self.method, in_url, rendered)

    @property
    def privacy(self) -> tuple[str, bool, bool]:
        """What the privacy of an answer depends on: the first arguments of ``responses.guard``."""
        vary = "" if self.exempt else self.policy.vary
        return vary, self.credential.carried, self.credential.in_url

    def guard(self, present: Mapping[str, str]) -> Mapping[str, str]:
        """Tell which headers keep the application's answer private; see ``responses.guard``."""
        return guard(*self.privacy, present)


class Recognition(Visit, Generic[H]):
    """The visit of a request whose key was recognized, or was none: it stood in a header, and nowhere else.

    What hardly anybody asks is found out when it is asked, from what was ``seen``: a copy of the WSGI environ
    or the ASGI scope.
    """

    pending: Verdict | None = None
    """The verdict whose identity an authenticator has yet to find, by ``let_in``."""

    def __init__(self, policy: Policy, authority: object, found: Verdict | Refusal, seen: H) -> None:
        self.policy = policy
        self.seen = seen
        if isinstance(found, Refusal):
            self.refusal = found
            return
        self.authority = authority
        self.identity = found.identity
        if found.identity is None:
            self.pending = found

    def find_out(self, name: str) -> Any:
        """Find what the visit has beside."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name not in ("method", "path", "query", "sent", "address", "credential"):
            raise AttributeError(name)
        found = self.__dict__[name] = self.find_out(name)
        return found

    @property
    def privacy(self) -> tuple[str, bool, bool]:
        return self.policy.vary, True, False


def anew(refusal: Refusal) -> Refusal:
    """Make the same refusal to be raised: one that a visit keeps must not keep the frames, which hold the visit."""
    copy: Refusal = type(refusal).__new__(type(refusal))
    copy.__dict__.update(refusal.__dict__)
    copy.args = refusal.args
    return copy


def outer_visit(holder: Mapping[str, Any]) -> Visit | None:
    """Give the visit of a middleware further out, out of a WSGI environ or an ASGI scope, if there is one."""
    outer = holder.get(VISIT)
    return outer if isinstance(outer, Visit) else None


def visit_of(holder: Mapping[str, Any]) -> Visit:
    """Find the visit in a WSGI environ or an ASGI scope. Raises ConfigurationError for none."""
    visit = outer_visit(holder)
    if visit is None:
        raise ConfigurationError(
            "this request passed no APIKeyMiddleware: add it to the application (in Flask and FastAPI: APIKeyAuth(auth, app))"
        )
    return visit


def require(holder: Mapping[str, Any], *scopes: str) -> Identity[Any]:
    """Give a request's identity to a view that needs one with these scopes.

    ``holder`` is the WSGI environ or the ASGI scope. Raises a Refusal otherwise, which the middleware
    answers; ConfigurationError where the request passed no middleware.
    """
    return visit_of(holder).require(*scopes)


def check_required_scopes(name: str, scopes: tuple[str, ...]) -> None:
    """Raise TypeError or ValueError for what a decorator that requires scopes was given by mistake."""
    if any(map(callable, scopes)):
        raise TypeError(f"write @{name}(), with parentheses")
    if not all(isinstance(scope, str) for scope in scopes):
        raise TypeError(f"write the scopes one by one: @{name}('a', 'b')")
    checked_scopes(scopes)


def _usual_places(carriers: tuple[Carrier, ...]) -> tuple[str | None, str, str | None]:
    """Name the header and the parameter of carriers that are no more than one of each, in lower case.

    Between them stands what the header has before the key. There is no header in any other case.
    """
    if any(type(carrier) not in (Header, Bearer, Query) for carrier in carriers):
        return None, "", None  # one of the application's own may read something else
    headers = [carrier for carrier in carriers if not isinstance(carrier, Query)]
    parameters = [carrier.name.lower() for carrier in carriers if isinstance(carrier, Query)]
    if len(headers) != 1 or len(parameters) > 1:
        return None, "", None
    lead = f"{headers[0].scheme} " if isinstance(headers[0], Bearer) else ""
    return headers[0].name.lower(), lead, parameters[0] if parameters else None


def _with(hidden: Mapping[str, str], header: HeaderReader) -> HeaderReader:
    return lambda name: hidden[name.lower()] if name.lower() in hidden else header(name)


def _is_preflight(method: str, header: HeaderReader) -> bool:
    """Recognise a CORS preflight, which browsers send without credentials (Fetch section 3.2.2)."""
    if method != "OPTIONS":
        return False
    return header("Origin") is not None and header("Access-Control-Request-Method") is not None


def _checked_carriers(carriers: Sequence[Carrier]) -> tuple[Carrier, ...]:
    if (
        not isinstance(carriers, Sequence)
        or not carriers
        or not all(isinstance(carrier, Carrier) for carrier in carriers)
    ):
        raise ConfigurationError("carriers is a list of Header(…), Query(…) and Bearer(), one at least")
    places: list[tuple[type, str]]
    places = [(type(each), each.name.lower()) for each in carriers if not isinstance(each, Bearer)]
    places += [(Bearer, each.scheme.lower()) for each in carriers if isinstance(each, Bearer)]
    whole = (Header, "authorization") in places and any(kind is Bearer for kind, _ in places)
    if whole or len(set(places)) < len(places):
        raise ConfigurationError("two carriers read the same place")
    return tuple(carriers)


def _checked_paths(paths: Sequence[str]) -> tuple[str, ...]:
    if (
        not isinstance(paths, Sequence | AbstractSet)
        or not all(isinstance(path, str) and path.startswith("/") for path in paths)
        or isinstance(paths, str)
    ):
        raise ConfigurationError(f"exempt is a list of paths that start with '/', not {paths!r}")
    return tuple(paths)


def _checked_proxies(proxies: Sequence[str]) -> tuple[Networks, bool]:
    if isinstance(proxies, str) or not isinstance(proxies, Sequence | AbstractSet):
        raise ConfigurationError(f"trusted_proxies is a list of CIDR blocks, not {proxies!r}")
    try:
        return networks(tuple(checked_block(proxy) for proxy in proxies if proxy != UNIX)), UNIX in proxies
    except ValueError as error:
        raise ConfigurationError(f"trusted_proxies: {error}") from None
