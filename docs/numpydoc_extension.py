"""How the site reads docstrings of the form ``name : what it is``, whose types are in the signature."""

from __future__ import annotations

import griffe


class Described(griffe.Extension):
    """Makes the text after a name its description where no description follows; the type is that of the signature."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by Griffe for every object that it has read."""
        if obj.docstring is None:
            return
        for section in obj.docstring.parsed:
            if section.kind not in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
                continue
            for item in section.value:
                if not item.description and isinstance(item.annotation, (str, griffe.Expr)):
                    item.description = str(item.annotation)
                    item.annotation = annotation(obj, item.name)


def annotation(obj: griffe.Object, name: str) -> griffe.Expr | str | None:
    """The type of a parameter or an attribute, as it is annotated."""
    if isinstance(obj, griffe.Function):
        return obj.parameters[name].annotation if name in obj.parameters else None
    member = obj.members.get(name)
    return member.annotation if isinstance(member, griffe.Attribute) else None
