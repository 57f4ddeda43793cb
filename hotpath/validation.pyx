"""Parses the order body and the Idempotency-Key. Performs no I/O. Knows no sale, so it accepts unknown SKUs.

Two parsers: `parse_plain` reads the usual spelling of a valid order in one pass without a Python object; `examine`, a
complete strict JSON parser, reads every other text and names each fault.
"""

from libc.string cimport memcmp

cdef enum:
    DEPTH_MAX = 16
    ERRORS_MAX = 32

cdef class Malformed:
    """Not JSON, or a malformed key."""

    def __init__(self, str detail not None):
        self.detail = detail


cdef class Invalid:
    """JSON, but no order."""

    def __init__(self, list errors not None):
        self.errors = errors


class _NotJson(Exception):
    """The text is not JSON. Carries place and reason."""


def parse_order(bytes body not None):
    """Lines (SKU, quantity) in request order, Malformed or Invalid."""
    cdef Lines lines
    cdef int i
    if parse_plain(body, len(body), &lines):
        return [
            (lines.line[i].sku[: lines.line[i].sku_length].decode("ascii"), lines.line[i].quantity)
            for i in range(lines.count)
        ]
    return examine(body)


def parse_idempotency_key(str header):
    """The key, None or Malformed."""
    cdef char key[KEY_LENGTH_MAX]
    cdef int length
    if header is None:
        return None
    if not header.isascii():
        return Malformed("the Idempotency-Key must be visible ASCII")
    raw = header.encode("ascii")
    length = parse_key(raw, len(raw), key)
    if length == 0:
        return None
    if length < 0:
        return Malformed("the Idempotency-Key must be 1 to 64 visible ASCII characters")
    return key[:length].decode("ascii")


cdef int parse_key(const char* header, Py_ssize_t length, char* key) noexcept nogil:
    """Read a bare key, or an sf-string (RFC 8941, section 3.3.3) without its quotes and escapes."""
    cdef Py_ssize_t at = 0
    cdef int count = 0
    cdef bint quoted
    cdef char c
    if length == 0:
        return 0
    quoted = header[0] == c'"'
    if quoted:
        if length < 2 or header[length - 1] != c'"':
            return -1
        at = 1
        length -= 1
    while at < length:
        c = header[at]
        if quoted:
            if c == c'"':
                return -1
            if c == c"\\":
                at += 1
                if at == length or (header[at] != c'"' and header[at] != c"\\"):
                    return -1
                c = header[at]
        if c < 0x21 or c > 0x7E or count == KEY_LENGTH_MAX:
            return -1
        key[count] = c
        count += 1
        at += 1
    return count


# ---- the usual spelling ------------------------------------------------------------------------------------------

cdef inline bint is_sku_char(char c) noexcept nogil:
    return c"a" <= c <= c"z" or c"A" <= c <= c"Z" or c"0" <= c <= c"9" or c == c"-" or c == c"_" or c == c"."


cdef inline const char* skip(const char* at, const char* end) noexcept nogil:
    """Skip insignificant whitespace (RFC 8259, section 2)."""
    while at < end and (at[0] == c" " or at[0] == c"\n" or at[0] == c"\r" or at[0] == c"\t"):
        at += 1
    return at


cdef inline const char* expect(const char* at, const char* end, char c) noexcept nogil:
    """Skip whitespace and `c`; NULL for another character."""
    at = skip(at, end)
    return at + 1 if at < end and at[0] == c else NULL


cdef const char* parse_sku(const char* at, const char* end, Line* line) noexcept nogil:
    at = expect(at, end, c'"')
    if at == NULL:
        return NULL
    line.sku = at
    while at < end and is_sku_char(at[0]):
        at += 1
    line.sku_length = <int>(at - line.sku)
    if at == end or at[0] != c'"' or not 1 <= line.sku_length <= SKU_LENGTH_MAX:
        return NULL
    return at + 1


cdef const char* parse_quantity(const char* at, const char* end, Line* line) noexcept nogil:
    cdef int value = 0
    at = skip(at, end)
    if at == end or not c"1" <= at[0] <= c"9":
        return NULL
    while at < end and c"0" <= at[0] <= c"9" and value <= QUANTITY_MAX:
        value = 10 * value + (at[0] - c"0")
        at += 1
    line.quantity = value
    return at if value <= QUANTITY_MAX else NULL


cdef const char* parse_line(const char* at, const char* end, Line* line) noexcept nogil:
    """`{"sku": "...", "quantity": n}`, the two members in either order."""
    cdef int member
    line.sku = NULL
    line.quantity = 0
    at = expect(at, end, c"{")
    for member in range(2):
        if at == NULL:
            return NULL
        at = skip(at, end)
        if end - at > 5 and memcmp(at, b'"sku"', 5) == 0 and line.sku == NULL:
            at = expect(at + 5, end, c":")
            if at != NULL:
                at = parse_sku(at, end, line)
        elif end - at > 10 and memcmp(at, b'"quantity"', 10) == 0 and line.quantity == 0:
            at = expect(at + 10, end, c":")
            if at != NULL:
                at = parse_quantity(at, end, line)
        else:
            return NULL
        if at == NULL:
            return NULL
        at = expect(at, end, c"," if member == 0 else c"}")
    return at


cdef bint parse_plain(const char* body, Py_ssize_t length, Lines* lines) noexcept nogil:
    """`{"items": [line, ...]}` without escapes, duplicates or faults."""
    cdef const char* end = body + length
    cdef const char* at = expect(body, end, c"{")
    cdef Line* line
    cdef int i
    lines.count = 0
    if at == NULL:
        return False
    at = skip(at, end)
    if end - at < 8 or memcmp(at, b'"items"', 7) != 0:
        return False
    at = expect(at + 7, end, c":")
    if at == NULL:
        return False
    at = expect(at, end, c"[")
    if at == NULL:
        return False
    while True:
        if lines.count == LINES_MAX:
            return False
        line = &lines.line[lines.count]
        at = parse_line(at, end, line)
        if at == NULL:
            return False
        for i in range(lines.count):
            if (
                lines.line[i].sku_length == line.sku_length
                and memcmp(lines.line[i].sku, line.sku, line.sku_length) == 0
            ):
                return False
        lines.count += 1
        at = skip(at, end)
        if at == end:
            return False
        if at[0] == c"]":
            break
        if at[0] != c",":
            return False
        at += 1
    at = expect(at + 1, end, c"}")
    return at != NULL and skip(at, end) == end


# ---- every other text --------------------------------------------------------------------------------------------

cdef object examine(bytes body):
    """Parse any JSON text, and list its faults as an order."""
    cdef _JsonText text
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        return Malformed(f"not UTF-8 at byte {error.start}")
    text = _JsonText(body)
    try:
        document = text.document()
    except _NotJson as error:
        return Malformed(f"not JSON: {error}")
    return _check_order(document)


cdef class _Number:
    """A number as text: not every JSON number is a quantity."""

    cdef bytes lexeme

    def __cinit__(self, bytes lexeme):
        self.lexeme = lexeme


cdef class _Members:
    """An object as (name, value) pairs, which keep repeated names."""

    cdef list pairs

    def __cinit__(self):
        self.pairs = []


cdef class _JsonText:
    """Recursive descent over RFC 8259. The text is valid UTF-8."""

    cdef bytes body
    cdef const char* text
    cdef Py_ssize_t length
    cdef Py_ssize_t at
    cdef int depth

    def __cinit__(self, bytes body):
        self.body = body
        self.text = self.body
        self.length = len(body)

    cdef object document(self):
        value = self.value()
        self.skip_space()
        if self.at != self.length:
            self.fail("more text after the value")
        return value

    cdef int fail(self, str why) except -1:
        raise _NotJson(f"{why} at byte {self.at}")

    cdef int skip_space(self) except -1:
        self.at = skip(self.text + self.at, self.text + self.length) - self.text
        return 0

    cdef char peek(self) except? 0:
        """The next significant character."""
        self.skip_space()
        if self.at == self.length:
            self.fail("unexpected end")
        return self.text[self.at]

    cdef object value(self):
        cdef char c = self.peek()
        if c == c"{":
            return self.object_value()
        if c == c"[":
            return self.array()
        if c == c'"':
            return self.string()
        if c == c"-" or c"0" <= c <= c"9":
            return self.number()
        if self.take_word(b"true"):
            return True
        if self.take_word(b"false"):
            return False
        if self.take_word(b"null"):
            return None
        self.fail("unexpected character")

    cdef bint take_word(self, bytes word) except -1:
        if self.body[self.at : self.at + len(word)] != word:
            return False
        self.at += len(word)
        return True

    cdef int descend(self) except -1:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            self.fail("nested too deeply")
        self.at += 1
        return 0

    cdef object object_value(self):
        cdef _Members members = _Members()
        self.descend()
        if self.peek() == c"}":
            self.at += 1
            self.depth -= 1
            return members
        while True:
            if self.peek() != c'"':
                self.fail("expected a member name")
            name = self.string()
            if self.peek() != c":":
                self.fail("expected a colon")
            self.at += 1
            members.pairs.append((name, self.value()))
            if self.peek() == c"}":
                break
            if self.text[self.at] != c",":
                self.fail("expected a comma")
            self.at += 1
        self.at += 1
        self.depth -= 1
        return members

    cdef list array(self):
        values = []
        self.descend()
        if self.peek() == c"]":
            self.at += 1
            self.depth -= 1
            return values
        while True:
            values.append(self.value())
            if self.peek() == c"]":
                break
            if self.text[self.at] != c",":
                self.fail("expected a comma")
            self.at += 1
        self.at += 1
        self.depth -= 1
        return values

    cdef _Number number(self):
        """`-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`"""
        cdef Py_ssize_t start = self.at
        if self.text[self.at] == c"-":
            self.at += 1
        if self.at < self.length and self.text[self.at] == c"0":
            self.at += 1
        else:
            self.digits()
        if self.at < self.length and self.text[self.at] == c".":
            self.at += 1
            self.digits()
        if self.at < self.length and (self.text[self.at] == c"e" or self.text[self.at] == c"E"):
            self.at += 1
            if self.at < self.length and (self.text[self.at] == c"+" or self.text[self.at] == c"-"):
                self.at += 1
            self.digits()
        return _Number(self.body[start : self.at])

    cdef int digits(self) except -1:
        cdef Py_ssize_t start = self.at
        while self.at < self.length and c"0" <= self.text[self.at] <= c"9":
            self.at += 1
        if self.at == start:
            self.fail("expected a digit")
        return 0

    cdef str string(self):
        cdef Py_ssize_t start
        cdef unsigned char c
        parts = []
        self.at += 1
        start = self.at
        while True:
            if self.at >= self.length:
                self.fail("unterminated string")
            c = <unsigned char>self.text[self.at]
            if c < 0x20:
                self.fail("control character in a string")
            if c == c'"':
                parts.append(self.body[start : self.at].decode("utf-8"))
                self.at += 1
                return "".join(parts)
            if c == c"\\":
                parts.append(self.body[start : self.at].decode("utf-8"))
                parts.append(self.escape())
                start = self.at
            else:
                self.at += 1

    cdef str escape(self):
        cdef unsigned int code, low
        cdef char c
        if self.at + 1 >= self.length:
            self.fail("unterminated string")
        c = self.text[self.at + 1]
        if c != c"u":
            plain = _ESCAPES.get(c)
            if plain is None:
                self.fail("unknown escape")
            self.at += 2
            return plain
        code = self.code_unit()
        if 0xDC00 <= code <= 0xDFFF:
            self.fail("lone surrogate")
        if 0xD800 <= code <= 0xDBFF:
            if self.body[self.at : self.at + 2] != b"\\u":
                self.fail("lone surrogate")
            low = self.code_unit()
            if not 0xDC00 <= low <= 0xDFFF:
                self.fail("lone surrogate")
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        return chr(code)

    cdef unsigned int code_unit(self) except? 0xFFFFFFFF:
        """`\\uXXXX` at the current place."""
        digits = self.body[self.at + 2 : self.at + 6]
        if len(digits) != 4 or not all(d in b"0123456789abcdefABCDEF" for d in digits):
            self.fail("expected four hexadecimal digits")
        self.at += 6
        return int(digits, 16)


_ESCAPES = {
    ord(c'"'): '"', ord(c"\\"): "\\", ord(c"/"): "/", ord(c"b"): "\b",
    ord(c"f"): "\f", ord(c"n"): "\n", ord(c"r"): "\r", ord(c"t"): "\t",
}  # fmt: skip


cdef object _check_order(document):
    errors = []
    if not isinstance(document, _Members):
        return Invalid([("", "must be an object")])
    items = _members(<_Members>document, "", ("items",), errors).get("items", _ABSENT)
    lines = []
    if items is not _ABSENT:
        if isinstance(items, list) and 1 <= len(items) <= LINES_MAX:
            for place, item in enumerate(items):
                _check_line(item, f"/items/{place}", lines, errors)
        else:
            errors.append(("/items", "must be an array of 1 to 8 lines"))
    return Invalid(errors[:ERRORS_MAX]) if errors else lines


cdef object _check_line(item, str pointer, list lines, list errors):
    if not isinstance(item, _Members):
        errors.append((pointer, "must be an object"))
        return
    members = _members(<_Members>item, pointer, ("sku", "quantity"), errors)
    sku = members.get("sku", _ABSENT)
    quantity = members.get("quantity", _ABSENT)
    if sku is not _ABSENT:
        if not isinstance(sku, str) or not _is_sku(sku):
            errors.append((pointer + "/sku", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -"))
        elif any(sku == other for other, _ in lines):
            errors.append((pointer + "/sku", "must not appear in two lines"))
    if quantity is not _ABSENT and not _is_quantity(quantity):
        errors.append((pointer + "/quantity", "must be a whole number from 1 to 100, digits only"))
        quantity = _ABSENT
    lines.append((sku, int((<_Number>quantity).lexeme) if quantity is not _ABSENT else 0))


cdef dict _members(_Members members, str pointer, tuple wanted, list errors):
    """The wanted members by name. Appends an error for each unknown, repeated or absent one."""
    found = {}
    for name, value in members.pairs:
        if name not in wanted:
            errors.append((f"{pointer}/{_escaped(name)}", "is unknown; remove it"))
        elif name in found:
            errors.append((f"{pointer}/{name}", "must not appear twice"))
        else:
            found[name] = value
    for name in wanted:
        if name not in found:
            errors.append((f"{pointer}/{name}", "is required"))
    return found


cdef str _escaped(str name):
    """Escape by RFC 6901, section 3. Cuts a long name, because clients choose it."""
    return name[:SKU_LENGTH_MAX].replace("~", "~0").replace("/", "~1")


cdef bint _is_sku(str sku):
    cdef Py_UCS4 c
    if not 1 <= len(sku) <= SKU_LENGTH_MAX:
        return False
    for c in sku:
        if c > 0x7E or not is_sku_char(<char>c):
            return False
    return True


cdef bint _is_quantity(value):
    if not isinstance(value, _Number):
        return False
    lexeme = (<_Number>value).lexeme
    return lexeme.isdigit() and len(lexeme) <= 3 and 1 <= int(lexeme) <= QUANTITY_MAX


_ABSENT = object()
