"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Metrics:
    """The numbers of one server.

    Args:
        running: Tells how many requests are being served.
        waiting: Tells how many answers wait for their turn.
    """

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int]):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mmgpt_requests", "Requests answered, by path and status", ["path", "status"], registry=self.registry
        )
        self.tokens = Counter("mmgpt_tokens", "Tokens, of prompts and answers", ["kind"], registry=self.registry)
        self.first_token = Histogram(
            "mmgpt_first_token_seconds", "From the request to its first token", registry=self.registry, buckets=SECONDS
        )
        self.seconds = Histogram(
            "mmgpt_request_seconds", "Time of a request", ["path"], registry=self.registry, buckets=SECONDS
        )
        in_progress = Gauge("mmgpt_requests_in_progress", "Requests being served", registry=self.registry)
        in_progress.set_function(running)
        queue = Gauge("mmgpt_queue_length", "Answers that wait for their turn", registry=self.registry)
        queue.set_function(waiting)
