"""What the tests of the entry points share: a place for data and runs outside the repository."""

import pytest


@pytest.fixture(scope="session")
def paths(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("cli")
    return [f"paths.data_root={root / 'data'}", f"paths.output_root={root / 'runs'}"]
