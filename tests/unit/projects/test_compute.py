"""Compute classes: the memory of successive tries, and refused values."""

import pytest
from pydantic import ValidationError

from include.projects.compute import ComputeClass, in_bytes


@pytest.mark.parametrize(
    ("memory", "most", "sizes"),
    [
        pytest.param("2Gi", "8Gi", ("2Gi", "4Gi", "8Gi"), id="it doubles up to the most"),
        pytest.param("2Gi", "5Gi", ("2Gi", "4Gi", "5Gi"), id="the last one is the most, also between two doublings"),
        pytest.param("512Mi", "1Gi", ("512Mi", "1Gi"), id="units may differ"),
        pytest.param("2Gi", "2Gi", ("2Gi",), id="no bigger one"),
    ],
)
def test_sizes_of_memory(memory, most, sizes):
    assert ComputeClass(memory=memory, memory_max=most).memory_sizes == sizes


@pytest.mark.parametrize(
    ("used_up", "wanted"),
    [
        pytest.param([], "2Gi", id="first try"),
        pytest.param(["2Gi"], "4Gi", id="after one kill"),
        pytest.param(["2Gi", "4Gi"], "8Gi", id="after two"),
        pytest.param(["3Gi"], "4Gi", id="the project was changed in between"),
        pytest.param(["8Gi"], None, id="there is none bigger"),
    ],
)
def test_memory_of_the_next_try(used_up, wanted):
    assert ComputeClass().memory_after(used_up) == wanted


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param(
            {"memory": "8Gi", "memory_max": "4Gi"}, "memory_max 4Gi is below memory 8Gi", id="the most below the first"
        ),
        pytest.param({"memory": "2 GB"}, "memory", id="not as Kubernetes writes it"),
        pytest.param({"gpus": -1}, "gpus", id="negative GPUs"),
        pytest.param({"gpu": 1}, "gpu", id="a misspelt field"),
        pytest.param(
            {"tolerations": [{"key": "gpu", "value": "a"}]},
            "operator Exists.*use operator='Equal'",
            id="a value that nothing is compared with",
        ),
    ],
)
def test_a_wrong_class_is_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        ComputeClass(**wrong)


def test_bytes():
    assert in_bytes("2Gi") == 2 * 2**30 and in_bytes("3M") == 3_000_000
    with pytest.raises(ValueError, match="'2 apples' is not a quantity of bytes"):
        in_bytes("2 apples")
