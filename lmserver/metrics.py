"""Metrics for Prometheus, on a registry of our own; labels never name rooms, users or servers."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

EDU_KINDS = ("to_device", "device_list", "receipt")


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "lmserver_request_seconds",
            "Requests by declared endpoint and status class",
            ("listener", "endpoint", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.key_conflicts = Counter(
            "lmserver_key_conflicts", "Key IDs of other servers seen with other bytes", registry=self.registry
        )

        self.certificate_expires = Gauge(
            "lmserver_certificate_expires_timestamp_seconds",
            "When the federation listener's certificate expires, in seconds since the epoch",
            registry=self.registry,
        )
        self.certificate_failures = Counter(
            "lmserver_certificate_failures",
            "Renewed certificates that could not be loaded",
            registry=self.registry,
        )

        self.evidence = Counter(
            "lmserver_hub_evidence",
            "Things a room's hub did that the protocol forbids, by kind",
            ("kind",),
            registry=self.registry,
        )

        self.rooms_held = Gauge(
            "lmserver_rooms_held",
            "Rooms that are read-only until what a restore lost is recovered",
            registry=self.registry,
        )
        self.destinations_failing = Gauge(
            "lmserver_destinations_failing",
            "Servers that something waits for and that have taken nothing for an hour",
            registry=self.registry,
        )
        self.outbox = Gauge(
            "lmserver_outbox_edus",
            "EDUs that wait for other servers, by kind",
            ("kind",),
            registry=self.registry,
        )
        self.dropped = Counter(
            "lmserver_edus_dropped",
            "EDUs and to-device messages that gave way to newer ones in a full queue",
            ("queue",),
            registry=self.registry,
        )

    def count_evidence(self, kind: str) -> None:
        """`kind` is one of the fixed words of lmserver.rooms.evidence."""
        self.evidence.labels(kind).inc()

    def observe_outbox(self, waiting: Mapping[str, int]) -> None:
        """Kind to EDUs that wait."""
        for kind in EDU_KINDS:
            self.outbox.labels(kind).set(waiting.get(kind, 0))

    def observe_dropped(self, queue: str, number: int) -> None:
        if number:
            self.dropped.labels(queue).inc(number)

    def observe_request(self, listener: str, endpoint: str, status: int, seconds: float) -> None:
        self.requests.labels(listener, endpoint, f"{status // 100}xx").observe(seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
