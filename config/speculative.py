"""`--speculative-config`: vLLM's JSON object, of the one method there is here: prompt lookup ("ngram")."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Length = Annotated[int, Meta(ge=1, le=32)]


class SpeculativeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Names and defaults are vLLM's, but for `pauses`; lengths are tokens."""

    method: Literal["ngram"]
    num_speculative_tokens: Length
    prompt_lookup_min: Length = 5
    prompt_lookup_max: Length = 5
    pauses: bool = True  # where it is measured that guessing does not pay


def speculative_config(text: str) -> SpeculativeConfig:
    """Raises ValueError with what is wrong. Of the two lookup lengths one that is not given is equal to the other."""
    try:
        config = msgspec.json.decode(text, type=SpeculativeConfig)
        given = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.MsgspecError as error:
        raise ValueError(str(error).replace("`", "")) from None
    if "prompt_lookup_max" not in given and "prompt_lookup_min" in given:
        config = msgspec.structs.replace(config, prompt_lookup_max=config.prompt_lookup_min)
    if "prompt_lookup_min" not in given and "prompt_lookup_max" in given:
        config = msgspec.structs.replace(config, prompt_lookup_min=config.prompt_lookup_max)
    if config.prompt_lookup_min > config.prompt_lookup_max:
        raise ValueError(
            f"prompt_lookup_min {config.prompt_lookup_min} is above prompt_lookup_max {config.prompt_lookup_max}"
        )
    return config
