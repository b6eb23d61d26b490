"""Style templates: files that QGIS saved, kept in the folder `templates`, and how values get into them.

A template is parsed, its values are set, and it is written again, so that a value can never become markup. Names
between double underscores stand for texts. Scores stand on a scale of their own: 0 is the low end, 1 the threshold, 2
the high end. `make qgis-templates` saves all of them again. What the values mean is not known here.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from importlib.resources import files

DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def template(name: str, values: Mapping[str, str] | None = None) -> ET.Element:
    """Return the root of a template, with the texts of `values` in place of `__NAME__` in attributes and texts."""
    root = ET.fromstring(files("geood.geo.qgis").joinpath("templates", name).read_text(encoding="utf-8"))
    for element in root.iter() if values else ():
        fill(element, values or {})
    return root


def fill(element: ET.Element, values: Mapping[str, str]) -> None:
    """Put texts in place of their names in the attributes and the text of one element."""
    for name, text in values.items():
        token = f"__{name}__"
        for key, given in element.attrib.items():
            if token in given:
                element.set(key, given.replace(token, text))
        if element.text and token in element.text:
            element.text = element.text.replace(token, text)


def stretch(root: ET.Element, to_score: Callable[[float], float], *, title: Callable[[float], str]) -> None:
    """Move the colours of a score raster from the template's scale to that of its scores, with labels in its legend."""
    for shader in root.iter("colorrampshader"):
        for key in ("minimumValue", "maximumValue"):
            shader.set(key, repr(to_score(float(shader.get(key, "0")))))
    for renderer in root.iter("rasterrenderer"):
        for key in ("classificationMin", "classificationMax"):
            renderer.set(key, repr(to_score(float(renderer.get(key, "0")))))
    for item in root.iter("item"):
        score = to_score(float(item.get("value", "0")))
        item.set("value", repr(score))
        fill(item, {"value": title(score)})


def written(root: ET.Element) -> str:
    """Return a document as QGIS writes it, with the type that QGIS asks for."""
    return f"{DOCTYPE}{ET.tostring(root, encoding='unicode')}\n"
