"""The words behind what a stream of latents gives."""

from collections.abc import Sequence

import numpy as np

from microdit.data.stream.stream import LatentStream


def caption_texts(stream: LatentStream, positions: Sequence[int]) -> list[str]:
    """The words behind the caption embeddings at these positions. CorruptSampleError where there are none."""
    sources, numbers = stream._mix.locate(np.asarray(positions, dtype=np.int64))
    texts = []
    for source, number in zip(sources, numbers, strict=True):
        reader = stream.sources[source].reader
        rows, choices, _ = stream._locate(int(source), np.array([number]))
        record = reader.record(int(rows[0]))
        captions = record.get("captions") or [record.get("caption")]
        if not isinstance(captions, list) or len(captions) <= choices[0] or not isinstance(captions[choices[0]], str):
            raise reader.failure(int(rows[0]), "json", f"it holds no text for caption {choices[0]}")
        texts.append(captions[choices[0]])
    return texts
