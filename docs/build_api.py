"""Builds the API reference from the docstrings; every warning is an error.

    python docs/build_api.py [FOLDER]        # default: build/api

Needs the `docs` extra. `python -m http.server --directory build/api` shows the result in a browser.
"""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render
from pdoc.extract import walk_specs

import jaxseg

# What others deprecate is not a fault of a docstring.
warnings.simplefilter("error")
warnings.simplefilter("ignore", DeprecationWarning)

# pdoc looks only at names that are there already, and some are imported when they are first used.
for name in jaxseg.__all__:
    vars(jaxseg)[name] = getattr(jaxseg, name)

# By itself pdoc goes into a package only where the package has no `__all__`.
modules = ["jaxseg"]
for module in pkgutil.walk_packages(jaxseg.__path__, "jaxseg."):
    if module.name not in walk_specs(modules):
        modules.append(module.name)

pdoc.render.configure(docformat="google", show_source=False)
pdoc.pdoc(*modules, output_directory=Path(sys.argv[1] if len(sys.argv) > 1 else "build/api"))
