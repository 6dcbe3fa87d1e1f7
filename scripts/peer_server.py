"""A server as one writes it with FastAPI around transformers' generate; bench_serve.py measures it beside ours.

    python scripts/peer_server.py MODEL

The GPT of the model runs in transformers, with the same weights; pictures and sounds go through the model's own
encoders. As generate is not made for several threads, requests are answered one after another. It takes the bodies of
OpenAI's chats and answers in one piece, greedily.
"""

import socket
import sys
import tempfile
import threading
from typing import Annotated

import torch
import uvicorn
from fastapi import Body, FastAPI
from transformers import AutoModelForCausalLM

import mmgpt
from mmgpt import checkpoint
from mmgpt.batch import collate
from mmgpt.chat_format import parse_messages


def build(directory: str) -> FastAPI:
    assistant = mmgpt.load(directory)
    tokenizer = assistant.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.load(directory)[0].gpt.save_pretrained(folder)
        gpt = AutoModelForCausalLM.from_pretrained(folder).eval()
    app, turn = FastAPI(), threading.Lock()

    @app.post("/v1/chat/completions")
    def chat(body: Annotated[dict, Body()]) -> dict:
        with turn, torch.inference_mode():
            example = assistant.processor.encode_prompt(parse_messages(body["messages"], None))
            embedded = assistant.model.embed(collate([example]))[None]  # 1, tokens, width
            told = gpt.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
                max_new_tokens=body["max_tokens"],
                do_sample=False,
                eos_token_id=tokenizer.end,
                pad_token_id=tokenizer.end,
            )[0].tolist()
        text = tokenizer.decode([token for token in told if token != tokenizer.end]).strip()
        return {"choices": [{"message": {"role": "assistant", "content": text}}]}

    return app


if __name__ == "__main__":
    app, listening = build(sys.argv[1]), socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])
