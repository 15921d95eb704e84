/* sock.h: sockets for the tests of the net poller, on every system: sock_posix.c, sock_windows.c.  All are non-blocking.
 *
 * Reads and writes return the number of bytes, 0 at the end, or one of the negative codes.  What should not fail, fails the test. */
#ifndef GMP_TEST_SOCK_H
#define GMP_TEST_SOCK_H

#include "test.h"

enum { SOCK_AGAIN = -1, SOCK_BROKEN = -2 }; /* would block; reset, refused, or the other end is gone */

typedef enum SockKind { SOCK_LOCAL, SOCK_TCP, SOCK_PIPE, SOCK_KINDS } SockKind;
const char *sock_kind_name(SockKind kind);
/* Two connected ends; of a pipe fd[0] reads, fd[1] writes.  False where the system has no such thing, or cannot poll it. */
bool sock_pair(SockKind kind, int fd[2]);
int sock_read(int fd, void *buf, size_t n);
int sock_write(int fd, const void *buf, size_t n);
void sock_close(int fd);
void sock_reset(int fd);          /* closes with a reset; TCP only */
void sock_shutdown_write(int fd); /* half-close */
size_t sock_fill(int fd);         /* writes until there is no room; returns how much */
size_t sock_drain(int fd);        /* reads until there is nothing */
int sock_listen(int *port);       /* on the loopback; port 0 takes any */
int sock_connect(int port);       /* under way */
int sock_accept(int listener);    /* or SOCK_AGAIN */
int sock_error(int fd);           /* 0 connected, or SOCK_BROKEN */
/* Closes fd, and gives its number to other.  False where numbers cannot be had. */
bool sock_replace(int fd, int other);
/* From now on no descriptor can be had, until sock_enough.  False where that cannot be arranged. */
bool sock_exhaust(void);
void sock_enough(void);
int sock_open_count(void); /* descriptors in use, or -1 where the system does not tell */
int sock_plain_file(void); /* a descriptor of a regular file, or -1 where there is no such thing among sockets */

#endif
