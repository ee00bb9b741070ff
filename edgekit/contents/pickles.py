"""What a pickle describes, followed opcode by opcode; nothing in it is called.

A pickle is a program for a machine with a stack (see ``pickletools``). This machine knows no
functions: where the program calls one or makes an object, the result only says which and of what.
Its work is bounded by the pickle's length. A mapping is its pairs, because comparing keys that
are nested tuples may take forever.
"""

import pickletools
from dataclasses import dataclass, field
from typing import Any

# Opcodes that leave what they carry on the stack.
_PLAIN = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_PLAIN |= {"INT", "LONG", "UNICODE", "FLOAT", "SHORT_BINBYTES", "BINBYTES", "BINSTRING"}
_PLAIN |= {"SHORT_BINSTRING", "BINUNICODE8"}
_WORDS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
_IGNORED = {"PROTO", "FRAME"}


@dataclass(eq=False)
class Made:
    """What a function or class made: its name (``module.name``), arguments and state."""

    by: str
    arguments: Any = None
    state: Any = None


@dataclass(eq=False)
class Pairs:
    """A mapping."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Named:
    """A function or class."""

    name: str


@dataclass(eq=False)
class Reference:
    """Something that the pickle keeps elsewhere; key: what it says of it."""

    key: Any


class _Mark:
    pass


def describe(content: bytes) -> Any:
    """The value that a pickle describes: strings, numbers, tuples, lists, and the classes here.

    Raises ValueError for what is no pickle, or uses opcodes that no description needs.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in _PLAIN:
            stack.append(argument)
        elif name in _WORDS:
            stack.append(_WORDS[name])
        elif name == "MARK":
            stack.append(_Mark)
        elif name in _PUTS:
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(Named(argument.replace(" ", ".")))
        elif name == "STOP":
            return stack.pop()
        elif name not in _IGNORED:
            _build(name, stack)
    raise ValueError("a pickle without an end")


def _build(name: str, stack: list[Any]) -> None:
    """Opcodes that make one value of others."""
    if name in _TUPLES:
        count = _TUPLES[name]
        parts = stack[len(stack) - count :]
        if len(parts) != count:
            raise ValueError("a pickle that takes more than it has")
        del stack[len(stack) - count :]
        stack.append(tuple(parts))
    elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
        stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": []}.get(name, Pairs()))
    elif name in ("TUPLE", "LIST", "DICT"):
        found = _since_mark(stack)
        made = tuple(found) if name == "TUPLE" else found
        stack.append(Pairs(list(zip(found[::2], found[1::2]))) if name == "DICT" else made)
    elif name == "APPEND":
        stack[-2].append(stack[-1])
        stack.pop()
    elif name == "APPENDS":
        found = _since_mark(stack)
        stack[-1].extend(found)
    elif name == "SETITEM":
        key, value = stack[-2:]
        del stack[-2:]
        _set(stack[-1], [key, value])
    elif name == "SETITEMS":
        found = _since_mark(stack)
        _set(stack[-1], found)
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, by = stack.pop(), stack.pop()
        stack.append(Made(by.name if isinstance(by, Named) else "", arguments))
    elif name == "BUILD":
        state = stack.pop()
        stack[-1].state = state
    elif name == "BINPERSID":
        stack.append(Reference(stack.pop()))
    elif name == "STACK_GLOBAL":
        last, module = stack.pop(), stack.pop()
        stack.append(Named(f"{module}.{last}"))
    else:
        raise ValueError(f"a pickle with {name}, which no tensor needs")


def _since_mark(stack: list[Any]) -> list[Any]:
    place = len(stack) - 1
    while place >= 0 and stack[place] is not _Mark:
        place -= 1
    if place < 0:
        raise ValueError("a pickle without the mark that it looks for")
    found = stack[place + 1 :]
    del stack[place:]
    return found


def _set(target: Any, found: list[Any]) -> None:
    items = target.items if isinstance(target, Pairs) else None
    if items is None:  # an OrderedDict, which is made by a call
        target.state = items = Pairs() if target.state is None else target.state
        items = items.items
    items.extend(zip(found[::2], found[1::2]))
