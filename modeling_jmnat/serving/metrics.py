"""The metrics that `GET /metrics` reports to Prometheus."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .batching import Job

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server.

    Args:
        num_waiting: returns the number of waiting requests.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, num_waiting: Callable[[], int]):
        self.registry = CollectorRegistry()
        of_server = {"registry": self.registry}
        self.requests = Counter("jmnat_requests", "Requests to /translate by status.", ["status"], **of_server)
        self.seconds = Histogram(
            "jmnat_request_seconds", "Time to answer a request to /translate.", buckets=SECONDS, **of_server
        )
        self.characters = Counter("jmnat_characters", "Characters translated.", **of_server)
        self.tokens = Counter("jmnat_source_tokens", "Source tokens translated.", **of_server)
        self.batch_requests = Histogram(
            "jmnat_batch_requests", "Requests translated together.", buckets=SIZES, **of_server
        )
        Gauge("jmnat_waiting_requests", "Requests that wait.", **of_server).set_function(num_waiting)

    def observe_batch(self, jobs: list[Job]) -> None:
        self.batch_requests.observe(len(jobs))
        self.characters.inc(sum(len(text) for job in jobs for text in job.texts))
        self.tokens.inc(sum(job.num_tokens for job in jobs))

    def page(self) -> bytes:
        return generate_latest(self.registry)
