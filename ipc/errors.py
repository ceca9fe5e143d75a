"""The errors of this package.

IpcError
├── LayoutMismatch   a segment holds another layout version than this code speaks
└── RingCorrupt      a published record fails its checks and stays so
"""


class IpcError(Exception):
    """Something the caller cannot go on with; full rings and missing peers are return values instead."""


class LayoutMismatch(IpcError):
    pass


class RingCorrupt(IpcError):
    pass
