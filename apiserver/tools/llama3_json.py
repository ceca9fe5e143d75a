"""{"name": …, "parameters": {…}}, several divided by semicolons, as Llama 3 writes calls: the whole answer, or what stands
behind <|python_tag|>."""

from apiserver.tools.call_parser import CallParser, ParameterSchemas

TAG = "<|python_tag|>"


class Llama3JsonParser(CallParser):
    markers = (TAG,)
    known_tokens = (TAG,)

    def __init__(self, schemas: ParameterSchemas) -> None:
        super().__init__(schemas)
        self._state = self._opening

    def _opening(self) -> bool:
        """At the beginning, and behind a call."""
        character = self._peek()
        if not character:
            return False
        self._state = self._inside if character == "{" else self._outside
        if character != "{":
            self._at = 0
        return True

    def _inside(self) -> bool:
        return self._read_json_call(self._divider)

    def _divider(self) -> bool:
        character = self._peek()
        if not character:
            return False
        if character == ";":
            self._at += 1
        self._state = self._opening
        return True
