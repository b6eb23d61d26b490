"""Columns of a review, and the form in which QGIS shows them: order, choices, read-only figures, who and when.

A person judges polygons by `verdict` and tells what they are by `true_class`, and counts what was missed in cells of a
layer of its own. The form is part of a layer's style, as XML of QGIS 3.22 and later. It has no Python: QGIS 4 asks
before it runs any. Nothing that was typed is changed by it: `reviewer` is filled in where it is empty, and `reviewed`
is the time of the last change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import quoteattr

from geood.errors import printable

VERDICTS = {
    "real": "real: something that the model was never taught",
    "false": "false: nothing of that kind, a false alarm",
    "unsure": "unsure: it cannot be told from the image",
    "skip": "skip: left out of all figures",
}
VERDICT_DOMAIN = "geood_verdict"
POLYGON_REVIEW = {  # columns of polygons that a person fills in, and their titles
    "verdict": "verdict",
    "true_class": "true class",
    "comment": "comment",
    "reviewer": "reviewer",
    "reviewed": "reviewed",
}
CELL_REVIEW = {  # the same of the cells of the layer `sample`
    "misses": "misses: things in the cell that no polygon marks",
    "complete": "complete: the whole cell was searched",
    "comment": "comment",
    "reviewer": "reviewer",
    "reviewed": "reviewed",
}
# Columns that only a person fills; QGIS sets `reviewed` by itself.
TYPED = tuple(name for name in dict.fromkeys([*POLYGON_REVIEW, *CELL_REVIEW]) if name != "reviewed")
SAMPLE_LAYER = "sample"
_NULL = "{2839923C-8B7D-419E-B84B-CA2FE9B80EC7}"  # by which QGIS knows an empty value among choices
_NAME = "coalesce(\"reviewer\", nullif(@user_full_name, ''), @user_account_name)"
_DEFAULTS = {"reviewed": "now()", "reviewer": _NAME}


def review_form(columns: Sequence[str], review: Mapping[str, str], *, class_names: Iterable[str] = ()) -> str:
    """Return the parts of a QML that make the form of a layer: what a person fills in first, then its figures.

    Args:
        columns: all columns of the layer; those that are not in `review` are read-only.
        review: columns to be filled in that the layer has, with their titles.
        class_names: names proposed for the column `true_class`; its title lies above it, as it holds them.
    """
    filled = [name for name in review if name in columns]
    figures = [name for name in columns if name not in review]
    known = ", ".join(printable(name) for name in class_names)
    titles = dict(review) | ({"true_class": f"true class: {known}, or other words"} if known else {})
    widgets = "".join(
        f'<field name={quoteattr(name)} configurationFlags="None">{_WIDGETS.get(name, _text(False))}</field>'
        for name in [*filled, *figures]
    )
    aliases = "".join(
        f'<alias field={quoteattr(name)} index="{columns.index(name)}" name={quoteattr(titles[name])}/>'
        for name in filled
    )
    defaults = "".join(
        f'<default field="{name}" expression={quoteattr(_DEFAULTS[name])} applyOnUpdate="1"/>'
        for name in filled
        if name in _DEFAULTS
    )
    editable = "".join(
        f'<field name={quoteattr(name)} editable="{int(name in review)}"/>' for name in ["fid", *columns]
    )
    groups = _group("Review", filled, columns) + _group("Figures", figures, columns)
    above = "".join(f'<field name="{name}" labelOnTop="1"/>' for name in ("true_class",) if name in filled and known)
    return (
        f"<fieldConfiguration>{widgets}</fieldConfiguration><aliases>{aliases}</aliases><defaults>{defaults}</defaults>"
        f"<editable>{editable}</editable><labelOnTop>{above}</labelOnTop><editorlayout>tablayout</editorlayout>"
        f"<editforminitcodesource>0</editforminitcodesource><attributeEditorForm>{groups}</attributeEditorForm>"
    )


def _group(title: str, names: Sequence[str], columns: Sequence[str]) -> str:
    fields = "".join(
        f'<attributeEditorField name={quoteattr(name)} index="{columns.index(name)}" showLabel="1"/>' for name in names
    )
    return (
        f'<attributeEditorContainer name="{title}" groupBox="1" columnCount="1" showLabel="1" visibilityExpression="" '
        f'visibilityExpressionEnabled="0">{fields}</attributeEditorContainer>'
    )


def _widget(kind: str, options: str) -> str:
    return f'<editWidget type="{kind}"><config>{options}</config></editWidget>'


def _map(**values: tuple[str, str]) -> str:
    """Return QGIS options: a type and a value for each name."""
    inner = "".join(f'<Option type="{kind}" name="{name}" value={quoteattr(v)}/>' for name, (kind, v) in values.items())
    return f'<Option type="Map">{inner}</Option>'


def _choices(values: Mapping[str, str]) -> str:
    items = "".join(
        f'<Option type="Map"><Option type="QString" name={quoteattr(shown)} value={quoteattr(value)}/></Option>'
        for shown, value in values.items()
    )
    return f'<Option type="Map"><Option type="List" name="map">{items}</Option></Option>'


def _text(lines: bool) -> str:
    return _widget("TextEdit", _map(IsMultiline=("bool", str(lines).lower()), UseHtml=("bool", "false")))


_WIDGETS = {
    "verdict": _widget("ValueMap", _choices({"(none yet)": _NULL} | {name: name for name in VERDICTS})),
    "true_class": _widget("UniqueValues", _map(Editable=("bool", "true"))),
    "comment": _text(True),
    "reviewed": _widget(
        "DateTime",
        _map(
            allow_null=("bool", "true"),
            calendar_popup=("bool", "false"),
            display_format=("QString", "yyyy-MM-dd HH:mm:ss"),
            field_format=("QString", "yyyy-MM-dd HH:mm:ss"),
            field_iso_format=("bool", "false"),
        ),
    ),
    "misses": _widget(
        "Range",
        _map(
            AllowNull=("bool", "true"),
            Min=("int", "0"),
            Max=("int", "9999"),
            Step=("int", "1"),
            Style=("QString", "SpinBox"),
        ),
    ),
    "complete": _widget("CheckBox", _map(CheckedState=("QString", ""), UncheckedState=("QString", ""))),
}
