"""How fast mmgpt decodes, beside transformers and beside what the machine's memory allows.

    python scripts/bench_generate.py                        # all parts; --help names them
    python scripts/bench_generate.py --only batch,beam --rounds 9

Random weights at real sizes (GPT-2 124M, alone, behind a ViT-B/16 or with cross-attention to it; LLaVA of SigLIP-B/16
and SmolLM2-135M), the same on both sides: before anything is timed, both must give the same tokens. Both sides run in
turn, so that a busy machine is busy for both; printed is the median of the paired ratios, and the least and the
greatest. Same work on both sides unless the line says "less work". Times are those of a whole run, prompts and pictures
included, divided by the tokens of a row, or by those of all requests where they are ragged or ten.
"""

import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Bench, begin, parser, print_peak, print_peaks, seconds
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

import mmgpt
from mmgpt.batch import Example, MediaInput
from mmgpt.config import AdapterConfig, ImageEncoderConfig, ModelConfig
from mmgpt.generation import Decoding, Engine
from mmgpt.gpt import GPT
from mmgpt.gpt.packed import pack
from mmgpt.gpt.quantize import quantize_int8
from mmgpt.model import MultimodalGPT
from mmgpt.tokenizer import Tokenizer
from mmgpt.training.memory import peak_memory

# What differs from transformers' own sizes, which are GPT-2 124M, ViT-B/16 and SigLIP-B/16.
GPT2: dict[str, Any] = {"n_positions": 4608, "bos_token_id": 0, "eos_token_id": 0}  # room for prompts of 4096
VIT: dict[str, Any] = {}
SIGLIP: dict[str, Any] = {"vision_use_head": False}  # which pools, and LLaVA has no use for it
SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,  # what is seen matters, and answers vary, as they do once it is learned
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VOCABULARY = 49152  # the least of theirs


def texts(rows: int, tokens: int, seed: int = 0) -> list[list[int]]:
    return torch.randint(300, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed)).tolist()


def pictures(count: int, side: int) -> Tensor:
    """Pictures (count, 3, side, side) of noise, uint8, each with a brightness of its own in each channel."""
    made = torch.Generator().manual_seed(0)
    tops = torch.randint(2, 257, (count, 3, 1, 1), generator=made)
    return (torch.rand(count, 3, side, side, generator=made) * tops).to(torch.uint8)


def endless() -> Tokenizer:
    """A tokenizer for which no token ends an answer: all have the same length."""
    tokenizer = Tokenizer.train(["a b c"], 300)
    tokenizer.end = -1
    return tokenizer


def engine_of(model: MultimodalGPT, **settings: Any) -> Engine:
    return Engine(model, endless(), **{"cache_bytes": 8 << 30, "store_bytes": 0, **settings})


def answers(engine: Engine, examples: list[Example], **decoding: Any) -> list[list[int]]:
    return [answers[0].tokens for answers in engine.run(examples, Decoding(**decoding))]


@torch.inference_mode()
def generated(model: Any, new: int, **inputs: Any) -> Tensor:
    """What transformers' model makes of its inputs: `new` tokens a row, greedy or by beams, behind any prompt ids."""
    return model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)


class Peer:
    """A GPT-2 of transformers in its static batches, and mmgpt's of the same weights; each is built when it is needed.

    Args:
        folder: Where the weights are, or are put if there is none.
        int8: Whether mmgpt computes in int8.
        dtype: Of both sides.
    """

    def __init__(self, folder: Path, int8: bool = False, dtype: torch.dtype = torch.float32):
        self.folder, self.dtype = folder, dtype
        self.ready = quantize_int8 if int8 else pack
        if not folder.exists():
            torch.manual_seed(0)
            GPT2LMHeadModel(GPT2Config(**GPT2)).save_pretrained(folder)

    @cached_property
    def theirs(self) -> GPT2LMHeadModel:
        return GPT2LMHeadModel.from_pretrained(self.folder, dtype=self.dtype).eval()

    @cached_property
    def model(self) -> MultimodalGPT:
        gpt = GPT.from_pretrained(self.folder).to(self.dtype)
        with torch.device("meta"):  # the GPT that is replaced takes no memory
            model = MultimodalGPT(ModelConfig(gpt=gpt.config)).eval()
        model.gpt = self.ready(gpt)
        return model

    def int8(self) -> "Peer":
        """Another, whose own side computes in int8."""
        return Peer(self.folder, int8=True)

    def engine(self, **settings: Any) -> Engine:
        return engine_of(self.model, **settings)

    def ours(self, engine: Engine, prompts: list[list[int]], **decoding: Any) -> list[list[int]]:
        return answers(engine, [Example(ids, [False] * len(ids), []) for ids in prompts], **decoding)

    def theirs_of(self, prompts: list[list[int]], new: int, **settings: Any) -> list[list[int]]:
        """One static batch, left-padded as transformers wants it."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = generated(self.theirs, new, input_ids=ids, attention_mask=mask, **settings)
        return made[:, longest:].tolist()


Tokens = list[list[int]]


def compare(
    bench: Bench, what: str, ours: Callable[[], Tokens], theirs: Callable[[], Tokens], per: int, same: bool = True
) -> float:
    """One line of the table; `per` tokens are made by each side, the same unless one of them rounds otherwise."""
    first, second = ours(), theirs()  # also warms both up
    end = ""
    if same and first != second:
        equal = [a == b for mine, other in zip(first, second, strict=True) for a, b in zip(mine, other, strict=True)]
        end = f"  TOKENS DIFFER ({np.mean(equal):.1%} equal)"
    return bench.line(what, lambda: seconds(ours), lambda: seconds(theirs), per, "/token", end)


def bandwidth() -> float:
    """Bytes a second that this process reads from memory, with as many threads as it has."""
    block = torch.ones(1 << 28)  # 1 GiB
    return max(block.numel() * 4 / seconds(block.sum) for _ in range(5))


def part_batch(bench: Bench, peer: Peer, new: int) -> None:
    read = bandwidth()
    weights = sum(p.numel() * 4 for n, p in peer.model.gpt.state_dict().items() if "position" not in n)
    for rows in (1, 8, 32):
        prompts, engine = texts(rows, 64), peer.engine()
        mine = compare(
            bench,
            f"batch {rows}, prompt 64, fp32",
            lambda engine=engine, prompts=prompts: peer.ours(engine, prompts, max_new_tokens=new),
            lambda prompts=prompts: peer.theirs_of(prompts, new),
            new,
        )
        if rows == 1:
            share = weights / read / mine
            print(f"{'':58} {share:5.0%} of the roofline ({weights / 1e6:.0f} MB a token at {read / 1e9:.1f} GB/s)")


def part_prompt(bench: Bench, peer: Peer, new: int) -> None:
    """Decoding alone: prompts are taken off by a run that makes one token."""
    for tokens in (512, 2048, 4096):
        prompts = texts(1, tokens)
        engine = peer.engine(store_bytes=4 << 30)
        peer.ours(engine, prompts, max_new_tokens=1)

        def theirs(prompts=prompts) -> float:
            whole, first = (seconds(lambda n=n: peer.theirs_of(prompts, n)) for n in (new + 1, 1))
            return whole - first

        def ours(engine=engine, prompts=prompts) -> float:
            whole, first = (seconds(lambda n=n: peer.ours(engine, prompts, max_new_tokens=n)) for n in (new + 1, 1))
            return whole - first

        bench.line(f"batch 1, decoding at context {tokens}, fp32", ours, theirs, new, "/token")


def part_beam(bench: Bench, peer: Peer, new: int) -> None:
    prompts, engine = texts(1, 64), peer.engine()
    compare(
        bench,
        "beam 4, prompt 64, fp32",
        lambda: peer.ours(engine, prompts, max_new_tokens=new, beams=4),
        lambda: peer.theirs_of(prompts, new, num_beams=4, early_stopping="never"),
        new,
    )


def part_ragged(bench: Bench, peer: Peer, new: int) -> None:
    """32 requests of 8 to 256 tokens, answers of a quarter to all of `new`; static batches run to their longest.

    transformers' continuous batching has as many rows as ours, and room for all of them.
    """
    lengths = np.random.default_rng(0).integers(8, 257, 32)
    news = np.random.default_rng(1).integers(new // 4, new + 1, 32).tolist()
    prompts = [texts(1, int(length), i)[0] for i, length in enumerate(lengths)]
    examples = [Example(ids, [False] * len(ids), []) for ids in prompts]

    def ours(engine: Engine) -> Tokens:
        requests = [engine.submit(e, Decoding(max_new_tokens=n)) for e, n in zip(examples, news, strict=True)]
        while not all(request.done for request in requests):
            engine.step()
        return [request.answers[0].tokens for request in requests]

    def static() -> Tokens:
        out: Tokens = []
        for start in range(0, 32, 8):
            made = peer.theirs_of(prompts[start : start + 8], max(news[start : start + 8]))
            out += [row[:n] for row, n in zip(made, news[start : start + 8], strict=True)]
        return out

    def continuous(manager: Any) -> Tokens:
        names = [manager.add_request(ids, max_new_tokens=n) for ids, n in zip(prompts, news, strict=True)]
        made: dict[str, list[int]] = {}
        while len(made) < len(names):
            result = manager.get_result(timeout=600)
            if result is None or result.error:
                reason = manager.background_thread_status.fatal_error if result is None else result.error
                raise SystemExit(f"transformers' continuous batching failed: {reason}")
            made[result.request_id] = result.generated_tokens
        return [made[name] for name in names]

    small = peer.int8()
    for rows in (8, 32):
        name, tokens = f"32 ragged requests, {rows} rows", sum(news)
        engine, fast = peer.engine(rows=rows), small.engine(rows=rows)
        compare(bench, f"{name}, fp32", lambda engine=engine: ours(engine), static, tokens)
        compare(bench, f"{name}, int8 against fp32", lambda fast=fast: ours(fast), static, tokens, same=False)
        # In pages of 256 tokens; without limits it would take all memory there is. Nothing is kept between rounds.
        limits = ContinuousBatchingConfig(
            max_requests_per_batch=rows, num_blocks=2 * rows, max_batch_tokens=512, allow_block_sharing=False
        )
        greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        with peer.theirs.continuous_batching_context_manager(greedy, continuous_batching_config=limits) as manager:
            compare(
                bench,
                f"{name}, fp32, against continuous batching",
                lambda engine=engine: ours(engine),
                lambda manager=manager: continuous(manager),
                tokens,
            )


def part_questions(bench: Bench, peer: Peer, new: int) -> None:
    """Ten questions about one picture: the peer encodes and prefills it each time (it keeps nothing between calls)."""
    image = ImageEncoderConfig("vit_base_patch16_224")
    adapters = {"image": AdapterConfig("linear")}
    torch.manual_seed(0)
    seen = MultimodalGPT(ModelConfig(peer.model.config.gpt, image, adapters=adapters)).eval()
    seen.gpt = peer.model.gpt
    item = picture(seen, pictures(1, 224)[0])
    prompts = texts(10, 12)

    def ours() -> Tokens:
        engine = engine_of(seen, store_bytes=1 << 30)  # empty: the picture is new each time
        return answers(engine, [before(engine, item, ids) for ids in prompts], max_new_tokens=new)

    @torch.inference_mode()
    def theirs() -> Tokens:
        out: Tokens = []
        embed = peer.theirs.get_input_embeddings()
        for ids in prompts:
            features = seen.encode_media("image", [item])
            embeds = torch.cat([embed(torch.tensor([1])), features, embed(torch.tensor(ids))])[None]
            mask = torch.ones(embeds.shape[:2])
            out += generated(peer.theirs, new, inputs_embeds=embeds, attention_mask=mask).tolist()
        return out

    compare(bench, "ten questions on one picture, ViT-B/16, fp32 (less work)", ours, theirs, 10 * new)


def picture(model: MultimodalGPT, pixels: Tensor) -> MediaInput:
    """A picture (3, height, width) for a model; it takes slots unless the GPT looks at it by cross-attention."""
    grid = model.encoders["image"].grid()
    return MediaInput("image", pixels, grid, grid.count, 0 if model.config.gpt.cross else grid.count)


def before(engine: Engine, item: MediaInput, ids: list[int]) -> Example:
    """The token 1, a picture, and a text about it."""
    tokens = [1, *[engine.tokenizer.slot] * item.slots, *ids]
    return Example(tokens, [False] * len(tokens), [(1, item)])


def check_seen(tokens: Tokens) -> None:
    """Raises SystemExit if pictures hardly matter: that both sides say the same would then be no proof."""
    if len({tuple(row) for row in tokens}) < len(tokens) // 2:
        raise SystemExit("the answers would be the same without the pictures")


def part_captions(bench: Bench, peer: Peer, new: int) -> None:
    """Eight pictures that a GPT-2 looks at, as nlpconnect/vit-gpt2-image-captioning does, loaded as it was saved."""
    folder = bench.folder / "captions"
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VIT), GPT2Config(**GPT2))
    config.update(dict.fromkeys(("decoder_start_token_id", "eos_token_id", "pad_token_id"), 0))
    torch.manual_seed(0)
    theirs = VisionEncoderDecoderModel(config).eval()
    for name, parameter in theirs.named_parameters():
        if "crossattention" in name:
            # What is seen matters, as it does once it is learned.
            torch.nn.init.normal_(parameter, std=3 * config.decoder.n_embd**-0.5)
    theirs.save_pretrained(folder)
    side = config.encoder.image_size
    processor = ViTImageProcessor(size={"height": side, "width": side})
    processor.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(endless().to_json())
    model = mmgpt.load(folder, device="cpu").model
    engine = engine_of(model)
    pixels = pictures(8, side)
    examples = [Example([0], [False], [(0, picture(model, one))]) for one in pixels]
    normal = processor(list(pixels), return_tensors="pt")["pixel_values"]
    for beams in (1, 4):

        def ours(beams=beams) -> Tokens:
            return answers(engine, examples, max_new_tokens=new, beams=beams)

        def captions(beams=beams) -> Tokens:
            how = {"num_beams": beams, "early_stopping": "never"} if beams > 1 else {}
            return generated(theirs, new, pixel_values=normal, **how)[:, 1:].tolist()

        check_seen(captions())
        how = f"beam {beams}" if beams > 1 else "greedy"
        compare(bench, f"captions of 8 pictures by cross-attention, ViT-B/16, {how}, fp32", ours, captions, new)


def part_llava(bench: Bench, peer: Peer, new: int) -> None:
    """A picture of 196 tokens and a question of 16, of each row its own picture: SigLIP-B/16, MLP, SmolLM2-135M."""
    tower, text = SiglipVisionConfig(**SIGLIP), LlamaConfig(**SMOLLM2)
    count = (tower.image_size // tower.patch_size) ** 2
    slot = text.vocab_size - 1
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=slot,
        image_seq_length=count,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    theirs = LlavaForConditionalGeneration(config).eval()
    model = llava_of(theirs, bench.folder / "llava")
    engine = engine_of(model)
    [question] = texts(1, 16)
    for rows in (1, 8):
        pixels = pictures(rows, tower.image_size)
        examples = [before(engine, picture(model, one), question) for one in pixels]
        inputs = {
            "input_ids": torch.tensor([[1, *[slot] * count, *question]] * rows),
            "attention_mask": torch.ones(rows, 1 + count + len(question), dtype=torch.long),
            "pixel_values": (pixels / 255 - 0.5) / 0.5,
        }

        def ours(examples=examples) -> Tokens:
            return answers(engine, examples, max_new_tokens=new)

        def others(inputs=inputs) -> Tokens:
            return generated(theirs, new, **inputs)[:, inputs["input_ids"].shape[1] :].tolist()

        check_seen(others())
        compare(bench, f"LLaVA, SigLIP-B/16 and SmolLM2-135M, batch {rows}, fp32", ours, others, new)


def llava_of(theirs: LlavaForConditionalGeneration, folder: Path) -> MultimodalGPT:
    """Our model with the weights of transformers' LLaVA, whose projector is our adapter "mlp".

    LLaVA takes the tokens of SigLIP before its last norm, which our tower is therefore freed of.
    """
    theirs.model.vision_tower.save_pretrained(folder / "tower")
    llama = LlamaForCausalLM(theirs.config.text_config)
    llama.model, llama.lm_head = theirs.model.language_model, theirs.lm_head
    llama.save_pretrained(folder / "gpt")
    gpt = GPT.from_pretrained(folder / "gpt")
    image = ImageEncoderConfig(weights=str(folder / "tower"))
    model = MultimodalGPT(ModelConfig(gpt.config, image, adapters={"image": AdapterConfig("mlp")})).eval()
    model.gpt = pack(gpt)
    model.encoders["image"].get_submodule("backbone.model").norm = torch.nn.Identity()
    projector = theirs.model.multi_modal_projector
    for place, linear in (("0", projector.linear_1), ("2", projector.linear_2)):
        model.adapters["image"].get_submodule(f"project.{place}").load_state_dict(linear.state_dict())
    return model


def part_lookup(bench: Bench, peer: Peer, new: int) -> None:
    """Greedy with prompt lookup, where the text repeats its prompt: an answer of this very model is the prompt."""
    engine = peer.engine()
    [start] = texts(1, 16)
    [answer] = peer.ours(engine, [start], max_new_tokens=192)
    prompt = [start + answer]
    new = 4 * new
    for guesses in (6, 15):
        compare(
            bench,
            f"prompt lookup of {guesses} against plain greedy, both mmgpt, fp32",
            lambda guesses=guesses: peer.ours(engine, prompt, max_new_tokens=new, lookup=guesses),
            lambda: peer.ours(engine, prompt, max_new_tokens=new),
            new,
        )
        compare(
            bench,
            f"prompt lookup of {guesses}, both sides, fp32",
            lambda guesses=guesses: peer.ours(engine, prompt, max_new_tokens=new, lookup=guesses),
            lambda guesses=guesses: peer.theirs_of(prompt, new, prompt_lookup_num_tokens=guesses),
            new,
        )


def part_int8(bench: Bench, peer: Peer, new: int) -> None:
    small = peer.int8()
    for rows in (1, 8, 32):
        prompts, engine = texts(rows, 64), small.engine()
        compare(
            bench,
            f"batch {rows}, prompt 64, int8 against fp32",
            lambda engine=engine, prompts=prompts: small.ours(engine, prompts, max_new_tokens=new),
            lambda prompts=prompts: peer.theirs_of(prompts, new),
            new,
            same=False,
        )


def part_bf16(bench: Bench, peer: Peer, new: int) -> None:
    """Many processors only emulate it: then both sides are slow."""
    half, prompts = Peer(peer.folder, dtype=torch.bfloat16), texts(16, 64)
    engine = half.engine()
    compare(
        bench,
        "batch 16, prompt 64, bf16",
        lambda: half.ours(engine, prompts, max_new_tokens=new),
        lambda: half.theirs_of(prompts, new),
        new,
        same=False,
    )


def part_memory(bench: Bench, peer: Peer, new: int) -> None:
    print_peaks("batch 32, prompt 64, fp32", peer.folder, "--new-tokens", str(new))


def child(side: str, folder: Path, new: int) -> None:
    begun, peer, prompts = peak_memory(), Peer(folder), texts(32, 64)
    if side == "ours":
        peer.ours(peer.engine(), prompts, max_new_tokens=new)
    else:
        peer.theirs_of(prompts, new)
    print_peak(begun)


PARTS = {name.removeprefix("part_"): part for name, part in list(globals().items()) if name.startswith("part_")}


def main() -> None:
    arguments = parser(__doc__, PARTS)
    arguments.add_argument("--new-tokens", type=int, default=32)
    args = arguments.parse_args()
    begin(args)
    if args.child:
        side, folder = args.child
        return child(side, Path(folder), args.new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        bench, peer = Bench(args.rounds, Path(folder)), Peer(Path(folder) / "gpt2")
        for name in args.only.split(","):
            PARTS[name](bench, peer, args.new_tokens)
    return None


if __name__ == "__main__":
    main()
