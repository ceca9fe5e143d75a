"""Regular expressions of addresses, as their grammars stand in the RFCs. Rust's syntax, not anchored.

https://www.rfc-editor.org/rfc/rfc3986#appendix-A, https://www.rfc-editor.org/rfc/rfc3987#section-2.2 (without its
restrictions on bidirectional text), https://www.rfc-editor.org/rfc/rfc6570#section-2
"""

_HEX = "[0-9A-Fa-f]"
_ENCODED = f"%{_HEX}{{2}}"
_UNRESERVED = r"A-Za-z0-9\-._~"
_DELIMITERS = r"!$&'()*+,;="
_UNICODE = (
    r"\u{A0}-\u{D7FF}\u{F900}-\u{FDCF}\u{FDF0}-\u{FFEF}\u{10000}-\u{1FFFD}\u{20000}-\u{2FFFD}\u{30000}-\u{3FFFD}"
    r"\u{40000}-\u{4FFFD}\u{50000}-\u{5FFFD}\u{60000}-\u{6FFFD}\u{70000}-\u{7FFFD}\u{80000}-\u{8FFFD}\u{90000}-\u{9FFFD}"
    r"\u{A0000}-\u{AFFFD}\u{B0000}-\u{BFFFD}\u{C0000}-\u{CFFFD}\u{D0000}-\u{DFFFD}\u{E1000}-\u{EFFFD}"
)
_PRIVATE = r"\u{E000}-\u{F8FF}\u{F0000}-\u{FFFFD}\u{100000}-\u{10FFFD}"

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_GROUP = f"{_HEX}{{1,4}}"
_LAST = f"(?:{_GROUP}:{_GROUP}|{_IPV4})"
_IPV6 = "|".join(
    [
        f"(?:{_GROUP}:){{6}}{_LAST}",
        f"::(?:{_GROUP}:){{5}}{_LAST}",
        f"(?:{_GROUP})?::(?:{_GROUP}:){{4}}{_LAST}",
        *(f"(?:(?:{_GROUP}:){{0,{n}}}{_GROUP})?::(?:{_GROUP}:){{{4 - n}}}{_LAST}" for n in (1, 2, 3)),
        f"(?:(?:{_GROUP}:){{0,4}}{_GROUP})?::{_LAST}",
        f"(?:(?:{_GROUP}:){{0,5}}{_GROUP})?::{_GROUP}",
        f"(?:(?:{_GROUP}:){{0,6}}{_GROUP})?::",
    ]
)
_LITERAL_HOST = rf"\[(?:{_IPV6}|[vV]{_HEX}+\.[{_UNRESERVED}{_DELIMITERS}:]+)\]"


def _patterns(more: str, private: str) -> tuple[str, str]:
    """With a scheme, and with or without one. `more`: what may stand in it beside ASCII; `private`: in a query alone."""
    letter = f"(?:[{_UNRESERVED}{_DELIMITERS}:@{more}]|{_ENCODED})"
    letter_but_colon = f"(?:[{_UNRESERVED}{_DELIMITERS}@{more}]|{_ENCODED})"
    user = f"(?:(?:[{_UNRESERVED}{_DELIMITERS}:{more}]|{_ENCODED})*@)?"
    host = f"(?:{_LITERAL_HOST}|(?:[{_UNRESERVED}{_DELIMITERS}{more}]|{_ENCODED})*)"
    behind_host = f"(?:/{letter}*)*"
    located = f"//{user}{host}(?::[0-9]*)?{behind_host}"
    absolute = f"/(?:{letter}+{behind_host})?"
    tail = f"(?:\\?(?:{letter}|[/?{private}])*)?(?:#(?:{letter}|[/?])*)?"
    with_scheme = f"[A-Za-z][A-Za-z0-9+.\\-]*:(?:{located}|{absolute}|{letter}+{behind_host}|){tail}"
    without = f"(?:{located}|{absolute}|{letter_but_colon}+{behind_host}|){tail}"
    return with_scheme, f"(?:{with_scheme}|{without})"


_, URI_REFERENCE = _patterns("", "")
IRI, IRI_REFERENCE = _patterns(_UNICODE, _PRIVATE)

_NAME = rf"(?:[A-Za-z0-9_]|{_ENCODED})+(?:\.(?:[A-Za-z0-9_]|{_ENCODED})+)*"
_VARIABLE = rf"{_NAME}(?::[1-9][0-9]{{0,3}}|\*)?"
_EXPRESSION = rf"\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\}}"
_PLAIN = rf"[!#$&()*+,\-./0-9:;=?@A-Z\[\]_a-z~{_UNICODE}{_PRIVATE}]"
URI_TEMPLATE = f"(?:{_PLAIN}|{_ENCODED}|{_EXPRESSION})*"
