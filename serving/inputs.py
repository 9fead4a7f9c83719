"""What a model's contract asks of an instance, prepared once for each model: the checks of a request, and the rows that go into the graph."""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from serving.contract import Contract, Value
from serving.problems import Problem, invalid

FLOAT32_MAX = 3.4028234663852886e38
# Characters of one text. Each text of a request is in memory until it is in the prediction log.
LONGEST_TEXT = 1000
Instance = dict[str, Value]
Row = tuple[bytes, Sequence[str]]  # the numeric columns, packed as float64, and the categorical ones
NUMERIC, CATEGORICAL, KEY = range(3)
FLOATS = frozenset((float, int))


class Inputs:
    """A contract, laid out for checking and composing thousands of instances a second."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.names = contract.inputs
        self.view_features = contract.view_features
        self.given = frozenset((*contract.join_keys, *contract.request_features))
        self._required = (*contract.request_features, *(key for key in contract.join_keys if key in contract.inputs))
        kinds = dict.fromkeys(self.given, KEY) | dict.fromkeys(contract.categorical, CATEGORICAL) | dict.fromkeys(contract.numeric, NUMERIC)
        self._kinds: dict[str, int] = kinds
        self._numeric, self._categorical = contract.numeric, contract.categorical
        self._numbers, self._texts = _getter(contract.numeric), _getter(contract.categorical)
        self.packed = struct.Struct(f"{len(contract.numeric)}d")  # of the numeric columns
        self.all_given = self.given.issuperset(contract.inputs)
        self._inputs = _getter(self.names)
        self._views = frozenset(self.view_features)
        # Of an instance that gives just what it must: its numbers, looked at together, and the rest, one by one.
        plain = tuple(name for name in self.given if kinds[name] == NUMERIC)
        self._given_numbers, self._given_rest = _getter(plain), tuple(name for name in self.given if kinds[name] != NUMERIC)

    def quick(self, instance: Mapping[str, Any]) -> Row | None:
        """The graph's columns of an instance that is plainly right and whole: every input is there, its numbers are numbers that fit into a float of
        32 bits, its categories are ASCII strings, and nothing else is there.

        None: it may be right, ``check`` tells. Most requests are such, and this looks at their numbers all together, not one by one.
        """
        if len(instance) != len(self.names):
            return None
        try:
            texts = self._texts(instance)
            if texts and (len(joined := "".join(texts)) > LONGEST_TEXT or not joined.isascii()):
                return None
            numbers = self._numbers(instance)
            return (self.packed.pack(*numbers), texts) if math.hypot(*numbers) <= FLOAT32_MAX else None  # none is greater than their hypotenuse
        except (KeyError, TypeError, OverflowError):  # one is lacking, is no number or no string, is an integer beyond all floats
            return None

    def check(self, instance: Mapping[str, Any], number: int) -> None:
        """Whether an instance holds what it must and nothing else.

        Raises:
            Problem: 422, with the field.
        """
        for name in self._required:
            if name not in instance:
                raise self._missing(name, number)
        rest: Iterable[str] = instance
        if instance.keys() == self.given and _plainly_right(self._given_numbers(instance)):
            rest = self._given_rest
        for name in rest:
            value = instance[name]
            kind, given = self._kinds.get(name), type(value)
            if given is float:
                if kind == NUMERIC and -FLOAT32_MAX <= value <= FLOAT32_MAX:
                    continue
            elif value is None or given is bool:
                if kind is not None:
                    continue
            elif given is int:
                if kind is not None and (kind != NUMERIC or -FLOAT32_MAX <= value <= FLOAT32_MAX):
                    continue
            elif given is str and kind in (CATEGORICAL, KEY) and len(value) <= LONGEST_TEXT and (value.isascii() or _is_text(value)):
                continue
            problem = self._wrong(name, value, number)  # a float for a key may be right
            if problem is not None:
                raise problem

    def row(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Every input of the model, out of what may be more."""
        return dict(zip(self.names, self._inputs(values), strict=True))

    def numbers(self, row: Mapping[str, Any]) -> Sequence[float]:
        """The graph's numeric columns; missing: NaN."""
        found = self._numbers(row)
        return found if None not in found else [math.nan if value is None else value for value in found]

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """The graph's categorical columns; missing: an empty string."""
        return ["" if (value := row[name]) is None else value if type(value) is str else str(value) for name in self._categorical]

    def needs_look_up(self, instance: Mapping[str, Any]) -> bool:
        return not self._views <= instance.keys()

    def require_keys(self, instance: Mapping[str, Any], number: int) -> None:
        """All join keys, which a look-up needs.

        Raises:
            Problem: 422.
        """
        for key in self.contract.join_keys:
            if key not in instance:
                raise invalid("missing-join-key", "A join key is missing", f"'{key}' must be given; null says that there is none", f"instances[{number}].{key}")

    def _missing(self, name: str, number: int) -> Problem:
        kind, what = ("missing-request-feature", "request feature") if name in self.contract.request_features else ("missing-join-key", "join key")
        return invalid(kind, f"A {what} is missing", f"'{name}' must be given; null says that it is not known", f"instances[{number}].{name}")

    def _wrong(self, name: str, value: Any, number: int) -> Problem | None:
        """What is wrong with a value that is not plainly right; None: nothing."""
        where, kind = f"instances[{number}].{name}", self._kinds.get(name)
        if kind is None and (type(value) is not str or _is_text(value)):
            known = ", ".join(dict.fromkeys((*self.contract.join_keys, *self.contract.request_features)))
            return invalid(
                "unknown-field", "Unknown field", f"the model has no input '{name}'; it takes {known}, and its views' features to override them", where
            )
        if value is not None and not isinstance(value, bool | int | float | str):
            return invalid("wrong-type", "The request is not as it should be", "must be a string, a number, true, false or null", where)
        if isinstance(value, str) and not _is_text(value):
            return invalid("wrong-type", "No text", f"'{name}' is no valid Unicode", where)
        if isinstance(value, str) and kind is not None and len(value) > LONGEST_TEXT:
            detail = f"'{name}' has {len(value)} characters; a text may have {LONGEST_TEXT}"
            return invalid("text-too-long", "A text is too long", detail, where)
        if isinstance(value, float) and not math.isfinite(value):
            return invalid("not-finite", "A number is not finite", f"'{name}' must be a finite number, or null", where)
        if kind == NUMERIC and isinstance(value, str):
            return invalid("wrong-type", "An input has the wrong type", f"'{name}' must be a number or null", where)
        if kind == NUMERIC:
            return invalid("not-finite", "A number is too great", f"'{name}' must fit into a float of 32 bits", where)
        if kind == CATEGORICAL:
            return invalid("wrong-type", "An input has the wrong type", f"'{name}' is a category: a string, an integer, true, false or null", where)
        return None


def _plainly_right(numbers: tuple[Any, ...]) -> bool:
    """Numbers that all fit into a float of 32 bits; False: they may do so all the same."""
    try:  # the sum is no greater only if none is; it is not a number if one is not, and an integer beyond all floats is in no sum
        return FLOATS.issuperset(map(type, numbers)) and sum(map(abs, numbers)) <= FLOAT32_MAX
    except OverflowError:
        return False


def _getter(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    if not names:
        return lambda row: ()
    return lambda row: tuple([row[name] for name in names])  # itemgetter gives no tuple of one, and takes none at all


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
