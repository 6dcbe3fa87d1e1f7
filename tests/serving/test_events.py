"""Events that are put together by hand: they are what the schema makes of them."""

from hypothesis import given
from hypothesis import strategies as st

from mmgpt.serving import schema
from mmgpt.serving.app import Frame, Piece, chat_piece, text_piece

texts = st.text()  # of all characters but halves of surrogate pairs
likely = {"token": texts, "logprob": st.floats(-9999, 0), "bytes": st.none() | st.lists(st.integers(0, 255))}
chat_logprobs = st.builds(
    schema.ChatLogprobs,
    content=st.lists(
        st.builds(schema.TokenLogprob, **likely, top_logprobs=st.lists(st.builds(schema.Likely, **likely), max_size=2)),
        max_size=2,
    ),
)
text_logprobs = st.builds(schema.CompletionLogprobs)
pieces = st.builds(
    Piece, texts, st.sampled_from([None, "stop", "length", "content_filter"]), st.none(), told=st.booleans()
)


@given(texts, st.integers(0, 15), pieces, st.none() | chat_logprobs)
def test_a_piece_of_a_chat_is_as_its_schema(name, index, piece, logprobs):
    head = {"id": "chatcmpl-1", "created": 7, "model": name}
    delta = schema.Delta(content=piece.text) if piece.told else schema.FirstDelta(content=piece.text)
    choice = schema.ChatChunkChoice(index=index, delta=delta, finish_reason=piece.finish, logprobs=logprobs)
    frame = Frame(schema.ChatChunk(**head, choices=[], usage=None))
    whole = schema.ChatChunk(**head, choices=[choice], usage=None)
    assert frame.event(chat_piece(index, piece, logprobs)) == f"data: {whole.model_dump_json()}\n\n"


@given(texts, st.integers(0, 15), pieces, st.none() | text_logprobs)
def test_a_piece_of_a_text_is_as_its_schema(name, index, piece, logprobs):
    head = {"id": "cmpl-1", "created": 7, "model": name}
    choice = schema.CompletionChoice(index=index, text=piece.text, finish_reason=piece.finish, logprobs=logprobs)
    frame = Frame(schema.Completion(**head, choices=[], usage=None))
    whole = schema.Completion(**head, choices=[choice], usage=None)
    assert frame.event(text_piece(index, piece, logprobs)) == f"data: {whole.model_dump_json()}\n\n"
