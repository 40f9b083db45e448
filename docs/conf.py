"""The site: `python3 run.py docs` makes docs/_build/html of what lies here."""

import pathlib
import sys

sys.path.extend(str(pathlib.Path(__file__).parent / part) for part in ("", "_ext"))

import jaxppo

project = "jaxppo"
version = release = jaxppo.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    *("docstrings", "mathml", "pages"),
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "jupyter_execute"]
nitpicky = True

html_theme = "furo"
html_title = f"jaxppo {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute them

autodoc_typehints = "none"  # shapes are in the text
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
toc_object_entries = False  # each has a heading
add_module_names = False
python_maximum_signature_line_length = 88
