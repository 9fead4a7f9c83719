"""The Python samples of docs/adding-a-project.md are valid parts of a project."""

import re

import pytest

from include.projects import base, flights, source
from include.settings import REPOSITORY

SAMPLES = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/adding-a-project.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("sample", SAMPLES, ids=range(len(SAMPLES)))
def test_a_sample_is_a_valid_part_of_a_project(sample):
    names = {name: value for name, value in {**vars(base), **vars(source)}.items() if not name.startswith("_")}
    exec(sample, names)
    if sample.startswith("Source("):
        return
    fields = {name: names[name] for name in base.Project.model_fields if name in names}
    assert fields, "the sample sets no field of a project"
    project = flights.project
    base.Project(**{name: getattr(project, name) for name in base.Project.model_fields} | fields)
