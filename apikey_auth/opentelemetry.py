"""Events as OpenTelemetry counters. Their attributes have few values, and never those of a key or an owner."""

try:
    from opentelemetry.metrics import Meter, get_meter
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "this module needs opentelemetry-api: pip install 'apikey_auth[opentelemetry]'"
    ) from error

from .events import Event, labels_of, revoked_by


class OpenTelemetryEvents:
    """Count events: a hook. ``meter`` is the application's own, by default the global provider's ``apikey_auth``.

    ``apikey_auth.events`` has the attributes ``apikey_auth.event``, such as ``refused``, and ``apikey_auth.code``, such
    as ``revoked_key``, where there is one; see ``labels_of``. ``apikey_auth.revoked_keys`` counts keys, of which
    ``revoke_all`` may revoke many.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or get_meter("apikey_auth")
        self._events = meter.create_counter("apikey_auth.events", "{event}", "What happened with API keys.")
        self._revoked = meter.create_counter(
            "apikey_auth.revoked_keys", "{key}", "API keys that were revoked."
        )

    def __call__(self, event: Event) -> None:
        name, code = labels_of(event)
        self._events.add(1, {"apikey_auth.event": name, **({"apikey_auth.code": code} if code else {})})
        if revoked := revoked_by(event):
            self._revoked.add(revoked)
