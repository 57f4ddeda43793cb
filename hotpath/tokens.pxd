"""Claims of a verified token, and the key ring that verifies it."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef class Claims:
    cdef uint8_t user[16]
    cdef uint64_t user_hash
    cdef int64_t expires_at
    cdef int64_t issued_at
    cdef int64_t generation  # `gen`; -1 when the token has none

cdef class HmacKey:
    cdef object inner
    cdef object outer

    cdef bytes digest(self, bytes message)

cdef class KeyRing:
    cdef dict keys  # kid -> HmacKey
    cdef dict ends  # 16 bytes of a user id, or b"" for all users -> generation; shared with its owner
    cdef dict headers  # encoded header -> HmacKey, bounded
    cdef str issuer
    cdef str audience
    cdef str role
    cdef bytes issuer_ascii
    cdef bytes audience_ascii
    cdef bytes role_ascii
    cdef int64_t leeway_s

    # 0, V_TOKEN_INVALID, V_TOKEN_EXPIRED or V_TOKEN_ENDED; 0 fills `claims`.
    cdef int check(self, const char* token, Py_ssize_t length, int64_t now_s, Claims claims) except -1
    cdef HmacKey key_for(self, bytes header)
    cdef bint is_ended(self, Claims claims) except -1
    cdef int read_claims(self, bytes payload, Claims claims, int64_t* not_before) except -1
