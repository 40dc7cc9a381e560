"""HTML from nested calls; everything that isn't markup already is escaped."""

import base64
from html import escape
from typing import Any


class Html(str):
    """Text that is markup and must not be escaped again."""

    __slots__ = ()


def join(*children: Any) -> Html:
    """Return the children one after the other, escaped unless they are `Html`; None is left out."""
    return Html("".join(c if isinstance(c, Html) else escape(str(c)) for c in children if c is not None))


def el(tag: str, *children: Any, **attributes: Any) -> Html:
    """Return an element; `css` is the class, underscores in other names become dashes, True is a bare attribute."""
    parts = [tag]
    for key, value in attributes.items():
        name = "class" if key == "css" else key.replace("_", "-")
        if value is True:
            parts.append(name)
        elif value is not None and value is not False:
            parts.append(f'{name}="{escape(str(value))}"')
    opening = Html(f"<{' '.join(parts)}>")
    return opening if tag in ("img", "br", "meta") else join(opening, *children, Html(f"</{tag}>"))


def table(head: list[Any], rows: list[list[Any]], css: str = "") -> Html:
    """Return a table; the first column is the rows' heading."""
    top = el("tr", *(el("th", cell, scope="col") for cell in head))
    body = (el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:])) for row in rows)
    return el("div", el("table", el("thead", top) if head else None, el("tbody", *body), css=css), css="scroll")


def picture(content: bytes, alt: str, kind: str = "png") -> Html:
    """Return an image that lies in the page itself; `kind` is `png` or `jpeg`."""
    return el("img", alt=alt, src=f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
