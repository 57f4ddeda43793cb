"""Order lines as C structures. They point into the body."""

cdef enum:
    LINES_MAX = 8
    QUANTITY_MAX = 100
    SKU_LENGTH_MAX = 64
    KEY_LENGTH_MAX = 64

cdef struct Line:
    const char* sku
    int sku_length
    int quantity

cdef struct Lines:
    Line line[LINES_MAX]
    int count

# 1: an order. 0: no order, or an order in an unusual spelling; `examine` distinguishes them.
cdef bint parse_plain(const char* body, Py_ssize_t length, Lines* lines) noexcept nogil

# list of (SKU, quantity), Malformed or Invalid.
cdef object examine(bytes body)

# Length of the key written to `key` (at least KEY_LENGTH_MAX bytes). 0: no key. -1: malformed.
cdef int parse_key(const char* header, Py_ssize_t length, char* key) noexcept nogil

cdef class Malformed:
    cdef readonly str detail

cdef class Invalid:
    cdef readonly list errors
