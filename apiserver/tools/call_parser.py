"""What the forms of tool calls have in common: text before and between calls, a call in JSON, and what becomes of text that
looked like a call and is none."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from apiserver.output_parts import CallArguments, CallStart, Content, Part
from apiserver.stop_strings import held_length
from apiserver.tools.json_call import JsonCall
from apiserver.tools.json_reader import skip_space

ParameterSchemas = dict[str, Any]  # Any: by name of the tool, the JSON schema of its parameters


def new_call_id() -> str:
    """As OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


class CallParser:
    """Cuts an answer into content and calls. A subclass is a state machine over the buffer `_text`: each state does one
    step and says whether it got on; whatever is not yet certain stays in the buffer.

    Text that breaks off being a call before the call has started is content; nothing that started can be taken back, so
    behind a break inside the arguments the call stands as it is and the rest is content. White space alone beside calls is
    dropped.
    """

    markers: tuple[str, ...] = ()
    """What begins a call, wherever in the answer it stands."""
    end_marker = ""
    """What ends one, where the form has it."""
    known_tokens: tuple[str, ...] = ()
    """What a tokenizer may have a special token for."""

    def __init__(self, schemas: ParameterSchemas) -> None:
        self._schemas = schemas
        self._text = ""
        self._at = 0  # how far into it the call has been read
        self._parts: list[Part] = []
        self._space = ""  # white space beside a call, or at the beginning
        self._is_beside_call = True
        self._call: JsonCall | None = None
        self._is_last = False  # no more text will come
        self._state: Callable[[], bool] = self._outside
        self.num_calls = 0

    @property
    def is_plain(self) -> bool:
        return False

    def simple_part_or_none(self, piece: str) -> Part | None:
        """As of apiserver.output_parts.OutputParser."""
        if self._state != self._outside or self._text or self._is_beside_call:
            return None
        for marker in self.markers:
            if marker[0] in piece:
                return None
        return Content(piece)

    def feed(self, piece: str) -> list[Part]:
        self._text += piece
        return self._run()

    def finish(self) -> list[Part]:
        self._is_last = True
        self._run_to_end()
        if self._space and not self.num_calls:
            self._parts.append(Content(self._space))
        return self._take_parts()

    def _run(self) -> list[Part]:
        while self._state():
            pass
        return self._take_parts()

    def _run_to_end(self) -> None:
        """What is left in the buffer is content, or the last of a call's arguments."""
        while self._state():
            pass
        if self._call is not None and self._call.has_started:
            self._parts += self._call.finish(self._text[self._at :])
        else:
            self._say(self._text)
        self._text = ""

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    # ── outside of calls ─────────────────────────────────────────────────────────────────────────────────────────────

    def _outside(self) -> bool:
        """Content, up to a marker."""
        at, marker = self._first_marker(self.markers)
        if marker is None:
            keep = held_length(self._text, self.markers)
            self._say(self._text[: len(self._text) - keep])
            self._text = self._text[len(self._text) - keep :]
            return False
        self._say(self._text[:at])
        self._text, self._at = self._text[at:], len(marker)
        self._state = self._inside
        return True

    def _inside(self) -> bool:
        """Behind a marker."""
        raise NotImplementedError

    def _first_marker(self, markers: Sequence[str], start: int = 0) -> tuple[int, str | None]:
        found = [(at, marker) for marker in markers if (at := self._text.find(marker, start)) >= 0]
        return min(found, default=(-1, None))

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._is_beside_call:
            text = self._space + text
            if text.isspace():
                self._space = text
                return
            self._space, self._is_beside_call = "", False
        self._parts.append(Content(text))

    # ── inside a call ────────────────────────────────────────────────────────────────────────────────────────────────

    def _new_id(self) -> str:
        return new_call_id()

    def _start_call(self, name: str) -> None:
        """Of a call that is not written in JSON as a whole."""
        self._note_start()
        self._parts.append(CallStart(self.num_calls, self._new_id(), name))

    def _note_start(self) -> None:
        self._space, self._is_beside_call = "", True

    def _add_arguments(self, text: str) -> None:
        if text:
            self._parts.append(CallArguments(self.num_calls, text))

    def _consume(self) -> None:
        """What has been read is settled."""
        self._text, self._at = self._text[self._at :], 0

    def _read_json_call(self, then: Callable[[], bool]) -> bool:
        """A state: inside a call's JSON object."""
        if self._call is None:
            self._call = JsonCall(self.num_calls, self._new_id)
        call = self._call
        had_started = call.has_started
        self._at = call.read(self._text, self._at, self._parts)
        if call.has_started:
            if not had_started:
                self._note_start()
            self._consume()
        if call.is_broken:
            self._break()
        elif call.is_complete:
            self.num_calls += 1
            self._call = None
            self._state = then
        return call.is_broken or call.is_complete

    def _break(self) -> None:
        """It is no call, or no longer one."""
        if self._call is not None and self._call.has_started:
            self.num_calls += 1
        self._say(self._text[: self._at])
        self._call = None
        self._consume()
        self._state = self._outside

    def _peek(self) -> str:
        """The next character that is not white space, "" while there is none."""
        self._at = skip_space(self._text, self._at)
        return self._text[self._at : self._at + 1]

    def _expect(self, character: str, then: Callable[[], bool]) -> bool:
        """A state: this character, or it is no call."""
        found = self._peek()
        if not found:
            return False
        if found != character:
            self._break()
            return True
        self._at += 1
        self._state = then
        return True

    def _ending(self) -> bool:
        """A state: the end marker; some models leave it out."""
        if not self._peek():
            return False
        is_there = self._is_next(self.end_marker)
        if is_there is None:
            return False
        if is_there:
            self._at += len(self.end_marker)
        self._consume()
        self._state = self._outside
        return True

    def _is_next(self, expected: str) -> bool | None:
        """Whether this stands at the place read to; None while that is open."""
        rest = self._text[self._at : self._at + len(expected)]
        if rest == expected:
            return True
        return None if expected.startswith(rest) and not self._is_last else False


class JsonListParser(CallParser):
    """Of calls in one JSON array: what a required choice makes every model write, whatever form it learned."""

    def __init__(self, schemas: ParameterSchemas) -> None:
        super().__init__(schemas)
        self._state = self._opening

    def _opening(self) -> bool:
        return self._expect("[", self._item)

    def _item(self) -> bool:
        return self._read_json_call(self._next)

    def _next(self) -> bool:
        character = self._peek()
        if character == ",":
            self._at += 1
            self._state = self._item
            return True
        return self._expect("]", self._end_of_list)

    def _end_of_list(self) -> bool:
        self._consume()
        self._state = self._outside
        return True


class NamedCallParser(CallParser):
    """The whole answer is the arguments of one call: what a named choice makes every model write."""

    def __init__(self, name: str) -> None:
        super().__init__({})
        self._name = name
        self._state = self._opening

    def _opening(self) -> bool:
        if not self._peek():
            return False
        self._start_call(self._name)
        self.num_calls = 1
        self._state = self._arguments
        return True

    def _arguments(self) -> bool:
        if self._text:
            self._parts.append(CallArguments(0, self._text))
            self._text = ""
        return False
