"""Raw files -> checked samples -> records -> batches. NumPy, Pillow and grain; no JAX.

Start with `prepare.prepare` and `pipeline.train_batches`; README.md says how raw folders look.
"""
