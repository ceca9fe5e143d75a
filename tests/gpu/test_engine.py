"""A whole engine on the device: what it generates is what transformers would, in every way a step can be computed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config.settings import EngineSettings
from ipc.messages import NO_LOGPROBS, Pooling, SamplingParams
from tests.parity.in_process_engine import InProcessEngine

MAX_REGRET = 0.15
"""How far a chosen token's float32 logit may lie below the largest. Their standard deviation is 0.68; bf16 came to 0.06 over 48
tokens and to 0.10 over 320 on an H100, and to 0.03 on a CPU, while the reference's rotary frequencies were rounded too. A wrong
key or value costs 1 or more."""

MIN_COSINE = 0.99
"""Between a vector computed in bf16 and its float32: one token's came to 0.9987 on an H100."""

QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 64}
COMMON = {
    "vocab_size": 5003, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "hidden_act": "silu", "attention_bias": False, "initializer_range": 0.03, "eos_token_id": None, "bos_token_id": None,
    "rope_theta": 10000.0,
}  # fmt: skip
LENGTHS = (1, 2, 15, 16, 17, 100, 127, 128, 129, 300, 511, 700)


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def checkpoint(request: pytest.FixtureRequest, cuda: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with random weights, and transformers' model of it in float32. Any: transformers is untyped.

    It is read from the folder: the model that wrote it has had its rotary frequencies rounded to 16 bits with its weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    hf_config = COMMON | (QWEN3 if request.param == "qwen3" else LLAMA)
    config = AutoConfig.for_model(**hf_config)  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model = model.to(torch.bfloat16)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")  # not read by an engine
    return folder, read_by_transformers(folder, torch.float32).to(cuda)


def read_by_transformers(folder: Path, dtype: torch.dtype) -> Any:  # Any: transformers is untyped
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 5000, (n,), generator=generator).tolist() for n in LENGTHS]


def greedy(max_tokens: int = 48, **fields: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **fields)


def engine_of(folder: Path, **fields: Any) -> InProcessEngine:
    settings: dict[str, Any] = {
        "device": "cuda", "max_num_seqs": 16, "max_num_batched_tokens": 1024, "block_size": 128,
        "kv_cache_memory_bytes": 1 << 30,
    }  # fmt: skip
    dtype = fields.pop("dtype", "bfloat16")
    engine = InProcessEngine(folder, EngineSettings(**(settings | fields)), dtype=dtype, max_model_len=1024)
    engine.runner.warm_up()
    return engine


@torch.inference_mode()
def largest_regret(model: Any, prompt: list[int], output: list[int]) -> float:
    logits = model(torch.tensor([prompt + output], device="cuda")).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(output, device="cuda").unsqueeze(1)).squeeze(1)
    return float((logits.max(-1).values - chosen).max())


def check(model: Any, asked: list[list[int]], outputs: list[list[int]], max_tokens: int = 48) -> None:
    assert [len(output) for output in outputs] == [max_tokens] * len(asked)
    regrets = [largest_regret(model, prompt, output) for prompt, output in zip(asked, outputs, strict=True)]
    print(f"largest regret {max(regrets):.3f}")
    assert max(regrets) < MAX_REGRET, regrets


@pytest.fixture(params=["fa4", "fa2", "triton"])
def backend(request: pytest.FixtureRequest, cuda: torch.device) -> Iterator[dict[str, Any]]:
    from engine_core.attention.choice import has_packages

    if not has_packages(request.param):
        pytest.skip(f"{request.param} is not installed")
    yield {"attention_backend": request.param, "block_size": {"fa4": 128, "fa2": 256, "triton": 16}[request.param]}


def test_everything_together(checkpoint: Any, backend: dict[str, Any]) -> None:
    folder, model = checkpoint
    check(model, prompts(), engine_of(folder, **backend).generate(prompts(), [greedy()] * len(LENGTHS)))


def test_one_by_one(checkpoint: Any, backend: dict[str, Any]) -> None:
    folder, model = checkpoint
    engine = engine_of(folder, **backend)
    outputs = [engine.generate([prompt], [greedy()])[0] for prompt in prompts()[::3]]
    check(model, prompts()[::3], outputs)


def test_chunks_a_small_pool_and_no_prefix_cache(checkpoint: Any, backend: dict[str, Any]) -> None:
    folder, model = checkpoint
    blocks = 2048 // backend["block_size"]
    engine = engine_of(
        folder, **backend, max_num_batched_tokens=64, num_gpu_blocks_override=blocks, enable_prefix_caching=False
    )
    length = 320  # several blocks: growing is more than what admission keeps in reserve
    check(model, prompts(), engine.generate(prompts(), [greedy(length)] * len(LENGTHS)), length)
    assert engine.scheduler.counts.num_preemptions > 0


def test_out_of_the_prefix_cache(checkpoint: Any) -> None:
    folder, model = checkpoint
    engine = engine_of(folder)
    engine.generate(prompts(), [greedy(4)] * len(LENGTHS))
    check(model, prompts(), engine.generate(prompts(), [greedy()] * len(LENGTHS)))
    assert engine.scheduler.counts.prefix_hits > 0


def test_rows_of_the_same_prompts_read_them_together(
    checkpoint: Any, backend: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine_core.step_buffers import StepBuffers

    folder, model = checkpoint
    engine = engine_of(folder, **backend, max_num_seqs=32, max_num_batched_tokens=256)
    tails = [prompt[:20] for prompt in prompts()[3:9]]
    asked = [prompts()[-1 - number % 2] + [100 + number] + tails[number % len(tails)] for number in range(24)]
    engine.generate(asked[:2], [greedy(1)] * 2)  # fills the prefix cache
    kinds: set[str] = set()

    def noting(kind: str) -> None:
        real = getattr(StepBuffers, kind)

        def send(self: StepBuffers, *arguments: Any) -> Any:
            if arguments[-1] is not None:  # tiles
                kinds.add(kind)
            return real(self, *arguments)

        monkeypatch.setattr(StepBuffers, kind, send)

    noting("send_decodes")
    noting("send_mixed")

    check(model, asked, engine.generate(asked, [greedy()] * len(asked)))
    assert kinds == {"send_decodes", "send_mixed"}


def test_many_decodes_beside_prefill(checkpoint: Any, backend: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from engine_core.attention.cuda import CudaAttention
    from engine_core.step_buffers import APART_FROM

    folder, model = checkpoint
    engine = engine_of(folder, **backend, max_num_seqs=96, max_num_batched_tokens=256)
    asked = [[number, *prompt[:300]] for number, prompt in enumerate(prompts() * 8)]
    num_apart: list[int] = []
    real = CudaAttention.mixed

    def mixed(self: CudaAttention, q: Any, pool: Any, metadata: Any, out: Any) -> None:
        if metadata.behind is not None and metadata.shared is None:
            num_apart.append(metadata.num_decodes)
        real(self, q, pool, metadata, out)

    monkeypatch.setattr(CudaAttention, "mixed", mixed)

    check(model, asked, engine.generate(asked, [greedy()] * len(asked)))

    assert num_apart and min(num_apart) >= APART_FROM


def test_a_graph_computes_what_the_eager_pass_does_to_the_bit(checkpoint: Any) -> None:
    """Random draws: they depend on every logit."""
    folder, _ = checkpoint
    params = [SamplingParams(temperature=1.0, seed=n, max_tokens=64, ignore_eos=True) for n in range(len(LENGTHS))]
    outputs = []
    for is_eager in (False, True):
        engine = engine_of(folder)
        engine.runner.is_eager = is_eager  # type: ignore[union-attr]
        outputs.append(engine.generate(prompts(), params))
    assert outputs[0] == outputs[1]


def test_running_ahead_changes_no_token(checkpoint: Any) -> None:
    folder, _ = checkpoint
    params = [
        SamplingParams(temperature=0.8, top_k=20, top_p=0.95, seed=n, max_tokens=40 + n, ignore_eos=True)
        for n in range(len(LENGTHS))
    ]
    ahead, behind = engine_of(folder), engine_of(folder)
    behind.runner._needs_host[-1] = True  # type: ignore[union-attr]  # a row nobody has: it never runs ahead
    assert ahead.generate(prompts(), params) == behind.generate(prompts(), params)


RULES: list[dict[str, Any]] = [
    {}, {"logit_bias": ((7, 100.0),)}, {"repetition_penalty": 1.5}, {"presence_penalty": 2.0, "frequency_penalty": 2.0},
    {"allowed_token_ids": tuple(range(0, 5000, 7))}, {"bad_words": (*((n,) for n in range(100)), (7, 7))},
    {"min_tokens": 20, "stop_token_ids": tuple(range(0, 5000, 2))}, {"num_logprobs": 3},
    {"num_logprobs": 0, "logprob_token_ids": (1, 2)}, {"num_logprobs": 5, "frequency_penalty": 0.3},
]  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rules_and_logprobs_on_the_device_are_those_of_the_host(checkpoint: Any, temperature: float) -> None:
    folder, _ = checkpoint
    asked = (prompts() * 2)[: len(RULES)]
    params = [
        SamplingParams(temperature=temperature, seed=n, max_tokens=48, ignore_eos=True, **rules)
        for n, rules in enumerate(RULES)
    ]
    on_device, on_host = engine_of(folder), engine_of(folder)
    on_host.runner._note_changes = everything_on_the_host(on_host.runner)  # type: ignore[method-assign, union-attr]

    outputs, expected = on_device.generate(asked, params), on_host.generate(asked, params)

    assert on_device.runner.runs_ahead
    assert outputs[1] == [7] * 48 or temperature
    assert set(outputs[4]) <= set(range(0, 5000, 7)) and min(outputs[5]) >= 100 and len(outputs[6]) >= 20
    equal = [ours == theirs for ours, theirs in zip(outputs, expected, strict=True)]
    assert all(equal) if temperature == 0.0 else sum(equal) >= len(equal) - 1  # float32 sums may cross a border
    ours, theirs = scores_of(on_device, len(RULES)), scores_of(on_host, len(RULES))
    for number, is_same in enumerate(equal, 1):
        if is_same:
            assert [entry.token for entry in ours[number]] == [entry.token for entry in theirs[number]]
            for own, wanted in zip(ours[number], theirs[number], strict=True):
                assert own.logprob == pytest.approx(wanted.logprob, abs=1e-4) and own.rank == wanted.rank
                assert own.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


def test_no_request_waits_for_a_kernel_to_be_compiled(
    checkpoint: Any, backend: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it asks for, however many rows there are and whatever they share: the start has compiled it."""
    import triton

    forget_compiled_kernels()
    compiled: list[str] = []
    folder, _ = checkpoint
    engine = engine_of(folder, **backend, max_num_seqs=128)
    hook = "jit_post_compile_hook"
    monkeypatch.setattr(triton.knobs.runtime, hook, lambda **noted: compiled.append(noted["fn"].name))

    for number in (1, 2, len(RULES)):
        params = [SamplingParams(temperature=0.8, max_tokens=8, ignore_eos=True, **rules) for rules in RULES[-number:]]
        engine.generate(prompts()[:number], params)
    for number in (16, 40, 70, 100, 128):
        asked = [prompts()[-1 - place % 2] + [100 + place] for place in range(number)]
        engine.generate(asked, [greedy(2 + place % 20) for place in range(number)])

    assert compiled == []


def forget_compiled_kernels() -> None:
    """Those that other tests of this process have compiled."""
    from triton.runtime.jit import JITFunction

    modules = [module for name, module in sys.modules.items() if name.startswith("engine_core.")]
    for kernel in (value for module in modules for value in vars(module).values()):
        if isinstance(kernel, JITFunction):
            kernel.device_caches.clear()


def scores_of(engine: InProcessEngine, num_requests: int) -> dict[int, list[Any]]:
    return {n: [entry for entry in engine.scored if entry.stream == n] for n in range(1, num_requests + 1)}


def everything_on_the_host(runner: Any) -> Any:
    real = runner._note_changes

    def note(plan: Any) -> None:
        real(plan)
        runner._needs_host[plan.changed_rows] = True
        runner._is_ruled[:] = runner._is_scored[:] = False

    return note


def test_rules_survive_preemption(checkpoint: Any) -> None:
    """What was counted is counted again; in float32, where another batch does not round to another text."""
    folder, _ = checkpoint
    rules: list[dict[str, Any]] = [
        {"frequency_penalty": 0.5}, {"repetition_penalty": 1.2}, {"bad_words": ((3, 4),), "presence_penalty": 0.5}
    ]  # fmt: skip
    params = [greedy(320, **rules[n % 3]) for n in range(len(LENGTHS))]
    fields: dict[str, Any] = {"dtype": "float32", "attention_backend": "triton", "block_size": 64}
    scarce, plenty = engine_of(folder, **fields, num_gpu_blocks_override=24), engine_of(folder, **fields)

    outputs = scarce.generate(prompts(), params)

    assert scarce.scheduler.counts.num_preemptions > 0
    assert outputs == plenty.generate(prompts(), params)


NGRAM = (
    '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3, "pauses": false}'
)


def repetitive() -> list[list[int]]:
    """Prompts whose greedy answers fall into loops soon, which prompt lookup guesses."""
    return [prompt[:40] + prompt[:8] * 4 for prompt in prompts()[5:]] + prompts()[:5]


@pytest.mark.parametrize("is_scarce", [False, True])
def test_drafts_change_no_token_in_float32(checkpoint: Any, is_scarce: bool) -> None:
    """Greedy and seeded draws beside rows with rules, which draft nothing; in chunks and through preemption. Draws are cut to
    few tokens: of 200 among thousands some lie on the border between two, and cuBLAS sums a batch of another size in
    another order."""
    folder, _ = checkpoint
    asked = repetitive()
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"temperature": 0.0, "logit_bias": ((7, 3.0), (8, 3.0))},
        {"temperature": 0.3, "top_k": 10, "seed": 5},
        {"temperature": 0.5, "top_k": 5, "seed": 6}, {"temperature": 0.0, "frequency_penalty": 0.2},
        {"temperature": 0.0, "num_logprobs": 1},
    ]  # fmt: skip
    params = [SamplingParams(max_tokens=200, ignore_eos=True, **kinds[n % len(kinds)]) for n in range(len(asked))]
    fields: dict[str, Any] = {"attention_backend": "triton", "block_size": 64, "dtype": "float32"}
    if is_scarce:
        fields |= {"max_num_batched_tokens": 64, "num_gpu_blocks_override": 20}
    plain, drafting = engine_of(folder, **fields), engine_of(folder, **fields, speculative_config=NGRAM)

    expected, outputs = plain.generate(asked, params), drafting.generate(asked, params)

    counts = drafting.scheduler.counts
    print(f"{counts.drafts.num_tokens} drafted, {sum(counts.drafts.accepted_per_place)} right")
    assert sum(counts.drafts.accepted_per_place) > 100 and counts.drafts.num_tokens > 200
    assert drafting.scheduler.counts.num_preemptions > 0 or not is_scarce
    assert outputs == expected


def test_drafts_in_bf16_choose_what_is_likeliest(checkpoint: Any, backend: dict[str, Any]) -> None:
    folder, model = checkpoint
    asked = repetitive()
    plain, drafting = engine_of(folder, **backend), engine_of(folder, **backend, speculative_config=NGRAM)

    expected = plain.generate(asked, [greedy(200)] * len(asked))
    outputs = drafting.generate(asked, [greedy(200)] * len(asked))

    same = sum(ours == theirs for ours, theirs in zip(outputs, expected, strict=True))
    print(f"{same} of {len(asked)} texts are the same")
    check(model, asked, outputs, 200)
    assert sum(drafting.scheduler.counts.drafts.accepted_per_place) > 0


@pytest.mark.parametrize("max_num_batched_tokens", [1024, 128])
def test_embeddings_are_the_pooled_hidden_states(checkpoint: Any, max_num_batched_tokens: int) -> None:
    folder, model = checkpoint
    asked = prompts()
    poolings = [Pooling.LAST, Pooling.MEAN, Pooling.NONE] * (len(asked) // 3)
    params = [greedy(1) if pooling else greedy() for pooling in poolings]
    engine = engine_of(folder, max_num_batched_tokens=max_num_batched_tokens)

    outputs = engine.generate(asked, params, poolings)

    check(model, asked[2::3], outputs[2::3])
    for place, pooling in enumerate(poolings):
        if pooling is Pooling.NONE:
            continue
        with torch.inference_mode():
            states = model.model(torch.tensor([asked[place]], device=model.device)).last_hidden_state[0]
        wanted = states[-1] if pooling is Pooling.LAST else states.mean(0)
        found = torch.from_numpy(engine.embeddings[place]).to(model.device)
        assert torch.cosine_similarity(found, wanted, dim=0) > MIN_COSINE, f"{place=} {pooling=}"
        if pooling is Pooling.LAST:
            assert int(torch.cosine_similarity(found[None], states).argmax()) == len(states) - 1, f"{place=}"


@pytest.mark.parametrize("max_num_batched_tokens", [1024, 128])
def test_prompts_are_scored_in_chunks_beside_rows_that_decode(checkpoint: Any, max_num_batched_tokens: int) -> None:
    """As near to what float32 gives as transformers is in the same 16 bits."""
    folder, model = checkpoint
    narrow = read_by_transformers(folder, torch.bfloat16).to(model.device)
    asked = prompts()
    params = [greedy(num_prompt_logprobs=2 if place % 2 else NO_LOGPROBS) for place in range(len(asked))]
    engine = engine_of(folder, max_num_batched_tokens=max_num_batched_tokens)

    outputs = engine.generate(asked, params)

    check(model, asked, outputs)
    ours, theirs = [], []
    for number, prompt in enumerate(asked, 1):
        scored = {entry.prompt_place: entry for entry in engine.scored if entry.stream == number}
        assert list(scored) == (list(range(1, len(prompt))) if number % 2 == 0 else [])
        if not scored:
            continue
        assert all(entry.token == prompt[place] and len(entry.ids) == 2 for place, entry in scored.items())
        wanted = prompt_logprobs(model, prompt)
        theirs.append((prompt_logprobs(narrow, prompt) - wanted).abs())
        ours.append((torch.tensor([entry.logprob for entry in scored.values()]) - wanted).abs())
    our_errors, their_errors = torch.cat(ours), torch.cat(theirs)
    print(
        f"errors: ours {our_errors.mean():.4f} {our_errors.max():.4f}, {their_errors.mean():.4f} {their_errors.max():.4f}"
    )
    assert our_errors.mean() < 1.25 * their_errors.mean()
    assert our_errors.max() < 2 * their_errors.max()


def prompt_logprobs(model: Any, prompt: list[int]) -> torch.Tensor:
    """(len(prompt) - 1,) float32 on the CPU: of each token but the first."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt], device=model.device)).logits[0, :-1]
    chosen = torch.tensor(prompt[1:], device=model.device).unsqueeze(1)
    return torch.log_softmax(logits.float(), -1).gather(1, chosen)[:, 0].cpu()


@pytest.mark.parametrize("has_rules", [False, True])
def test_a_steady_decode_neither_synchronizes_nor_allocates(checkpoint: Any, has_rules: bool) -> None:
    folder, _ = checkpoint
    engine = engine_of(folder)
    rules: list[dict[str, Any]] = [
        {"frequency_penalty": 0.1, "repetition_penalty": 1.1}, {"logit_bias": ((7, 1.0),), "min_tokens": 190},
        {"bad_words": ((3, 4), (5,)), "allowed_token_ids": tuple(range(1000))}, {},
    ]  # fmt: skip
    for number, prompt in enumerate(prompts()):
        own = rules[number % len(rules)] if has_rules else {}
        engine._add(prompt, SamplingParams(temperature=0.7, top_p=0.9, max_tokens=200, ignore_eos=True, **own))
    launched = plan = None
    try:
        for step in range(60):
            if step == 30:  # prompts are computed
                torch.cuda.synchronize()
                num_allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
                torch.cuda.set_sync_debug_mode("error")
            next_plan = engine.scheduler.schedule()
            assert next_plan is not None
            next_launched = engine.runner.launch(next_plan)
            engine.scheduler.advance(next_plan)
            if launched is not None and plan is not None:
                engine.scheduler.commit(plan, launched.result())
            plan, launched = next_plan, next_launched
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == num_allocations
