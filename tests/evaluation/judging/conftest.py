"""A judge of transformers as small as can be, in a folder as the real ones come in."""

import pytest
from small_judge import write_small_judge


@pytest.fixture(scope="session")
def judge_weights(tmp_path_factory) -> str:
    pytest.importorskip("transformers", reason="the judge is a model of transformers: pip install 'microdit[judges]'")
    return str(write_small_judge(tmp_path_factory.mktemp("judge")))
