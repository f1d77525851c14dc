import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.errors import DataError
from charlm.text.raw import as_bytes, as_unicode, decoded, for_json


@given(st.binary())
def test_bytes_come_back_and_json_has_them(data):
    text = decoded(data, "bytes", "it")
    fields = json.loads(json.dumps(for_json("text", text)))

    assert as_bytes(text) == data
    fields["text"].encode()
    assert base64.b64decode(fields.get("text_base64", "")) == (
        data if "text_base64" in fields else b""
    )
    assert ("text_base64" in fields) == (data != fields["text"].encode())


@given(st.text(st.characters()))
def test_any_string_can_be_written_and_printed(text):
    as_bytes(text)
    as_unicode(text).encode()


def test_characters_need_utf_8():
    assert decoded("é".encode(), "chars", "it") == "é"
    with pytest.raises(DataError, match=r"^it: not UTF-8 at byte 1 \(0xff\); write it in UTF-8$"):
        decoded(b"a\xff", "chars", "it")
