"""Settings of the documentation: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import inspect
import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sphinx.domains.python import PyObject  # noqa: E402
from sphinx.pycode import ModuleAnalyzer  # noqa: E402
from sphinx.util.inspect import stringify_signature  # noqa: E402

from minibert import __version__  # noqa: E402

project = "minibert"
author = "The minibert authors"
copyright = "The minibert authors"
version = release = __version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"minibert {release}"
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}  # lines of 100 fit
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# Docstrings are Google's, with code between single backticks.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

SHORTER = {  # what a signature prints, and what a reader needs of it
    r": ~?(typing\.)?Any\b(?=[,)]| = )": "",
    r"~?(str \| )?~?type\[~?(typing\.)?Any\] \| ~?[\w.]*dtype \| ~?\S*SupportsDType": "DTypeLike",
    r"<class '[\w.]*?(\w+)'>": r"\1",
    r"<factory>": "...",
    r"~?jaxlib\._jax\.Array": "Array",
    r"~?collections\.abc\.": "",
}


def model_signature(name: str) -> inspect.Signature | None:
    """Returns the signature of a model's class or `__call__`."""
    from minibert.models.base import PretrainedModel
    from minibert.models.registry import MODELS

    known = {**MODELS, "PretrainedModel": PretrainedModel}
    *_, owner, last = name.split(".")
    if last in known:
        return inspect.signature(known[last].__init__)
    if owner not in known or last != "__call__":
        return None
    return inspect.signature(known[owner].__call__)


def shorter(text: str | None) -> str | None:
    """Returns a part of a signature without what says nothing."""
    for pattern, replacement in SHORTER.items() if text else ():
        text = re.sub(pattern, replacement, text or "")
    return text


def signature(
    app: Any, what: str, name: str, obj: Any, options: Any, arguments: str | None, returned: Any
) -> tuple[str | None, str | None]:
    """Returns what is printed as a signature: a model's arguments by name, and no `Any`."""
    if what in ("class", "method") and (full := model_signature(name)) is not None:
        shown = [parameter for n, parameter in full.parameters.items() if n != "self"]
        full = full.replace(parameters=shown, return_annotation=full.empty)
        arguments = stringify_signature(full, unqualified_typehints=True)
    return shorter(arguments), None if returned in ("Any", "~typing.Any") else shorter(returned)


def docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Writes the names of arguments that are described together as napoleon reads them."""
    for number, line in enumerate(lines):
        if together := re.match(r" {4}(\*{0,2}\w+(, \*{0,2}\w+)+):", line):
            lines[number] = re.sub(r"[* ]", "", together[0]).join(["    ", line[together.end() :]])


def without_overloads(self: ModuleAnalyzer) -> None:
    """Analyses a module, and forgets its overloads: one signature has all arguments."""
    analyze(self)
    self.overloads = {}


def setup(app: Any) -> None:
    """Connects what is above."""
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring, priority=400)  # before napoleon
    ModuleAnalyzer.analyze = without_overloads
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"


analyze = ModuleAnalyzer.analyze
