"""What every client is asked: a question, a form, a tool. What the model says is of no worth at 135M parameters; that it
fits is. The forms take no other properties: such a model would invent them until its tokens are used up."""

from typing import Any, Literal

from pydantic import BaseModel, Field

MODEL = "SmolLM2-135M-Instruct"
QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]  # Any: every client has types of its own for it


class Fruit(BaseModel, extra="forbid"):
    """A fruit to buy."""

    name: str = Field(max_length=16)
    colour: Literal["red", "yellow", "green"]
    count: int = Field(ge=1, le=9)


class Weather(BaseModel, extra="forbid"):
    """The weather of a city."""

    city: str = Field(max_length=12)
    unit: Literal["celsius", "fahrenheit"]


WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "Weather", "description": Weather.__doc__, "parameters": Weather.model_json_schema()},
}
