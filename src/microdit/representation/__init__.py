"""Representation alignment: a network learns beside denoising what a frozen one knows of the same pictures."""
