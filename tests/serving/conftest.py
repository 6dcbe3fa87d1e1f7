from collections.abc import Iterator

import openai
import pytest
from servers import Running, running


@pytest.fixture(scope="session")
def server(assistant) -> Iterator[Running]:
    with running(assistant) as one:
        yield one


@pytest.fixture(scope="session")
def client(server) -> openai.OpenAI:
    return server.client
