"""Events as Prometheus counters. Their labels have few values, and never those of a key or an owner."""

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter
except ImportError as error:  # pragma: no cover
    raise ImportError("this module needs prometheus-client: pip install 'apikey_auth[prometheus]'") from error

from .events import Event, labels_of, revoked_by


class PrometheusEvents:
    """Count events: a hook. Make one of them for a registry, and give it to all that take ``on_event``.

    ``apikey_auth_events_total`` has the labels ``event``, such as ``refused``, and ``code``, such as
    ``revoked_key``; see ``labels_of``. ``apikey_auth_revoked_keys_total`` counts keys, of which ``revoke_all`` may
    revoke many. Raises ValueError where the registry has these already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._events = Counter(
            "apikey_auth_events", "What happened with API keys.", ["event", "code"], registry=registry
        )
        self._revoked = Counter("apikey_auth_revoked_keys", "API keys that were revoked.", registry=registry)

    def __call__(self, event: Event) -> None:
        self._events.labels(*labels_of(event)).inc()
        if revoked := revoked_by(event):
            self._revoked.inc(revoked)
