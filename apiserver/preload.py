"""What every worker of a fleet has in common, built once in the zygote and shared by fork: nothing here may start a
thread, a loop or a ZMQ context."""

from dataclasses import dataclass

from apiserver.chat_template import ChatTemplate, build_chat_template
from apiserver.token_table import TokenTable, build_token_table
from apiserver.tokenizer import Tokenizer, load_tokenizer
from config.model_folder import ModelFolder
from ipc.process_memory import give_back_free_memory


@dataclass(frozen=True)
class Preloaded:
    tokenizer: Tokenizer
    token_table: TokenTable | None
    chat_template: ChatTemplate | None


def preload(model: ModelFolder) -> Preloaded:
    """Raises ModelFolderError with one line for the operator."""
    preloaded = Preloaded(
        tokenizer=load_tokenizer(model),
        token_table=build_token_table(model),
        chat_template=build_chat_template(model),
    )
    give_back_free_memory()
    return preloaded
