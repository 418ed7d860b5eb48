"""Results of finished runs as tables, figures and pages; reads JSON and imports no JAX.

`python -m jaxseg.report` is the command.
"""
