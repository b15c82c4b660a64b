"""How a GPU's memory is taken from the system."""

import os

VARIABLE, OLD_VARIABLE = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


def let_segments_grow() -> None:
    """From here on memory is taken in segments that grow, as long as this process has none yet.

    Tensors whose sizes change, as with the number of kept patches, with sampling between steps or with gathered
    weights, otherwise leave gaps that fit nothing else. A person's own setting stays. Steps launched as a CUDA graph
    keep their memory for good, and leave none.
    """
    if VARIABLE not in os.environ and OLD_VARIABLE not in os.environ:
        os.environ[VARIABLE] = "expandable_segments:True"
