"""Many runs by a plan: models, data sets, protocols and seeds. `python -m jaxseg.study` is the command."""
