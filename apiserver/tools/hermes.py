"""<tool_call>{"name": …, "arguments": {…}}</tool_call>, as Hermes 2 Pro, Qwen 2.5 and Qwen 3 write calls."""

from apiserver.tools.call_parser import CallParser

START, END = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    markers = (START,)
    end_marker = END
    known_tokens = (START, END)

    def _inside(self) -> bool:
        return self._read_json_call(self._ending)
