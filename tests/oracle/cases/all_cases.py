"""Every case, in the order of the areas."""

from tests.oracle.cases import chats, likelihoods, refusals, sampling, stopping, streams, structure, tokens, tools
from tests.oracle.cases.case import Case

CASES: list[Case] = [
    *sampling.CASES, *stopping.CASES, *likelihoods.CASES, *chats.CASES, *tools.CASES, *structure.CASES, *tokens.CASES,
    *refusals.CASES, *streams.CASES,
]  # fmt: skip
