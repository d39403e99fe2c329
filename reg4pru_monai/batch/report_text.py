"""Text from files made safe for report.html."""

import re
from html import escape

# Controls, marks that change the direction of text, separators, and surrogates, which UTF-8 has not.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def shown(text: str, keep: str = "") -> str:
    r"""The text with characters that cannot be seen or written, but for those in keep, as escapes: \n, \u202e."""
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text)


def markup(text: str) -> str:
    """The text for HTML, in an element or a quoted attribute. Line breaks stay."""
    return escape(shown(text, keep="\n"))
