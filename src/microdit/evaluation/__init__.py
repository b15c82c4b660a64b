"""Metrics of a trained pipeline: of shapes, of photographs."""
