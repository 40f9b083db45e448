"""Rows S01 to S05: shapes that would broadcast, and arrays that are not numbers."""

import numpy as np
import pytest
from cases import ARRAYS, is_floating
from test_errors import NUMBERS, PER_SEQUENCE, message

pytestmark = pytest.mark.usefixtures("unchecked")

SQUARE = [c for c in ARRAYS if c.batch.__name__ == "tokens" and len(c.inputs()) > 1]


def square(case, size=4, columns=4):
    """Inputs with as many rows as tokens, where a wrong axis has the right length."""
    return {
        name: x[:size, :columns] if x.ndim == 2 else x
        for name, x in case.inputs(0, np.float32).items()
    }


def refuse(case, inputs, name, bad):
    """Said by name, eagerly and compiled."""
    assert f"`{name}` has shape" in message(ValueError, case, **inputs | {name: bad})


def planes(case, inputs):
    """The arrays of every token, but the first, which all others are held to."""
    names = [k for k, x in inputs.items() if x.ndim == 2 and k not in case.column]
    return [k for k in names if k not in ("key", case.shared, "group_ids")][1:]


@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_S01_one_number_a_row_of_a_square_batch(case):
    """(B,) beside (B, B): along which axis, nobody can know."""
    inputs = square(case)
    for name in planes(case, inputs):
        refuse(case, inputs, name, inputs[name][:, 0])


@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_S03_a_column_beside_a_vector(case):
    """(B, 1) and (B,) would be (B, B)."""
    inputs = square(case, columns=1)
    for name in planes(case, inputs):
        refuse(case, inputs, name, inputs[name][:, 0])


@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_S02_a_column_or_a_number_for_every_token(case):
    inputs = square(case)
    for name in planes(case, inputs):
        if name not in PER_SEQUENCE:
            refuse(case, inputs, name, inputs[name][:, :1])
        if name not in NUMBERS:
            refuse(case, inputs, name, inputs[name][0, 0])
        refuse(case, inputs, name, inputs[name][:1])


@pytest.mark.parametrize("case", ARRAYS, ids=str)
def test_S05_arrays_that_are_not_real_numbers(case):
    inputs = case.inputs(0, np.float32)
    for name in filter(lambda name: is_floating(inputs[name]), inputs):
        for dtype in (np.complex64, object, "S3"):
            with pytest.raises(TypeError, match=f"`{name}` has dtype .*expected float"):
                case(**inputs | {name: inputs[name].astype(dtype)})
