# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The loop of the load driver: non-blocking sockets under epoll. Parses only the counted parts of an answer.

Order i belongs to user i modulo the number of users, has the key `<prefix>-<i>`, and a path and a body drawn from i.
    POST <path> HTTP/1.1\\r\\n Host, Content-Type, Authorization, Idempotency-Key, Content-Length \\r\\n\\r\\n
    {"items": [{"sku": "SKU-1", "quantity": 1}]}
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, errno
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset, strlen

from perf.driver.system cimport (
    AF_INET, CLOCK_MONOTONIC, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN,
    SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, SO_SNDTIMEO, TCP_NODELAY, clock_gettime, close, connect, epoll_create1,
    epoll_ctl, epoll_event, epoll_wait, htons, inet_pton, memmem, pollfd, ppoll, recv, send, setsockopt, sockaddr,
    sockaddr_in, socket, strncasecmp, strtol, timespec, timeval, write,
)


cdef enum:
    REQUEST_BYTES_MAX = 4096
    ANSWER_BYTES_MAX = 16384
    CODES_MAX = 48
    CODE_BYTES_MAX = 40
    CONNECTIONS_MAX = 4096
    EVENTS_MAX = 256
    RECORD_BYTES = 1 << 16
    RECORD_BYTES_ONE_MAX = 96
    BIN_MS = 100
    BINS = 18000  # half an hour; the last bin also counts later answers
    SUB_BITS = 6  # 64 steps per power of two: a percentile is exact within 1.6 %
    BUCKETS = 40 << 6
    ATTEMPTS_MAX = 200

cdef int64_t ANSWER_NS_MAX = 5_000_000_000
cdef int64_t RETRY_NS_FIRST = 20_000_000
cdef int64_t RETRY_NS_MAX = 200_000_000
cdef int64_t SCAN_NS = 5_000_000

cdef enum State:
    IDLE  # has no order
    ASKED  # waits for an answer
    RETRYING  # waits for `wake_ns`


cdef struct Connection:
    int fd  # -1: not connected
    State state
    int64_t order
    int attempts
    int64_t first_ns  # when the order was due or first sent; latency includes all repetitions
    int64_t asked_ns
    int64_t wake_ns
    int got
    char answer[ANSWER_BYTES_MAX]


cdef struct Code:
    int status
    char name[CODE_BYTES_MAX]
    int64_t count


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef int bucket_of(int64_t microseconds) noexcept nogil:
    """Log-linear: exact below 64, then 64 steps per power of two."""
    cdef int shift = 0
    cdef int bucket
    if microseconds < 0:
        microseconds = 0
    while (microseconds >> shift) >= (2 << SUB_BITS):
        shift += 1
    bucket = (shift << SUB_BITS) + <int>(microseconds >> shift)
    return bucket if bucket < BUCKETS else BUCKETS - 1


def bucket_start_us(int bucket):
    """The smallest number of microseconds in a bucket."""
    cdef int shift = max(0, (bucket >> SUB_BITS) - 1)
    return <object>((<int64_t>(bucket - (shift << SUB_BITS))) << shift)


def bucket_index(microseconds):
    """The bucket of a latency, for tests of `bucket_start_us`."""
    return bucket_of(microseconds)


cdef class Loop:
    """Connections that place orders until they are stopped. One thread; `run` holds the GIL."""

    cdef Connection *connections
    cdef int connection_count, epoll, record_fd, record_length
    cdef sockaddr_in address
    cdef list tokens, bodies, heads
    cdef bytes prefix
    cdef char record[RECORD_BYTES]
    cdef Code codes[CODES_MAX]
    cdef int code_count
    cdef int64_t accepted_latency[BUCKETS]
    cdef int64_t refused_latency[BUCKETS]
    cdef int64_t accepted_bins[BINS]
    cdef int64_t refused_bins[BINS]
    cdef int64_t last_scan_ns
    cdef double period_ns  # of an open loop; 0: closed loop
    cdef int64_t orders_max
    cdef int64_t begin_max  # a closed loop begins orders only below this number
    cdef int *idle  # ring of the indexes of idle connections; open loop only
    cdef int idle_first, idle_count
    cdef int64_t looked_up_to  # orders below it are already counted in `found_none_idle`, if at all
    cdef int64_t lateness[BUCKETS]
    cdef readonly int64_t started_ns, next_order, accepted, refused, replayed, retries, transport_errors, given_up
    cdef readonly int64_t found_none_idle
    cdef bint ending

    def __cinit__(self):
        self.epoll = -1

    def __init__(
        self, *, str host, int port, list paths, list tokens, list bodies, int connections, str prefix, int record_fd,
    ):
        """Connects on the first run. `host` is an IPv4 address; `paths` has one per sale, `bodies` one body per SKU.
        `record_fd` gets a line `order id<TAB>index of the user<TAB>index of the SKU` for each 202."""
        assert 1 <= connections <= CONNECTIONS_MAX and paths and tokens and bodies
        longest = max(map(len, tokens)) + max(map(len, bodies)) + max(map(len, paths)) + len(prefix) + len(host)
        if longest + 300 > REQUEST_BYTES_MAX:
            raise ValueError(f"a request would exceed {REQUEST_BYTES_MAX} bytes")
        self.address.sin_family = AF_INET
        self.address.sin_port = htons(port)
        if inet_pton(AF_INET, host.encode(), &self.address.sin_addr) != 1:
            raise ValueError(f"not an IPv4 address: {host}")
        self.connections = <Connection *>calloc(connections, sizeof(Connection))
        if self.connections == NULL:
            raise MemoryError
        self.idle = <int *>calloc(connections, sizeof(int))
        if self.idle == NULL:
            raise MemoryError
        self.connection_count = connections
        for i in range(connections):
            self.connections[i].fd = -1
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "epoll_create1")
        self.tokens = tokens
        self.bodies = bodies
        self.prefix = prefix.encode("ascii")
        self.heads = [
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n".encode("ascii")
            for path in paths
        ]
        self.record_fd = record_fd
        memset(self.codes, 0, sizeof(self.codes))
        memset(self.accepted_latency, 0, sizeof(self.accepted_latency))
        memset(self.refused_latency, 0, sizeof(self.refused_latency))
        memset(self.accepted_bins, 0, sizeof(self.accepted_bins))
        memset(self.refused_bins, 0, sizeof(self.refused_bins))
        memset(self.lateness, 0, sizeof(self.lateness))
        self.begin_max = INT64_MAX
        self.started_ns = monotonic_ns()

    def __dealloc__(self):
        if self.connections != NULL:
            for i in range(self.connection_count):
                if self.connections[i].fd >= 0:
                    close(self.connections[i].fd)
            free(self.connections)
        free(self.idle)
        if self.epoll >= 0:
            close(self.epoll)

    def keep_schedule(self, double rate, int64_t orders):
        """Become an open loop: connect; from now on order i is due i / rate seconds after the start, whether or not
        earlier answers came. Latencies count from then. An order without an idle connection is sent as soon as there
        is one."""
        cdef int i
        assert rate > 0 and orders > 0 and self.next_order == 0 and not self.period_ns
        self.period_ns = 1e9 / rate
        for i in range(self.connection_count):
            if self.connections[i].fd < 0 and not self._connect(&self.connections[i]):
                raise OSError(errno, "cannot connect")
            self._rest(&self.connections[i])
        self.orders_max = orders
        self.started_ns = monotonic_ns()

    def lateness_seen(self):
        """Histogram of the lateness of an open loop: from when an order was due until it was first sent."""
        return [self.lateness[i] for i in range(BUCKETS)]

    def run(self, double seconds):
        """Run for this time. Orders may stay open: `run_orders(0, ...)` waits for their answers."""
        self.begin_max = INT64_MAX
        self._run_until(monotonic_ns() + <int64_t>(seconds * 1e9))
        self._flush()

    def run_orders(self, int64_t orders, double seconds):
        """Closed loop: begin this many more orders, and wait until all are answered or time is up. Returns the number
        that is still open or not begun."""
        assert orders >= 0 and not self.period_ns
        self.begin_max = self.next_order + orders
        self._run_until(monotonic_ns() + <int64_t>(seconds * 1e9))
        self._flush()
        return self._open() + self.begin_max - self.next_order

    def finish(self, double seconds):
        """Send only the remaining orders of an open loop, and wait until all are answered or time is up. Returns the
        number that is still open."""
        cdef int64_t end_ns = monotonic_ns() + <int64_t>(seconds * 1e9)
        self.ending = True
        while self._open() and monotonic_ns() < end_ns:
            self._run_until(min(end_ns, monotonic_ns() + 20_000_000))
        self._flush()
        return self._open()

    def codes_seen(self):
        """Number of answers by (status, problem code); a 202 has an empty code."""
        return {
            (self.codes[i].status, self.codes[i].name.decode("ascii", "replace")): self.codes[i].count
            for i in range(self.code_count)
        }

    def latencies(self):
        """Two histograms: accepted, refused."""
        return [self.accepted_latency[i] for i in range(BUCKETS)], [self.refused_latency[i] for i in range(BUCKETS)]

    def timeline(self):
        """Two lists of counts per 100 ms since `started_ns`: accepted, refused."""
        cdef int used = self._bin(monotonic_ns()) + 1
        return [self.accepted_bins[i] for i in range(used)], [self.refused_bins[i] for i in range(used)]

    cdef int _open(self) noexcept:
        cdef int i, count = <int>(self.orders_max - self.next_order) if self.period_ns else 0
        for i in range(self.connection_count):
            count += self.connections[i].state != IDLE
        return count

    cdef int _bin(self, int64_t now_ns) noexcept:
        cdef int64_t place = (now_ns - self.started_ns) // (BIN_MS * 1_000_000)
        return <int>place if place < BINS else BINS - 1

    cdef int _run_until(self, int64_t end_ns) except -1:
        cdef epoll_event events[EVENTS_MAX]
        cdef int64_t now_ns = monotonic_ns()
        cdef int count, i
        while now_ns < end_ns:
            if now_ns - self.last_scan_ns >= SCAN_NS:
                self.last_scan_ns = now_ns
                PyErr_CheckSignals()  # Ctrl-C stops a run of any length
                self._scan(now_ns)
            if self.period_ns:
                self._send_due(now_ns)
                self._wait_until_due(end_ns)
            count = epoll_wait(self.epoll, events, EVENTS_MAX, 0 if self.period_ns else 5)
            for i in range(count):
                self._receive(&self.connections[events[i].data.u64])
            if self.next_order >= self.begin_max and not self._open():
                return 0
            now_ns = monotonic_ns()
        return 0

    cdef int64_t _due_ns(self, int64_t order) noexcept:
        return self.started_ns + <int64_t>(order * self.period_ns)

    cdef int _send_due(self, int64_t now_ns) except -1:
        """Send all due orders while connections are idle, those idle longest first."""
        cdef Connection *c
        cdef int64_t due
        while self.next_order < self.orders_max and self._due_ns(self.next_order) <= now_ns:
            if self.idle_count == 0:
                due = min(self.orders_max, <int64_t>((now_ns - self.started_ns) / self.period_ns) + 1)
                self.found_none_idle += max(0, due - max(self.next_order, self.looked_up_to))
                self.looked_up_to = max(self.looked_up_to, due)
                return 0
            c = &self.connections[self.idle[self.idle_first]]
            self.idle_first = (self.idle_first + 1) % self.connection_count
            self.idle_count -= 1
            self._begin(c, self._due_ns(self.next_order))
            self.lateness[bucket_of((c.asked_ns - c.first_ns) // 1000)] += 1
        return 0

    cdef int _wait_until_due(self, int64_t end_ns) noexcept:
        """Wait for an answer, the next due order, or 5 ms; more precise than the milliseconds of epoll_wait."""
        cdef pollfd waited_for
        cdef timespec patience
        cdef int64_t now_ns = monotonic_ns()
        cdef int64_t wait_ns = min(SCAN_NS, end_ns - now_ns)
        if self.idle_count and self.next_order < self.orders_max:
            wait_ns = min(wait_ns, self._due_ns(self.next_order) - now_ns)
        waited_for.fd = self.epoll
        waited_for.events = POLLIN
        patience.tv_sec = 0
        patience.tv_nsec = <long>max(0, wait_ns)
        return ppoll(&waited_for, 1, &patience, NULL) if wait_ns > 0 else 0

    cdef int _rest(self, Connection *c) noexcept:
        """Leave the connection without an order; in an open loop it waits for a due one."""
        c.state = IDLE
        if self.period_ns:
            self.idle[(self.idle_first + self.idle_count) % self.connection_count] = <int>(c - self.connections)
            self.idle_count += 1
        return 0

    cdef int _scan(self, int64_t now_ns) except -1:
        """Start idle connections, repeat due orders, and give up on answers that do not come."""
        cdef int i
        cdef Connection *c
        for i in range(self.connection_count):
            c = &self.connections[i]
            if c.state == IDLE and not self.period_ns:
                self._next(c)
            elif c.state == RETRYING and now_ns >= c.wake_ns:
                self._ask(c)
            elif c.state == ASKED and now_ns - c.asked_ns > ANSWER_NS_MAX:
                self._broken(c)
        return 0

    cdef int _next(self, Connection *c) except -1:
        """Begin a new order, unless it is time to end, enough have begun or, in an open loop, none is due."""
        if self.ending or self.period_ns or self.next_order >= self.begin_max:
            return self._rest(c)
        return self._begin(c, monotonic_ns())

    cdef int _begin(self, Connection *c, int64_t first_ns) except -1:
        c.order = self.next_order
        self.next_order += 1
        c.attempts = 0
        c.first_ns = first_ns
        return self._ask(c)

    cdef int _sku(self, int64_t order) noexcept:
        return <int>((<uint64_t>order * 0x9E3779B97F4A7C15ULL >> 33) % <uint64_t>len(self.bodies))

    cdef int _sale(self, int64_t order) noexcept:
        return <int>((<uint64_t>order * 0xD6E8FEB86659FD93ULL >> 33) % <uint64_t>len(self.heads))

    cdef int _ask(self, Connection *c) except -1:
        """Send the connection's order; always the same bytes."""
        cdef char request[REQUEST_BYTES_MAX]
        cdef bytes head = self.heads[self._sale(c.order)]
        cdef bytes token = self.tokens[c.order % len(self.tokens)]
        cdef bytes body = self.bodies[self._sku(c.order)]
        cdef int length
        if c.fd < 0 and not self._connect(c):
            self._broken(c)
            return 0
        length = snprintf(
            request, REQUEST_BYTES_MAX,
            "%sAuthorization: Bearer %s\r\nIdempotency-Key: %s-%lld\r\nContent-Length: %d\r\n\r\n%s",
            <const char *>head, <const char *>token, <const char *>self.prefix, <long long>c.order,
            <int>len(body), <const char *>body,
        )
        c.got = 0
        c.attempts += 1
        c.state = ASKED
        c.asked_ns = monotonic_ns()
        # A request fits the empty buffer of an idle connection: a partial write means a broken one.
        if send(c.fd, request, length, MSG_NOSIGNAL | MSG_DONTWAIT) != length:
            self._broken(c)
        return 0

    cdef bint _connect(self, Connection *c) except -1:
        cdef epoll_event event
        cdef timeval patience
        cdef int one = 1
        patience.tv_sec = 1
        patience.tv_usec = 0
        c.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)
        if c.fd < 0:
            raise OSError(errno, "socket")
        setsockopt(c.fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience))  # also bounds connect
        setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        if connect(c.fd, <sockaddr *>&self.address, sizeof(self.address)) != 0:
            return False
        event.events = EPOLLIN
        event.data.u64 = c - self.connections
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, c.fd, &event) != 0:
            raise OSError(errno, "epoll_ctl")
        return True

    cdef int _broken(self, Connection *c) except -1:
        """Repeat the order: this connection will bring no answer, so its outcome is unknown."""
        self.transport_errors += 1
        if c.fd >= 0:
            close(c.fd)
            c.fd = -1
        return self._retry(c)

    cdef int _retry(self, Connection *c) except -1:
        cdef int64_t wait_ns = RETRY_NS_FIRST * c.attempts
        if c.attempts >= ATTEMPTS_MAX:
            self.given_up += 1
            return self._rest(c)
        self.retries += 1
        c.attempts += c.attempts == 0
        c.state = RETRYING
        c.wake_ns = monotonic_ns() + (wait_ns if wait_ns < RETRY_NS_MAX else RETRY_NS_MAX)
        return 0

    cdef int _receive(self, Connection *c) except -1:
        cdef ssize_t got
        cdef char *end
        cdef int64_t length
        if c.fd < 0:
            return 0
        got = recv(c.fd, c.answer + c.got, ANSWER_BYTES_MAX - 1 - c.got, MSG_DONTWAIT)
        if got < 0 and errno == EAGAIN:
            return 0
        if got <= 0 or c.state != ASKED:
            if c.state == ASKED:
                return self._broken(c)
            close(c.fd)  # the server closed an idle connection
            c.fd = -1
            return 0
        c.got += <int>got
        c.answer[c.got] = 0
        end = <char *>memmem(c.answer, c.got, "\r\n\r\n", 4)
        if end == NULL:
            return 0 if c.got < ANSWER_BYTES_MAX - 1 else self._broken(c)
        length = content_length(c.answer, end)
        if length < 0 or (end - c.answer) + 4 + length > ANSWER_BYTES_MAX - 1:
            return self._broken(c)
        if c.got < (end - c.answer) + 4 + length:
            return 0
        return self._answered(c, end + 4)

    cdef int _answered(self, Connection *c, const char *body) except -1:
        cdef int status = <int>strtol(c.answer + 9, NULL, 10)  # HTTP/1.1 202
        cdef int64_t now_ns = monotonic_ns()
        cdef int bucket
        self._count(status, body)
        if status >= 500:
            return self._retry(c)
        bucket = bucket_of((now_ns - c.first_ns) // 1000)
        if status == 202:
            self.accepted += 1
            self.accepted_latency[bucket] += 1
            self.accepted_bins[self._bin(now_ns)] += 1
            self.replayed += memmem(c.answer, body - c.answer, "eplayed: true", 13) != NULL
            self._keep(c, body)
        else:
            self.refused += 1
            self.refused_latency[bucket] += 1
            self.refused_bins[self._bin(now_ns)] += 1
        return self._next(c)

    cdef int _keep(self, Connection *c, const char *body) except -1:
        """Record the id of an accepted order."""
        cdef const char *found = <const char *>memmem(body, strlen(body), '"order_id"', 10)
        cdef int i = 10
        if found == NULL:
            raise ValueError("a 202 without order_id")
        while found[i] in (c':', c' ', c'"'):
            i += 1
        if self.record_length + RECORD_BYTES_ONE_MAX > RECORD_BYTES:
            self._flush()
        self.record_length += snprintf(
            self.record + self.record_length, RECORD_BYTES_ONE_MAX, "%.36s\t%lld\t%d\n", found + i,
            <long long>(c.order % len(self.tokens)), self._sku(c.order),
        )
        return 0

    cdef int _flush(self) except -1:
        if self.record_length and write(self.record_fd, self.record, self.record_length) != self.record_length:
            raise OSError(errno, "cannot write the list of orders")
        self.record_length = 0
        return 0

    cdef int _count(self, int status, const char *body) except -1:
        cdef char name[CODE_BYTES_MAX]
        cdef const char *found
        cdef int i, length = 0
        memset(name, 0, CODE_BYTES_MAX)
        if status >= 300:
            found = <const char *>memmem(body, strlen(body), '"code"', 6)
            if found != NULL:
                found += 6
                while found[0] in (c':', c' ', c'"'):
                    found += 1
                while length < CODE_BYTES_MAX - 1 and found[length] not in (c'"', 0):
                    length += 1
                memcpy(name, found, length)
        for i in range(self.code_count):
            if self.codes[i].status == status and memcmp(self.codes[i].name, name, CODE_BYTES_MAX) == 0:
                self.codes[i].count += 1
                return 0
        if self.code_count == CODES_MAX:
            raise ValueError(f"more than {CODES_MAX} different answers")
        self.codes[self.code_count].status = status
        memcpy(self.codes[self.code_count].name, name, CODE_BYTES_MAX)
        self.codes[self.code_count].count = 1
        self.code_count += 1
        return 0


cdef int64_t content_length(const char *head, const char *end) noexcept nogil:
    """The value of the header; -1 without it. The driver supports no other framing."""
    cdef const char *line = head
    while line != NULL and line < end:
        line = <const char *>memmem(line, end - line, "\r\n", 2)
        if line != NULL:
            line += 2
            if strncasecmp(line, "content-length:", 15) == 0:
                return strtol(line + 15, NULL, 10)
    return -1
