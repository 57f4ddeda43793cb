"""Ids and timestamps, written to the caller's memory."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    ID_BYTES = 16
    UUID_CHARS = 36
    TIMESTAMP_CHARS = 24

cdef uint64_t fnv1a_folded(const uint8_t* sixteen) noexcept nogil
cdef void put_short(char* target, const uint8_t* sixteen) noexcept nogil
cdef void put_uuid(char* target, const uint8_t* sixteen) noexcept nogil
cdef bint take_uuid(const char* text, Py_ssize_t length, uint8_t* sixteen) noexcept nogil
cdef int pack_key_in_place(char* key, int length) noexcept nogil
cdef void put_rfc3339_ms(char* target, int64_t unix_ms) noexcept nogil
cdef int put_decimal(char* target, uint64_t value) noexcept nogil

cdef class OrderIds:
    cdef bytes pool
    cdef Py_ssize_t used

    cdef int put(self, uint8_t* sixteen, int64_t unix_ms, int lane, int bucket) except -1

cdef inline char* literal(char* at, bytes data) noexcept:
    """Write `data`; returns the end."""
    cdef Py_ssize_t length = len(data)
    memcpy(at, <const char*>data, length)
    return at + length
