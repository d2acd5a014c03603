"""What the benchmarks write."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.reporting import write_json


def test_a_number_that_is_not_finite_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results" / "found.json"
    write_json(path, {"bits": 2.5})
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"bits": value})
    assert json.loads(path.read_text()) == {"bits": 2.5}
