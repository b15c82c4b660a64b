"""Overrides for runs small enough to be repeated in every test: 16 px shapes, two narrow blocks, batches of four."""

# How big, and nothing that an experiment compares: neither experts nor optimizer, noise or learning rate.
SMALL_SCALE = [
    "model.dim=32",
    "model.depth=2",
    "model.patch_mixer_dim=16",
    "resolution_stage.resolution_px=16",
    "resolution_stage.global_batch_size=4",
    "data_mix.embedded.counts={train: 24, validation: 4}",
    "trainer.validation_batch_size=4",
    "trainer.peak_tflops=0.1",  # else timed for a fifth of a second in every run
]
SMALL_RUN = [*SMALL_SCALE, "model.head_dim=16", "model.patch_mixer_depth=1", "moe.num_experts=2"]
QUICK_PICTURES = ["sampling.num_inference_steps=2", "callbacks.samples.prompts=[a red circle]"]
