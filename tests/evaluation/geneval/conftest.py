"""Both networks of GenEval as small as can be, in folders as the real ones come in."""

import pytest
from small_clip import write_small_clip
from small_mask2former import write_small_mask2former


@pytest.fixture(scope="session")
def clip_weights(tmp_path_factory) -> str:
    return str(write_small_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="session")
def detector_weights(tmp_path_factory) -> str:
    pytest.importorskip(
        "transformers", reason="the detector is a network of transformers: pip install 'microdit[judges]'"
    )
    return str(write_small_mask2former(tmp_path_factory.mktemp("detector")))
