"""Check instances against a model's contract and build the graph's rows.

The data for the checks are prepared once per model.
"""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from serving.models.contract import Contract, Value
from serving.problems import ProblemError, invalid

FLOAT32_MAX = 3.4028234663852886e38
# Maximum length of one text in characters. Each text of a request stays in memory until it is in
# the prediction log.
LONGEST_TEXT = 1000
Instance = dict[str, Value]
# The numeric columns, packed as float64, and the categorical columns.
Row = tuple[bytes, Sequence[str]]
NUMERIC, CATEGORICAL, KEY = range(3)
FLOATS = frozenset((float, int))


class Inputs:
    """A contract, prepared to check and convert thousands of instances per second."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.names = contract.inputs
        self.view_features = contract.view_features
        self.given = frozenset((*contract.join_keys, *contract.request_features))
        self._required = (*contract.request_features, *(key for key in contract.join_keys if key in contract.inputs))
        kinds = (
            dict.fromkeys(self.given, KEY)
            | dict.fromkeys(contract.categorical, CATEGORICAL)
            | dict.fromkeys(contract.numeric, NUMERIC)
        )
        self._kinds: dict[str, int] = kinds
        # Every name that an instance may have.
        self.known = frozenset(kinds)
        self._numeric, self._categorical = contract.numeric, contract.categorical
        self._numbers, self._texts = _getter(contract.numeric), _getter(contract.categorical)
        self.packed = struct.Struct(f"{len(contract.numeric)}d")  # Packs the numeric columns.
        self.all_given = self.given.issuperset(contract.inputs)
        self._inputs = _getter(self.names)
        self._views = frozenset(self.view_features)
        # For an instance with exactly the required inputs: its numbers are checked together, and
        # all other values one by one.
        plain = tuple(name for name in self.given if kinds[name] == NUMERIC)
        self._given_numbers, self._given_rest = (
            _getter(plain),
            tuple(name for name in self.given if kinds[name] != NUMERIC),
        )

    def quick(self, instance: Mapping[str, Any]) -> Row | None:
        """Return the graph's columns of a simple instance, or None if ``check`` must decide.

        A simple instance contains every input and no other field. Its numbers fit into float32, and
        its categories are ASCII strings. Most requests are simple. Their numbers are checked
        together instead of one by one.
        """
        if len(instance) != len(self.names):
            return None
        try:
            texts = self._texts(instance)
            if texts and (len(joined := "".join(texts)) > LONGEST_TEXT or not joined.isascii()):
                return None
            numbers = self._numbers(instance)
            # No number is greater than the hypotenuse, except NaN, which fails the comparison.
            return (self.packed.pack(*numbers), texts) if math.hypot(*numbers) <= FLOAT32_MAX else None
        except (KeyError, TypeError, OverflowError):
            # An input is missing or has the wrong type, or an integer is beyond the range of
            # floats.
            return None

    def check(self, instance: Mapping[str, Any], number: int) -> None:
        """Check that an instance contains all required fields and no unknown ones.

        Raises:
            ProblemError: 422, with the field.
        """
        self._check_required(instance, number)
        rest: Iterable[str] = instance
        if instance.keys() == self.given and is_fast_path_eligible(self._given_numbers(instance)):
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
            elif (
                given is str
                and kind in (CATEGORICAL, KEY)
                and len(value) <= LONGEST_TEXT
                and (value.isascii() or _is_text(value))
            ):
                continue
            problem = self._wrong(name, value, number)  # A float may be valid for a key.
            if problem is not None:
                raise problem

    def _check_required(self, instance: Mapping[str, Any], number: int) -> None:
        for name in self._required:
            if name not in instance:
                raise self._missing(name, number)

    def row(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return every input of the model from values that may contain more."""
        return dict(zip(self.names, self._inputs(values), strict=True))

    def numbers(self, row: Mapping[str, Any]) -> Sequence[float]:
        """Return the graph's numeric columns. A missing value is NaN."""
        numbers = self._numbers(row)
        return numbers if None not in numbers else [math.nan if value is None else value for value in numbers]

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """Return the graph's categorical columns. A missing value is an empty string."""
        return [
            "" if (value := row[name]) is None else value if type(value) is str else str(value)
            for name in self._categorical
        ]

    def needs_look_up(self, instance: Mapping[str, Any]) -> bool:
        return not self._views <= instance.keys()

    def require_keys(self, instance: Mapping[str, Any], number: int) -> None:
        """Check that all join keys, which a lookup needs, are present.

        Raises:
            ProblemError: 422 if one is missing.
        """
        for key in self.contract.join_keys:
            if key not in instance:
                raise invalid(
                    "missing-join-key",
                    "A join key is missing",
                    f"'{key}' must be given; null says that there is none",
                    f"instances[{number}].{key}",
                )

    def _missing(self, name: str, number: int) -> ProblemError:
        kind, what = (
            ("missing-request-feature", "request feature")
            if name in self.contract.request_features
            else ("missing-join-key", "join key")
        )
        return invalid(
            kind,
            f"A {what} is missing",
            f"'{name}' must be given; null says that it is not known",
            f"instances[{number}].{name}",
        )

    def _wrong(self, name: str, value: Any, number: int) -> ProblemError | None:
        """Return the problem of a value that failed the quick checks, or None if it is valid."""
        where, kind = f"instances[{number}].{name}", self._kinds.get(name)
        if kind is None and (type(value) is not str or _is_text(value)):
            known = ", ".join(dict.fromkeys((*self.contract.join_keys, *self.contract.request_features)))
            return invalid(
                "unknown-field",
                "Unknown field",
                f"the model has no input '{name}'; it takes {known}, and its views' features to override them",
                where,
            )
        if value is not None and not isinstance(value, bool | int | float | str):
            return invalid(
                "wrong-type",
                "The request is not as it should be",
                "must be a string, a number, true, false or null",
                where,
            )
        if isinstance(value, str) and not _is_text(value):
            return invalid("wrong-type", "No text", f"'{name}' is not valid Unicode", where)
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
            return invalid(
                "wrong-type",
                "An input has the wrong type",
                f"'{name}' is a category: a string, an integer, true, false or null",
                where,
            )
        return None


def is_fast_path_eligible(numbers: tuple[Any, ...]) -> bool:
    """Return True if all values are numbers within float32. False can also be a false alarm."""
    # If the sum is within the limit, each number is. The sum of NaN is NaN, and an integer beyond
    # the range of floats raises OverflowError.
    try:
        return FLOATS.issuperset(map(type, numbers)) and sum(map(abs, numbers)) <= FLOAT32_MAX
    except OverflowError:
        return False


def _getter(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    if not names:
        return lambda row: ()
    # For one name, itemgetter does not return a tuple. It does not accept zero names.
    return lambda row: tuple([row[name] for name in names])


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
