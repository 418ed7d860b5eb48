"""`python -m jaxseg.study` under the name that it had before: `python -m scripts.study`, with the same flags."""

import runpy

if __name__ == "__main__":
    runpy.run_module("jaxseg.study", run_name="__main__", alter_sys=True)
