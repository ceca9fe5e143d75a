"""Texts to ids and back, rendered requests, and generation from ids."""

from tests.oracle.cases.case import CHAT, COMPLETIONS, FRANCE, QUESTION, Case

HELLO = {"model": "m", "prompt": "Hello, world!"}
MESSAGES = {"model": "m", "messages": QUESTION}

CASES: list[Case] = [
    Case("tokens/text", "/tokenize", HELLO),
    Case("tokens/text-with-strings", "/tokenize", {**HELLO, "return_token_strs": True}),
    Case("tokens/text-split-characters", "/tokenize", {**HELLO, "prompt": "🦀 ñ 日本", "return_token_strs": True}),
    Case("tokens/text-empty", "/tokenize", {**HELLO, "prompt": ""}),
    Case("tokens/text-special", "/tokenize", {**HELLO, "prompt": "<|im_start|>user"}),
    Case("tokens/text-without-special", "/tokenize", {**HELLO, "add_special_tokens": False}),
    Case("tokens/chat", "/tokenize", MESSAGES),
    Case("tokens/chat-without-generation-prompt", "/tokenize", {**MESSAGES, "add_generation_prompt": False}),
    Case(
        "tokens/chat-continued",
        "/tokenize",
        {
            "model": "m",
            "messages": [*QUESTION, {"role": "assistant", "content": "It"}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        },
    ),
    Case("tokens/neither", "/tokenize", {"model": "m"}),
    Case("tokens/unknown-model", "/tokenize", {**HELLO, "model": "other"}),
    Case("tokens/no-model", "/tokenize", {"prompt": "Hello"}),
    Case("tokens/number", "/tokenize", {"model": "m", "prompt": 5}),
    Case("tokens/back", "/detokenize", {"model": "m", "tokens": [19556, 28, 905, 17]}),
    Case("tokens/back-of-nothing", "/detokenize", {"model": "m", "tokens": []}),
    Case("tokens/back-special", "/detokenize", {"model": "m", "tokens": [1, 4093]}),
    Case("tokens/back-outside", "/detokenize", {"model": "m", "tokens": [10_000_000]}),
    Case("tokens/back-negative", "/detokenize", {"model": "m", "tokens": [-1]}),
    Case("tokens/back-of-text", "/detokenize", {"model": "m", "tokens": "Hello"}),
    Case("tokens/back-missing", "/detokenize", {"model": "m"}),
    Case("tokens/rendered-chat", CHAT + "/render", {**MESSAGES, "max_tokens": 8, "temperature": 0}),
    Case(
        "tokens/rendered-completion",
        COMPLETIONS + "/render",
        {"model": "m", "prompt": FRANCE, "max_tokens": 8, "temperature": 0},
    ),
    Case("tokens/rendered-completions", COMPLETIONS + "/render", {"model": "m", "prompt": ["a", "b"], "max_tokens": 8}),
    Case("tokens/rendered-unknown-model", CHAT + "/render", {**MESSAGES, "model": "other"}),
    Case(
        "tokens/generate",
        "/inference/v1/generate",
        {
            "model": "m",
            "token_ids": [504, 3575, 282, 4649, 314],
            "sampling_params": {"max_tokens": 8, "temperature": 0},
        },
    ),
    Case(
        "tokens/generate-logprobs",
        "/inference/v1/generate",
        {
            "model": "m",
            "token_ids": [504, 3575, 282, 4649, 314],
            "sampling_params": {"max_tokens": 4, "temperature": 0, "logprobs": 1},
        },
    ),
    Case(
        "tokens/generate-prompt-logprobs",
        "/inference/v1/generate",
        {
            "model": "m",
            "token_ids": [504, 3575, 282, 4649, 314],
            "sampling_params": {"max_tokens": 2, "temperature": 0, "prompt_logprobs": 1},
        },
    ),
    Case(
        "tokens/generate-prompt-logprobs-text",
        "/inference/v1/generate",
        {
            "model": "m",
            "token_ids": [504, 3575, 282, 4649, 314],
            "output_mode": "text",
            "sampling_params": {"max_tokens": 2, "temperature": 1.0, "prompt_logprobs": 0, "n": 2, "top_k": 1},
        },
    ),
    Case(
        "tokens/generate-from-nothing",
        "/inference/v1/generate",
        {"model": "m", "token_ids": [], "sampling_params": {"max_tokens": 8}},
    ),
    Case("tokens/tokenizer-info", "/tokenizer_info", None),
]
