"""The JSON of a value that was read out of a model's text."""

import json
from typing import Any


def json_text(value: Any) -> str:  # Any: JSON
    """In whole characters: two halves that were escaped one by one are one, a half alone is U+FFFD. Raises ValueError for
    a number that JSON has no word for."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
