"""How Sphinx builds the documentation: make docs. Nothing is fetched from the network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from importlib.metadata import version as version_of

project = "cockpit-lite"
author = "the cockpit-lite authors"
release = version = version_of("cockpit-lite")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest", "pages"]
exclude_patterns = ["_build", "gallery/README.md"]
html_theme = "furo"
html_title = "cockpit-lite"
html_copy_source = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_ivar = True  # attributes that are properties, too, are described twice otherwise
suppress_warnings = ["myst.xref_missing"]  # pages of the repository that are included here link to their neighbours
# The reader's own names in the docstrings ("theta_t") are no links.
nitpicky = False
