"""Addresses of rasters on servers: GDAL's names for them, and the part of a name that may be shown.

An address may hold a secret: a user with a password before its host, a signature or token after a "?". Whatever a user
is shown, and whatever is written to a file, is a name from `display_name`, or a text from `public`; the address itself
is for GDAL alone. Nothing is opened here.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs

from geood.errors import printable

SCHEMES = {
    "http": "/vsicurl/http://",
    "https": "/vsicurl/https://",
    "ftp": "/vsicurl/ftp://",
    "s3": "/vsis3/",
    "gs": "/vsigs/",
    "az": "/vsiaz/",
}
NETWORK = re.compile(
    r"/vsi(?:curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)(?:_streaming)?[/?]|^(?:zip\+|zip:/*)?(?:https?|ftp|s3|gs|az):/",
    re.IGNORECASE,
)
# Names of GDAL's drivers for services, and addresses within the names of other drivers.
_SERVICE = re.compile(
    r"^\W*(?:WMS|WMTS|WCS|STACTA|STACIT|PLMOSAIC|EEDAI?|DAAS|OGCAPI|TILEDB|HTTP)[:/]|(?:https?|ftp)://", re.IGNORECASE
)
_USER = re.compile(r"(://)[^/\s'\"<>]*@")  # up to the last @ before the path, as a password may hold one
_QUERY = re.compile(r"\?[^\s'\"}]+")


def reaches_server(name: str) -> bool:
    """Check whether a name in a document, to be opened by whichever of GDAL's drivers takes it, names a server."""
    return bool(NETWORK.search(name) or _SERVICE.search(name))


def holds_secret(name: str) -> bool:
    """Check whether a name is an address with a user, a password or a query, of which others should not know."""
    return bool(NETWORK.search(name) and (_USER.search(name) or "?" in name))


def display_name(name: str | Path) -> str:
    """Convert a GDAL name (/vsi...) back to the path or address that a user would write, without its secrets.

    User, password and all after a "?" are left out. Control characters, which a terminal would obey, are escaped.
    """
    text = str(name)
    if match := re.fullmatch(r"/vsizip/\{(.*)\}/?(.*)", text, re.DOTALL):
        archive, inner = match.groups()
        return display_name(archive) + (f"!{printable(inner)}" if inner else "")
    if not NETWORK.search(text):
        return printable(public(text) if _SERVICE.search(text) else text)
    if match := re.fullmatch(r"(/vsi\w+)\?(.*)", text, re.DOTALL):  # options and the address, each quoted
        text = f"{match[1]}/{parse_qs(match[2]).get('url', [''])[0]}"
    for scheme, prefix in SCHEMES.items():
        if text.lower().startswith(prefix):
            text = f"{scheme}://{text[len(prefix) :]}"
    return printable(public(text.partition("?")[0]))


def public(text: str) -> str:
    """Return a text without the parts of its addresses that may be secrets: user, password, all after a "?"."""
    return _QUERY.sub("", _USER.sub(r"\1", text))
