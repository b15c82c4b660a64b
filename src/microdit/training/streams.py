"""Opening a run's data, and saying so when it is not there or does not fit."""

from typing import Any

from microdit.build import SettingsError
from microdit.data.embedded import EmbeddedShapes, ensure_shapes
from microdit.data.encoding import Encoders
from microdit.data.opening import open_mix
from microdit.data.plan import Recipe
from microdit.data.progress import progress_bar
from microdit.data.stream import LatentStream
from microdit.pipeline import LatentDiffusion
from microdit.training.settings import TrainingSettings, bind


def open_data(settings: TrainingSettings, pipeline: LatentDiffusion) -> tuple[LatentStream, LatentStream]:
    """Streams for training and validation; the embedded shapes are made first if the mix has them and they are missing.

    Raises DataMissingError naming the command that makes what is missing, SettingsError when the data was encoded at
    another width or length than the run's encoders have.
    """
    names = settings.choices["autoencoder"], settings.choices["text_encoder"]
    resolution_px, mix, reading = settings.resolution_stage.resolution_px, settings.data_mix, settings.reading
    if mix.embedded is not None:
        parts = settings.autoencoder, settings.text_encoder
        encoders = Encoders(pipeline.autoencoder, pipeline.text_encoder, *names, "cpu", *parts)
        with progress_bar("shapes") as report:
            ensure_shapes(
                settings.data_root,
                bind(EmbeddedShapes, mix.embedded, "data_mix.embedded"),
                encoders,
                Recipe([resolution_px]),
                report,
            )

    def opened(sources: list[dict[str, Any]], shuffle: bool) -> LatentStream:
        return open_mix(
            sources,
            resolution_px=resolution_px,
            seed=settings.seed,
            autoencoder=names[0],
            text_encoder=names[1],
            shuffle=shuffle,
            on_corrupt=reading.on_corrupt,  # type: ignore[arg-type]
            max_corrupt_share=reading.max_corrupt_share,
            cache_folder=reading.cache_folder,
            cache_gigabytes=reading.cache_gigabytes,
            pin_memory=settings.trainer.accelerator == "gpu",
        )

    train_stream, validation_stream = opened(mix.sources, True), opened(mix.validation, False)
    expected = {
        "latents": (train_stream.latent_shape, pipeline.latent_shape()),
        "captions": (train_stream.caption_shape, (pipeline.text_encoder.length, pipeline.text_encoder.channels)),
    }
    for what, (found, wanted) in expected.items():
        if tuple(found) != wanted:
            raise SettingsError(
                f"the {what} of this data_mix have shape {tuple(found)}, the run's encoders give {wanted}: "
                f"choose the autoencoder and text_encoder the data was prepared with, or prepare it anew"
            )
    return train_stream, validation_stream
