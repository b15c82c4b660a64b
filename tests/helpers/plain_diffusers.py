"""A process of somebody who has diffusers and not this project: `python plain_diffusers.py ORDERS DRAWN`.

ORDERS is a torch file: a list of (folder, how DiffusionPipeline.from_pretrained is called, arguments of the pipeline,
where the pipeline saves itself and is opened again, or None). DRAWN has for each the pictures and parameters' names.
"""

import sys


class Refused:
    """Stands before everything that finds modules."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("microdit", "jaxtyping", "beartype"):
            raise ImportError(f"{name} is not installed here")


sys.meta_path.insert(0, Refused())

import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402


def main() -> None:
    orders, drawn = torch.load(sys.argv[1], weights_only=False), []
    for folder, opened, arguments, saved in orders:
        pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **opened)
        if saved is not None:
            pipeline.save_pretrained(saved)
            pipeline = DiffusionPipeline.from_pretrained(saved, trust_remote_code=True)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(output_type="pt", **arguments).images
        drawn.append({"images": images, "parameters": sorted(pipeline.transformer.state_dict())})
    assert not [name for name in sys.modules if name.partition(".")[0] == "microdit"]
    torch.save(drawn, sys.argv[2])


if __name__ == "__main__":
    main()
