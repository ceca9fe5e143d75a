"""<tool_call>{"name": …, "arguments": {…}}</tool_call>, as Hermes 2 Pro, Qwen 2.5 and Qwen 3 write calls."""

from apiserver.tools.call_parser import CallParser

START, END = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    markers = (START,)
    known_tokens = (START, END)

    def _inside(self) -> bool:
        return self._read_json_call(self._ending)

    def _ending(self) -> bool:
        """The end marker; some models leave it out."""
        if not self._peek():
            return False
        is_there = self._is_next(END)
        if is_there is None:
            return False
        if is_there:
            self._at += len(END)
        self._consume()
        self._state = self._outside
        return True
