"""The thread that owns the engine: whose turn it is."""

import asyncio
import threading

import torch
from servers import running

from mmgpt.generation import Decoding, Engine
from mmgpt.serving.worker import Job, Worker


def test_other_work_takes_turns_with_the_answers_under_way(assistant, monkeypatch):
    order: list[str] = []
    worker = Worker(lambda: Engine(assistant.model, assistant.tokenizer, rows=2))
    step = worker.engine.step
    monkeypatch.setattr(worker.engine, "step", lambda: (order.append("step"), step()))
    prompt = assistant.processor.encode_beginning("A red")
    asked = worker.engine.prepare(prompt, Decoding(12, regex="[a-z]{30}"))  # an answer of some steps

    async def follow() -> None:
        async for _ in worker.follow(Job([asked], growing=False)):
            pass

    async def run() -> None:
        begun, ready = threading.Event(), threading.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.call(lambda: (begun.set(), ready.wait())))  # meanwhile all others come
            await asyncio.to_thread(begun.wait)
            tasks.create_task(follow())
            for _ in range(4):
                tasks.create_task(worker.call(lambda: order.append("other")))
            await asyncio.sleep(0.1)
            ready.set()

    try:
        asyncio.run(asyncio.wait_for(run(), 30))
    finally:
        worker.stop()
    assert order[:8] == ["other", "step"] * 4


def test_who_came_first_is_answered_first(assistant):
    worker = Worker(lambda: Engine(assistant.model, assistant.tokenizer, rows=1))
    prompt = assistant.processor.encode_beginning("A red")
    ended: list[int] = []

    async def follow(number: int, tokens: int) -> None:
        asked = worker.engine.prepare(prompt, Decoding(tokens, regex="[a-z]{30}"))
        async for _ in worker.follow(Job([asked], growing=False)):
            pass
        ended.append(number)

    async def run() -> None:
        await asyncio.gather(*(follow(number, tokens) for number, tokens in enumerate((12, 1, 8, 1))))

    try:
        asyncio.run(asyncio.wait_for(run(), 30))
    finally:
        worker.stop()
    assert ended == [0, 1, 2, 3]


def test_the_engine_has_all_threads_and_whatever_else_a_server_does_computes_alone(assistant):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with running(assistant) as server:
            service = server.service
            assert asyncio.run(service.worker.call(torch.get_num_threads)) == 3
            pools = service.pool, service.explaining, service.moderating, service.fetching, service.decoders.threads
            for pool in pools:
                assert pool.submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)
