"""Sphinx: ``sphinx-build -W --keep-going -b html docs docs/_build/html``. Builds without a network."""

import sys
from pathlib import Path

from flask_llm_cost import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "flask-llm-cost"
author = "the flask-llm-cost contributors"
copyright = author
release = version = __version__

extensions = ["sphinx.ext.autodoc", "help_texts"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"flask-llm-cost {release}"
html_show_sourcelink = False
highlight_language = "python"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Every name of ours that is mentioned must be documented. Names of other packages are not looked up: that needs a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!flask_llm_cost\.).*"),
    # Private names, type variables and aliases in signatures.
    (r"py:.*", r"flask_llm_cost\..*\._\w+"),
]
