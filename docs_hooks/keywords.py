"""What mkdocstrings cannot do by itself: show the keywords that ``**options`` stands for.

It reads the source without running it, so it sees no signature that a decorator has completed.
"""

from __future__ import annotations

from typing import Any

from griffe import Class, Extension, Parameter, ParameterKind

from trimtab.adapters.options import OPTIONAL, with_keywords

DECORATOR = "takes_run_keywords"


class RunKeywords(Extension):
    """Completes the signature and the docstring of a class as `takes_run_keywords` does."""

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        """Complete one class, if it is decorated so."""
        del kwargs
        if not any(str(item.value) == DECORATOR for item in cls.decorators):
            return
        parameters = cls.members["__init__"].parameters
        del parameters["options"]
        for item in OPTIONAL:
            parameters.add(
                Parameter(
                    item.name,
                    annotation=str(item.annotation),
                    kind=ParameterKind.keyword_only,
                    default=repr(item.default),
                )
            )
        cls.docstring.value = with_keywords(cls.docstring.value)
