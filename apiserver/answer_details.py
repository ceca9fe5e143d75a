"""What an answer says beside its text, where the client asks for it: most ask for nothing."""

from msgspec import Struct


class AnswerDetails(Struct, frozen=True):
    has_prompt_ids: bool = False
    has_token_ids: bool = False  # of the output
    has_running_usage: bool = False  # on every event of a stream
    has_prompt_logprobs: bool = False
    echoes: bool = False  # the text begins with the prompt's, the logprobs with those of the prompt
    has_output: bool = True  # False: only the prompt is echoed, though a token is drawn, as in vLLM
    stream_interval: int = 1  # tokens that share an event, but for the first and the last one
