"""LangChain's ChatOpenAI."""

import asyncio
from typing import Any

import openai
import pytest

pytest.importorskip("langchain_openai", reason="make clients")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from tests.clients.subjects import MODEL, QUESTION, Fruit, Weather


@pytest.fixture
def chat(base_url: str) -> Any:  # Any: not installed where this is type checked
    return chat_model(base_url)


def chat_model(base_url: str, **fields: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 120, "seed": 5, **fields}
    return ChatOpenAI(base_url=base_url, api_key="unused", model=MODEL, max_retries=0, **options)


def test_a_chat_answers_with_usage_and_finish_reason(chat: Any) -> None:
    answer = chat.invoke([SystemMessage("You answer in one sentence."), HumanMessage(QUESTION)])

    assert "Paris" in answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == MODEL
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_a_stream_is_the_same_text_and_carries_the_usage(chat: Any) -> None:
    chunks = list(chat.stream(QUESTION, stream_usage=True))

    whole = chat.invoke(QUESTION)
    assert len(chunks) > 3
    assert "".join(chunk.content for chunk in chunks) == whole.content
    gathered = sum(chunks[1:], chunks[0])
    assert gathered.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert gathered.response_metadata["finish_reason"] == "stop"


def test_a_chain_runs_in_a_batch_and_asynchronously(chat: Any) -> None:
    chain = ChatPromptTemplate.from_messages([("human", "What is the capital of {country}?")]) | chat

    batch = chain.batch([{"country": "France"}, {"country": "Italy"}])
    alone = asyncio.run(chain.ainvoke({"country": "Italy"}))

    assert "Paris" in batch[0].content
    assert batch[1].content == alone.content


@pytest.mark.parametrize("tool_choice", ["any", "Weather"])
def test_a_bound_tool_is_called_with_arguments_that_fit(chat: Any, tool_choice: str) -> None:
    answer = chat.bind_tools([Weather], tool_choice=tool_choice, parallel_tool_calls=False).invoke(QUESTION)

    [call] = answer.tool_calls
    assert (call["name"], answer.invalid_tool_calls) == ("Weather", [])
    Weather.model_validate(call["args"])


def test_streamed_argument_deltas_gather_to_the_same_call(chat: Any) -> None:
    bound = chat.bind_tools([Weather], tool_choice="Weather")

    chunks = list(bound.stream(QUESTION))

    gathered = sum(chunks[1:], chunks[0])
    assert sum(len(chunk.tool_call_chunks) for chunk in chunks) > 2
    assert [call["args"] for call in gathered.tool_calls] == [
        call["args"] for call in bound.invoke(QUESTION).tool_calls
    ]


def test_a_tools_result_goes_back_into_the_conversation(chat: Any) -> None:
    call = {"name": "Weather", "args": {"city": "Paris", "unit": "celsius"}, "id": "call-1"}
    answer = chat.bind_tools([Weather]).invoke(
        [
            HumanMessage("How is the weather in Paris?"),
            AIMessage("", tool_calls=[call]),
            ToolMessage("Sunny", tool_call_id="call-1"),
        ]
    )

    assert answer.content or answer.tool_calls


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [None, True])
def test_structured_output_is_an_object_of_its_class(chat: Any, method: str, strict: bool | None) -> None:
    held = chat.with_structured_output(Fruit, method=method, strict=strict, include_raw=True)

    answer = held.invoke("Name a fruit.")

    assert answer["parsing_error"] is None
    assert isinstance(answer["parsed"], Fruit)


def test_json_mode_is_an_object(base_url: str) -> None:
    held = chat_model(base_url, max_tokens=400, temperature=0.8).with_structured_output(
        None, method="json_mode", include_raw=True
    )

    answer = held.invoke("Name a fruit, as a JSON object.")

    finished = answer["raw"].response_metadata["finish_reason"] == "stop"
    assert isinstance(answer["parsed"], dict) or not finished


def test_structured_output_streams(chat: Any) -> None:
    parts = list(chat.with_structured_output(Fruit.model_json_schema(), method="json_schema").stream("Name a fruit."))

    Fruit.model_validate(parts[-1])
    assert len(parts) > 1


def test_logprobs_come_with_the_answer(base_url: str) -> None:
    answer = chat_model(base_url, logprobs=True, top_logprobs=2).invoke(QUESTION)

    tokens = answer.response_metadata["logprobs"]["content"]
    assert len(tokens) == answer.usage_metadata["output_tokens"]
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)


def test_the_responses_api_answers_streams_and_calls(base_url: str) -> None:
    chat = chat_model(base_url, use_responses_api=True, seed=None)

    whole = chat.invoke(QUESTION)
    chunks = list(chat.stream(QUESTION))
    called = chat.bind_tools([Weather], tool_choice="any").invoke(QUESTION)
    held = chat.with_structured_output(Fruit, method="json_schema").invoke("Name a fruit.")

    assert "Paris" in whole.text
    assert "".join(chunk.text for chunk in chunks) == whole.text
    Weather.model_validate(called.tool_calls[0]["args"])
    assert isinstance(held, Fruit)


def test_a_completion_and_its_stream(base_url: str) -> None:
    model = OpenAI(base_url=base_url, api_key="unused", model=MODEL, temperature=0, max_tokens=12, max_retries=0)

    assert "".join(model.stream("The capital of France is")) == model.invoke("The capital of France is") != ""


def test_embeddings_of_texts(base_url: str) -> None:
    embeddings = OpenAIEmbeddings(
        base_url=base_url, api_key="unused", model=MODEL, check_embedding_ctx_length=False, max_retries=0
    )

    first, second = embeddings.embed_documents(["a cat", "the parliament of Norway"])

    assert len(first) == len(second) > 100 and first != second


def test_a_refusal_is_openais_exception(chat: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat.invoke(QUESTION, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="8192"):
        chat.invoke("word " * 9000)
