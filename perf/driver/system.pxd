# cython: language_level=3
# The functions of the C library that the load driver calls: sockets, epoll, clock, text.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "string.h" nogil:
    void *memmem(const void *haystack, size_t haystack_length, const void *needle, size_t needle_length)

cdef extern from "strings.h" nogil:
    int strncasecmp(const char *one, const char *other, size_t length)

cdef extern from "stdlib.h" nogil:
    long strtol(const char *text, char **end, int base)

cdef extern from "unistd.h" nogil:
    int close(int fd)
    ssize_t write(int fd, const void *data, size_t length)

cdef extern from "time.h" nogil:
    ctypedef int clockid_t
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int clock_gettime(clockid_t clock, timespec *time)
    clockid_t CLOCK_MONOTONIC

cdef extern from "sys/time.h" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef extern from "poll.h" nogil:
    short POLLIN
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *signals)

cdef extern from "sys/socket.h" nogil:
    int AF_INET, SOCK_STREAM, SOCK_CLOEXEC, SOL_SOCKET, SO_SNDTIMEO, MSG_NOSIGNAL, MSG_DONTWAIT
    struct sockaddr:
        pass
    int socket(int domain, int kind, int protocol)
    int connect(int fd, const sockaddr *address, unsigned int length)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int length)
    ssize_t send(int fd, const void *data, size_t length, int flags)
    ssize_t recv(int fd, void *data, size_t length, int flags)

cdef extern from "netinet/in.h" nogil:
    int IPPROTO_TCP
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr

cdef extern from "netinet/tcp.h" nogil:
    int TCP_NODELAY

cdef extern from "arpa/inet.h" nogil:
    unsigned short htons(unsigned short port)
    int inet_pton(int family, const char *text, void *address)

cdef extern from "sys/epoll.h" nogil:
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD
    unsigned int EPOLLIN
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count_max, int timeout_ms)
