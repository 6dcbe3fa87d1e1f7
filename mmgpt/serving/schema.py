"""What clients send and get, as OpenAI's API has it.

A parameter that is not here is refused by its name, since to ignore it would answer another question than was asked.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

from fastapi import UploadFile
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    TypeAdapter,
    model_validator,
)
from pydantic_core import CoreSchema


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Texts = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]


class Strict(BaseModel):
    """Knows its fields alone. An explicit null is as if it were not there."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class Asked(Strict):
    """What every request of JSON may have."""

    model: str | None = Field(None, description="The model's name, as /v1/models tells it.")
    # Taken, and without effect on the answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None


class StreamOptions(Strict):
    include_usage: bool = False


class Generated(Asked):
    """How answers are drawn, for chats and completions alike."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, description="Without it, every request draws anew.")
    stop: Annotated[list[Stop], BeforeValidator(_listed, json_schema_input_type=str | list[str])] = Field(
        [], max_length=4
    )
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_of_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options go with stream=true")
        return self


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Address(BaseModel):
    url: str = Field(description="data:...;base64,..., or http(s):// of a host that this server fetches from.")


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: Address


class VideoPart(BaseModel):
    type: Literal["video_url"]
    video_url: Address


class Sound(BaseModel):
    data: str = Field(description="Base64 of a file.")
    format: str | None = Field(None, description="What the file tells itself.")


class AudioPart(BaseModel):
    type: Literal["input_audio"]
    input_audio: Sound


AnyPart: TypeAlias = TextPart | ImagePart | VideoPart | AudioPart


class Turn(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Annotated[AnyPart, Field(discriminator="type")]], Field(min_length=1)]


@dataclass(frozen=True)
class Described:
    """Has the API's description tell of a type what is read by a parser of ours (mmgpt.chat_format)."""

    kind: Any

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(TypeAdapter(self.kind).core_schema)


Messages: TypeAlias = Annotated[
    list[dict[str, Any]], Field(min_length=1), Described(Annotated[list[Turn], Field(min_length=1)])
]


class JSONSchema(Strict):
    name: str
    description: str = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema goes with the type json_schema, and with it alone")
        return self

    @property
    def schema_of_answers(self) -> dict[str, Any] | None:
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class ChatRequest(Generated):
    """A conversation to answer."""

    messages: Messages = Field(examples=[[{"role": "user", "content": "What do you see and hear?"}]])
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    choices: list[str] = Field([], description="The answer is one of these. Not of OpenAI's API.")
    regex: str | None = Field(None, description="The whole answer matches it. Not of OpenAI's API.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens mean the same; leave out one of the two")
        return self


class CompletionRequest(Generated):
    """Texts to go on with."""

    prompt: Texts = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="Without it 16, or as many as the server allows.")
    logprobs: int | None = Field(None, ge=0, le=20)


class ExplanationRequest(Asked):
    """A conversation with media, and an answer to it of which each word is to be explained. Not of OpenAI's API."""

    messages: Messages
    answer: str = Field(min_length=1)


class EmbeddingRequest(Asked):
    """Texts whose vectors are wanted."""

    input: Texts = Field(min_length=1, max_length=256)
    encoding_format: Literal["float", "base64"] = "float"


class TranscriptionRequest(Strict):
    """A sound to write down, as a form."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    file: UploadFile
    model: str | None = None
    response_format: Literal["json", "text"] = "json"
    temperature: float = Field(0.0, ge=0, le=2)


class Fault(BaseModel):
    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The parameter at fault.")
    code: str | None = Field(description="What programs go by.")


class Refusal(BaseModel):
    """An error, as OpenAI's API tells it."""

    error: Fault


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Likely(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None  # None for a piece of a character


class TokenLogprob(Likely):
    top_logprobs: list[Likely]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


Finish = Literal["stop", "length", "content_filter"]


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: Finish | None
    logprobs: CompletionLogprobs | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None


class Delta(BaseModel):
    content: str


class FirstDelta(Delta):
    role: Literal["assistant"] = "assistant"


class ChatChunkChoice(BaseModel):
    index: int
    delta: FirstDelta | Delta
    finish_reason: Finish | None
    logprobs: ChatLogprobs | None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None


class ExplainedWord(BaseModel):
    text: str
    probability: float
    blind: float = Field(description="Its probability where nothing is seen and heard.")
    pictures: list[str] = Field(description="Of each medium as data: URL, dark where it does not matter.")


class Explanation(BaseModel):
    object: Literal["explanation"] = "explanation"
    model: str
    words: list[ExplainedWord]


class Vector(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Vector]
    usage: EmbeddingUsage


class Transcription(BaseModel):
    text: str


class Health(BaseModel):
    status: Literal["ok", "draining"]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mmgpt"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
