"""What the engine's grammar of a schema lets through, by the masks that its sampler gets."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from engine_core.grammar import GrammarCompiler
from ipc.grammar import Grammar, fault_of
from loadtests.conformance.suite import Case, Instance, writings

EOS, VOCAB_SIZE = 2, 49152  # of the embedded model


@dataclass
class Walked:
    """Of all instances of the schemas that compile."""

    compiled: list[Case] = field(default_factory=list)
    refused: list[tuple[Case, str]] = field(default_factory=list)  # with the reason
    verdicts: Counter[str] = field(default_factory=Counter)
    let_through: list[str] = field(default_factory=list)  # invalid ones: faults
    unreachable: list[str] = field(default_factory=list)  # valid ones that the grammar has no way to


def walk(cases: Sequence[Case], model: Path) -> Walked:
    walked = Walked()
    compiler = GrammarCompiler(model / "tokenizer.json", VOCAB_SIZE, (EOS,))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for case in cases:
        grammar = Grammar("json_schema", json.dumps(case.schema))
        fault = fault_of(grammar)
        if fault is not None:
            walked.refused.append((case, fault))
            continue
        walked.compiled.append(case)
        for instance in case.instances:
            _judge(walked, case, instance, lambda text, grammar=grammar: _is_taken(compiler, grammar, tokenizer, text))  # type: ignore[misc]  # mypy: a lambda's default
    return walked


def _judge(walked: Walked, case: Case, instance: Instance, is_taken: Callable[[str], bool]) -> None:
    first, *others = writings(instance.data)
    name = f"{case.name}: {instance.description}: `{first[:80]}`"
    if not instance.is_valid:
        is_wrong = is_taken(first) or any(map(is_taken, others))
        walked.verdicts["invalid, let through" if is_wrong else "invalid, kept out"] += 1
        walked.let_through += [name] if is_wrong else []
    elif is_taken(first):
        walked.verdicts["valid, taken"] += 1
    elif any(map(is_taken, others)):
        walked.verdicts["valid, taken in another writing"] += 1
    else:
        walked.verdicts["valid, unreachable"] += 1
        walked.unreachable.append(name)


def _is_taken(compiler: GrammarCompiler, grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    compiled = compiler.compile(grammar)
    compiled.exception()  # until it is done
    matcher = compiler.matcher_of(compiled)
    output = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    return all(matcher.allowed(output[:end])[token] for end, token in enumerate(output)) and bool(
        matcher.allowed(output)[EOS]
    )
