/* test_netpoll.c: the net poller, on whichever back-end is compiled in: the same tests for all.
 *
 * A wait may end for nothing (netpoll.h), so a goroutine tries, waits, and tries again: get() and put().  What must never happen is
 * that a wait does not end: then a test hangs and fails by its limit.
 */
#include "native.h"

#include "netpoll.h"
#include "sock.h"

#include <errno.h>

static PollDesc *
open_(int fd)
{
    PollDesc *pd = NULL;

    CHECK_EQ(netpoll_open(NATIVE, fd, &pd), 0);
    CHECK(pd != NULL && ((uintptr_t)pd & (GMP_CACHELINE - 1)) == 0);
    return pd;
}

static void
shut(PollDesc *pd)
{
    int fd = pd->fd;

    netpoll_evict(pd);
    CHECK(netpoll_close(pd));
    sock_close(fd);
}

/* One read or write, parking while it cannot be done; or the code that the wait ended with, less 100. */
static int
get(PollDesc *pd, void *buf, size_t n)
{
    for (;;) {
        int got = sock_read(pd->fd, buf, n);
        if (got != SOCK_AGAIN)
            return got;
        int code = netpoll_wait(pd, POLL_READ);
        if (code != GMP_OK)
            return code - 100;
    }
}

static int
put(PollDesc *pd, const void *buf, size_t n)
{
    for (;;) {
        int done_ = sock_write(pd->fd, buf, n);
        if (done_ != SOCK_AGAIN)
            return done_;
        int code = netpoll_wait(pd, POLL_WRITE);
        if (code != GMP_OK)
            return code - 100;
    }
}

/* Until n goroutines wait in the poller, and have had the time to park. */
static void
wait_waiting(uint32_t n)
{
    while (netpoll_waiters(NATIVE) != n)
        gosleep(100 * US);
    gosleep(MS);
}

/* Writes until there is no room, and none comes when what was on its way has arrived: TCP takes up to 40 ms to say so. */
static void
fill_up(int fd)
{
    do
        gosleep(50 * MS);
    while (sock_fill(fd) != 0);
}

static void
still_waiting(uint32_t n)
{
    for (int i = 0; i < 10; i++) {
        gosleep(MS);
        CHECK_EQ(netpoll_waiters(NATIVE), n);
    }
}

typedef struct Job {
    PollDesc *pd;
    PollMode mode;
    int code; /* what get or put returned; atomic */
    int64_t when;
} Job;

static void
job(void *arg)
{
    Job *j = arg;
    char c = 'x';

    atomic_store(&j->code, j->mode == POLL_READ ? get(j->pd, &c, 1) : put(j->pd, &c, 1));
    j->when = nanotime();
    done();
}

static void
start(Job *j, PollDesc *pd, PollMode mode)
{
    *j = (Job){pd, mode, -1000, 0};
    go(job, j);
}

/* Starts a writer that finds no room, and is the n-th goroutine that waits. */
static void
start_full(Job *j, PollDesc *pd, uint32_t n)
{
    for (;;) {
        fill_up(pd->fd);
        start(j, pd, POLL_WRITE);
        while (netpoll_waiters(NATIVE) != n && atomic_load(&j->code) == -1000)
            gosleep(100 * US);
        gosleep(MS);
        if (atomic_load(&j->code) == -1000)
            return;
        wait_done(1); /* there was room after all */
    }
}

#define EACH_KIND(kind, fd)                                                                                            \
    for (SockKind kind = 0; kind < SOCK_KINDS; kind++)                                                                 \
        if (sock_pair(kind, fd))

/* ---- edges ---- */

TEST_P(poll_ready_before_wait)
{
    int fd[2];
    char c = 0;

    EACH_KIND(kind, fd)
    {
        LOG("%s\n", sock_kind_name(kind));
        CHECK_EQ(sock_write(fd[1], "a", 1), 1); /* before it is registered */
        PollDesc *pd = open_(fd[0]);
        CHECK_EQ(netpoll_wait(pd, POLL_READ), GMP_OK);
        CHECK_EQ(sock_read(fd[0], &c, 1), 1);
        CHECK_EQ(sock_read(fd[0], &c, 1), SOCK_AGAIN);
        CHECK_EQ(sock_write(fd[1], "b", 1), 1); /* after a try has failed, before the wait */
        CHECK_EQ(get(pd, &c, 1), 1);
        CHECK_EQ(c, 'b');
        PollDesc *other = open_(fd[1]);
        CHECK_EQ(netpoll_wait(other, POLL_WRITE), GMP_OK);
        shut(pd);
        shut(other);
    }
    quiet();
}

TEST_P(poll_wait_before_ready)
{
    int fd[2];
    char c;

    EACH_KIND(kind, fd)
    {
        Job j;
        LOG("%s\n", sock_kind_name(kind));
        PollDesc *pd = open_(fd[0]), *other = open_(fd[1]);
        for (int i = 0; i < 5; i++) {
            start(&j, pd, POLL_READ);
            wait_waiting(1);
            CHECK_EQ(sock_write(fd[1], "a", 1), 1);
            wait_done(1);
            CHECK_EQ(j.code, 1);
        }
        for (int i = 0; i < 3; i++) {
            start_full(&j, other, 1);
            CHECK(sock_drain(fd[0]) > 0);
            wait_done(1);
            CHECK_EQ(j.code, 1);
            while (sock_read(fd[0], &c, 1) != SOCK_AGAIN)
                ;
        }
        CHECK_EQ(netpoll_waiters(NATIVE), 0);
        shut(pd);
        shut(other);
    }
    quiet();
}

/* ---- many messages: an edge that is lost anywhere stops them ---- */

typedef struct Pair {
    PollDesc *pd[2];
    long rounds;
} Pair;

static void
echo(void *arg)
{
    Pair *p = arg;
    char c;

    for (long i = 0; i < p->rounds; i++) {
        CHECK_EQ(get(p->pd[1], &c, 1), 1);
        c++;
        CHECK_EQ(put(p->pd[1], &c, 1), 1);
    }
    done();
}

static void
caller(void *arg)
{
    Pair *p = arg;
    char c;

    for (long i = 0; i < p->rounds; i++) {
        char sent = (char)i;
        CHECK_EQ(put(p->pd[0], &sent, 1), 1);
        CHECK_EQ(get(p->pd[0], &c, 1), 1);
        CHECK_EQ(c, (char)(sent + 1));
    }
    done();
}

static void
call_and_echo(SockKind kind, int pairs, long rounds)
{
    Pair *p = calloc((size_t)pairs, sizeof(*p));

    for (int i = 0; i < pairs; i++) {
        int fd[2];
        CHECK(sock_pair(kind, fd) || sock_pair(SOCK_TCP, fd));
        p[i] = (Pair){{open_(fd[0]), open_(fd[1])}, rounds};
    }
    for (int i = 0; i < pairs; i++) {
        go(echo, &p[i]);
        go(caller, &p[i]);
    }
    wait_done(2 * pairs);
    CHECK_EQ(netpoll_waiters(NATIVE), 0);
    for (int i = 0; i < pairs; i++) {
        shut(p[i].pd[0]);
        shut(p[i].pd[1]);
    }
    free(p);
    quiet();
}

TEST_P(poll_ping_pong)
{
    call_and_echo(SOCK_TCP, 1, test_slow() ? 500 : 3000);
}

TEST_P(poll_ping_pong_of_many)
{
    call_and_echo(SOCK_LOCAL, 100, test_slow() ? 10 : 100);
}

static void
send_all(void *arg)
{
    Job *j = arg;
    static const char data[100000];

    for (size_t sent = 0; sent < 3000000;) {
        int n = put(j->pd, data, sizeof(data));
        CHECK(n > 0);
        sent += (size_t)n;
        if (sent >= 3000000)
            j->when = (int64_t)sent;
    }
    done();
}

/* Both directions of both descriptors at once, with full buffers. */
TEST_P(poll_streams_both_ways)
{
    int fd[2];
    PollDesc *pd[2];
    Job send[2];
    static char buf[2][50000];

    CHECK(sock_pair(SOCK_TCP, fd));
    for (int i = 0; i < 2; i++) {
        pd[i] = open_(fd[i]);
        send[i] = (Job){pd[i], POLL_WRITE, 0, 0};
        go(send_all, &send[i]);
    }
    for (int i = 0; i < 2; i++) { /* one after the other: the second sender waits meanwhile */
        for (size_t got = 0; got < 3000000;) {
            int n = get(pd[1 - i], buf[i], sizeof(buf[i]));
            CHECK(n > 0);
            got += (size_t)n;
        }
    }
    wait_done(2);
    shut(pd[0]);
    shut(pd[1]);
}

TEST_P(poll_both_directions_of_one)
{
    int fd[2];
    Job r, w;

    for (SockKind kind = SOCK_LOCAL; kind <= SOCK_TCP; kind++) {
        if (!sock_pair(kind, fd))
            continue;
        LOG("%s\n", sock_kind_name(kind));
        PollDesc *pd = open_(fd[0]);
        start_full(&w, pd, 1);
        start(&r, pd, POLL_READ);
        wait_waiting(2);
        CHECK_EQ(sock_write(fd[1], "a", 1), 1);
        wait_done(1);
        CHECK_EQ(r.code, 1);
        CHECK_EQ(w.code, -1000);
        still_waiting(1);
        start(&r, pd, POLL_READ);
        wait_waiting(2);
        while (atomic_load(&w.code) == -1000) {
            sock_drain(fd[1]);
            gosleep(100 * US);
        }
        wait_done(1);
        CHECK_EQ(w.code, 1);
        CHECK_EQ(r.code, -1000);
        still_waiting(1);
        netpoll_evict(pd);
        wait_done(1);
        CHECK_EQ(r.code, GMP_ECLOSED - 100);
        shut(pd);
        sock_close(fd[1]);
    }
    quiet();
}

/* ---- who may wait ---- */

TEST_P(poll_same_side_twice)
{
    int fd[2];
    Job j[2];

    CHECK(sock_pair(SOCK_LOCAL, fd) || sock_pair(SOCK_TCP, fd));
    PollDesc *pd = open_(fd[0]);
    for (int m = 0; m < 2; m++) {
        if (m == POLL_WRITE) {
            start_full(&j[m], pd, 2);
        }
        else {
            start(&j[m], pd, POLL_READ);
            wait_waiting(1);
        }
        CHECK_EQ(netpoll_wait(pd, (PollMode)m), GMP_ESTATE);
    }
    CHECK_EQ(j[0].code, -1000);
    CHECK_EQ(j[1].code, -1000);
    netpoll_evict(pd);
    wait_done(2);
    shut(pd);
    sock_close(fd[1]);
}

TEST(poll_refuses)
{
    int fd[2], file = sock_plain_file();
    PollDesc *pd = NULL, *again;

    native_start(1);
    CHECK_EQ(netpoll_open(NATIVE, -1, &pd), EBADF);
    CHECK(sock_pair(SOCK_TCP, fd));
    pd = open_(fd[1]); /* now the poller has its own, which could get the number */
    shut(pd);
    pd = NULL;
    CHECK_EQ(netpoll_open(NATIVE, fd[1], &pd), EBADF);
    if (file >= 0)
        CHECK_EQ(netpoll_open(NATIVE, file, &pd), EPERM);
    CHECK(pd == NULL);
    pd = open_(fd[0]);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(netpoll_open(NATIVE, fd[0], &again), EEXIST);
    netpoll_evict(pd);
    CHECK(netpoll_close(pd));
    pd = open_(fd[0]); /* the refusals have left nothing behind */
    CHECK_EQ(netpoll_wait(pd, POLL_READ), GMP_OK);
    shut(pd);
}

/* ---- deadlines ---- */

TEST_P(poll_deadline_future)
{
    int fd[2];
    Job j;

    for (int m = 0; m < 2; m++) {
        CHECK(sock_pair(SOCK_TCP, fd));
        PollDesc *pd = open_(fd[0]);
        fill_up(fd[0]);
        int64_t when = nanotime() + 30 * MS;
        CHECK_EQ(netpoll_set_deadline(pd, (PollMode)m, when), GMP_OK);
        do { /* there may be room after all */
            start(&j, pd, (PollMode)m);
            wait_done(1);
        } while (j.code == 1);
        CHECK_EQ(j.code, GMP_ETIMEDOUT - 100);
        CHECK(j.when >= when);
        CHECK_EQ(netpoll_wait(pd, (PollMode)m), GMP_ETIMEDOUT); /* and from now on */
        CHECK_EQ(netpoll_waiters(NATIVE), 0);
        shut(pd);
        sock_close(fd[1]);
    }
    quiet();
}

TEST_P(poll_deadline_past)
{
    int fd[2];
    Job r, w;
    char c;

    CHECK(sock_pair(SOCK_TCP, fd));
    PollDesc *pd = open_(fd[0]);
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, nanotime() - 1), GMP_OK);
    CHECK_EQ(netpoll_wait(pd, POLL_READ), GMP_ETIMEDOUT);
    CHECK_EQ(netpoll_wait(pd, POLL_WRITE), GMP_OK); /* the other direction's is its own */
    CHECK_EQ(sock_write(fd[1], "a", 1), 1);
    CHECK_EQ(netpoll_wait(pd, POLL_READ), GMP_ETIMEDOUT); /* as in Go, though there is something to read */
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, 0), GMP_OK);
    CHECK_EQ(netpoll_wait(pd, POLL_READ), GMP_OK);
    CHECK_EQ(get(pd, &c, 1), 1);
    start_full(&w, pd, 1); /* set while they wait */
    start(&r, pd, POLL_READ);
    wait_waiting(2);
    CHECK_EQ(netpoll_set_deadline(pd, POLL_WRITE, 1), GMP_OK);
    wait_done(1);
    CHECK_EQ(w.code, GMP_ETIMEDOUT - 100);
    CHECK_EQ(r.code, -1000);
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, INT64_MIN), GMP_OK);
    wait_done(1);
    CHECK_EQ(r.code, GMP_ETIMEDOUT - 100);
    shut(pd);
    sock_close(fd[1]);
    quiet();
}

TEST_P(poll_deadline_changed)
{
    int fd[2];
    Job j;

    CHECK(sock_pair(SOCK_TCP, fd));
    PollDesc *pd = open_(fd[0]);
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, nanotime() + 3600 * SEC), GMP_OK);
    start(&j, pd, POLL_READ);
    wait_waiting(1);
    int64_t when = nanotime() + 10 * MS;
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, when), GMP_OK); /* earlier */
    wait_done(1);
    CHECK_EQ(j.code, GMP_ETIMEDOUT - 100);
    CHECK(j.when >= when);
    when = nanotime() + 500 * MS;
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, when), GMP_OK);
    start(&j, pd, POLL_READ);
    when += 40 * MS;
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, when), GMP_OK); /* later */
    wait_done(1);
    CHECK_EQ(j.code, GMP_ETIMEDOUT - 100);
    CHECK(j.when >= when);
    when = nanotime() + SEC;
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, when), GMP_OK);
    start(&j, pd, POLL_READ);
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, 0), GMP_OK); /* taken back */
    gosleep(when - nanotime() + 20 * MS);
    still_waiting(1);
    CHECK_EQ(sock_write(fd[1], "a", 1), 1);
    wait_done(1);
    CHECK_EQ(j.code, 1);
    CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, nanotime() + 3600 * SEC), GMP_OK);
    shut(pd); /* with a timer: quiet() looks for it */
    sock_close(fd[1]);
    quiet();
}

/* ---- closing ---- */

TEST_P(poll_evict_wakes_both)
{
    int fd[2];
    Job r, w;

    for (int i = 0; i < 10; i++) {
        CHECK(sock_pair(SOCK_LOCAL, fd) || sock_pair(SOCK_TCP, fd));
        PollDesc *pd = open_(fd[0]);
        start_full(&w, pd, 1);
        start(&r, pd, POLL_READ);
        if (i % 2 == 0)
            wait_waiting(2);
        netpoll_evict(pd);
        CHECK_EQ(netpoll_set_deadline(pd, POLL_READ, 0), GMP_ECLOSED);
        wait_done(2);
        CHECK_EQ(r.code, GMP_ECLOSED - 100);
        CHECK_EQ(w.code, GMP_ECLOSED - 100);
        CHECK_EQ(netpoll_wait(pd, POLL_READ), GMP_ECLOSED);
        CHECK_EQ(netpoll_wait(pd, POLL_WRITE), GMP_ECLOSED);
        shut(pd);
        sock_close(fd[1]);
    }
    quiet();
}

TEST_P(poll_stale_event)
{
    int fd[2];
    Job j;

    CHECK(sock_pair(SOCK_TCP, fd));
    PollDesc *pd = open_(fd[0]);
    uint64_t old = pd->cookie;
    shut(pd);
    netpoll_ready(old, true, true, true); /* while it belongs to nobody */
    sock_close(fd[1]);
    CHECK(sock_pair(SOCK_TCP, fd));
    PollDesc *again = open_(fd[0]);
    CHECK(again == pd && again->cookie != old); /* else the test shows nothing */
    start(&j, again, POLL_READ);
    wait_waiting(1);
    netpoll_ready(old, true, true, true);
    CHECK(!netpoll_seen(again, POLL_READ));
    CHECK(!again->hup);
    still_waiting(1);
    CHECK_EQ(sock_write(fd[1], "a", 1), 1);
    wait_done(1);
    CHECK_EQ(j.code, 1);
    shut(again);
    sock_close(fd[1]);
}

/* Descriptors that come and go as fast as they can, with events on their way. */
TEST_P(poll_open_and_close)
{
    int fd[2];
    char c;

    for (int i = 0; i < (test_slow() ? 100 : 1000); i++) {
        CHECK(sock_pair(i % 2 == 0 ? SOCK_TCP : SOCK_LOCAL, fd) || sock_pair(SOCK_TCP, fd));
        PollDesc *pd = open_(fd[0]);
        if (i % 3 != 0)
            CHECK_EQ(sock_write(fd[1], "a", 1), 1);
        if (i % 3 == 1)
            CHECK_EQ(get(pd, &c, 1), 1);
        shut(pd);
        sock_close(fd[1]);
    }
    quiet();
}

/* A program closes a descriptor behind the poller's back, and its number comes back as another's. */
TEST_P(poll_number_reused)
{
    int old[2], fd[2];
    Job j, k;

    for (int waits = 0; waits < 2; waits++) {
        CHECK(sock_pair(SOCK_TCP, old) && sock_pair(SOCK_TCP, fd));
        PollDesc *pd = open_(old[0]);
        if (waits) {
            start(&j, pd, POLL_READ);
            wait_waiting(1);
        }
        if (!sock_replace(old[0], fd[0]))
            SKIP("the system gives no number twice");
        PollDesc *again = open_(old[0]);
        if (waits) {
            wait_done(1);
            CHECK_EQ(j.code, GMP_ECLOSED - 100);
        }
        CHECK_EQ(netpoll_wait(pd, POLL_READ), GMP_ECLOSED);
        netpoll_evict(pd);
        CHECK(!netpoll_close(pd)); /* the number is not its own any more */
        start(&k, again, POLL_READ);
        wait_waiting(1);
        CHECK_EQ(sock_write(fd[1], "a", 1), 1);
        wait_done(1);
        CHECK_EQ(k.code, 1);
        shut(again);
        sock_close(old[1]);
        sock_close(fd[1]);
    }
    quiet();
}

/* ---- the other end ---- */

TEST_P(poll_other_end_closes)
{
    int fd[2];
    char c;
    Job r;

    EACH_KIND(kind, fd)
    {
        LOG("%s\n", sock_kind_name(kind));
        PollDesc *pd = open_(fd[0]);
        start(&r, pd, POLL_READ);
        wait_waiting(1);
        sock_close(fd[1]);
        wait_done(1);
        CHECK_EQ(r.code, 0);
        CHECK_EQ(get(pd, &c, 1), 0); /* and again */
        shut(pd);
        /* With something left to read. */
        CHECK(sock_pair(kind, fd));
        pd = open_(fd[0]);
        CHECK_EQ(sock_write(fd[1], "ab", 2), 2);
        sock_close(fd[1]);
        CHECK_EQ(get(pd, &c, 1), 1);
        CHECK_EQ(get(pd, &c, 1), 1);
        CHECK_EQ(get(pd, &c, 1), 0);
        shut(pd);
        /* While a goroutine waits for room. */
        CHECK(sock_pair(kind, fd));
        pd = open_(fd[1]);
        start_full(&r, pd, 1);
        sock_close(fd[0]);
        wait_done(1);
        CHECK_EQ(r.code, SOCK_BROKEN);
        shut(pd);
    }
    quiet();
}

TEST_P(poll_half_close)
{
    int fd[2];
    char c;
    Job r;

    for (SockKind kind = SOCK_LOCAL; kind <= SOCK_TCP; kind++) {
        if (!sock_pair(kind, fd))
            continue;
        PollDesc *pd = open_(fd[0]);
        start(&r, pd, POLL_READ);
        wait_waiting(1);
        sock_shutdown_write(fd[1]);
        wait_done(1);
        CHECK_EQ(r.code, 0);
        CHECK(netpoll_seen(pd, POLL_READ)); /* a read is always worth a try from now on */
        start_full(&r, pd, 1); /* the other direction goes on */
        while (atomic_load(&r.code) == -1000) {
            sock_drain(fd[1]);
            gosleep(100 * US);
        }
        wait_done(1);
        CHECK_EQ(r.code, 1);
        sock_drain(fd[1]);
        sock_shutdown_write(fd[0]);
        while (sock_read(fd[1], &c, 1) != 0) /* ours arrives, too */
            gosleep(100 * US);
        shut(pd);
        sock_close(fd[1]);
    }
    quiet();
}

TEST_P(poll_reset)
{
    int fd[2];
    Job r, w;

    for (int i = 0; i < 10; i++) {
        CHECK(sock_pair(SOCK_TCP, fd));
        PollDesc *pd = open_(fd[0]);
        start_full(&w, pd, 1);
        start(&r, pd, POLL_READ);
        if (i % 2 == 0)
            wait_waiting(2);
        sock_reset(fd[1]);
        wait_done(2);
        CHECK(r.code == SOCK_BROKEN || r.code == 0); /* the first of the two gets the error */
        CHECK_EQ(w.code, SOCK_BROKEN);
        shut(pd);
    }
    quiet();
}

TEST_P(poll_connect_and_accept)
{
    int port = 0, listener = sock_listen(&port), fd;
    char c;

    PollDesc *ld = open_(listener);
    for (int i = 0; i < 20; i++) {
        PollDesc *pd = open_(sock_connect(port));
        CHECK_EQ(netpoll_wait(pd, POLL_WRITE), GMP_OK);
        CHECK_EQ(sock_error(pd->fd), 0);
        while ((fd = sock_accept(listener)) == SOCK_AGAIN)
            CHECK_EQ(netpoll_wait(ld, POLL_READ), GMP_OK);
        PollDesc *od = open_(fd);
        CHECK_EQ(put(od, "a", 1), 1);
        CHECK_EQ(get(pd, &c, 1), 1);
        shut(pd);
        CHECK_EQ(get(od, &c, 1), 0);
        shut(od);
    }
    shut(ld);
    PollDesc *pd = open_(sock_connect(port)); /* nobody listens any more */
    CHECK_EQ(netpoll_wait(pd, POLL_WRITE), GMP_OK);
    CHECK(sock_error(pd->fd) == SOCK_BROKEN || put(pd, "a", 1) == SOCK_BROKEN);
    shut(pd);
    quiet();
}

static void
accept_one(void *arg)
{
    Job *j = arg;
    int fd;

    while ((fd = sock_accept(j->pd->fd)) == SOCK_AGAIN)
        CHECK_EQ(netpoll_wait(j->pd, POLL_READ), GMP_OK);
    sock_close(fd);
    done();
}

TEST_P(poll_accept_waits)
{
    int port = 0, listener = sock_listen(&port);
    Job j = {open_(listener), POLL_READ, 0, 0};

    for (int i = 0; i < 20; i++) {
        go(accept_one, &j);
        wait_waiting(1);
        int fd = sock_connect(port);
        wait_done(1);
        sock_close(fd);
    }
    shut(j.pd);
    quiet();
}

/* ---- the poll itself; no goroutine, no scheduler ---- */

static long breaks; /* atomic */
static uint32_t stop;

static void
poll_for_ever(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        CHECK(netpoll(NATIVE, -1, NULL) == NULL);
        atomic_xadd(&breaks, 1);
    }
}

TEST(poll_break_from_another_thread)
{
    int fd[2];

    CHECK_EQ(netpoll_lastpoll(NATIVE), 0);
    CHECK(netpoll(NATIVE, -1, NULL) == NULL); /* before the first descriptor there is nothing to wait in */
    CHECK(sock_pair(SOCK_TCP, fd));
    PollDesc *pd = open_(fd[0]);
    TestThread *t = test_thread(poll_for_ever, NULL);
    for (long i = 0; i < (test_slow() ? 500 : 5000); i++) {
        long seen = atomic_load(&breaks);
        netpoll_break(NATIVE); /* a break that is lost hangs the poll */
        while (atomic_load(&breaks) == seen)
            sys_thread_yield();
        if (i % 100 == 0)
            sys_usleep(200); /* it waits by then */
    }
    CHECK(netpoll_lastpoll(NATIVE) != 0);
    atomic_store(&stop, 1u);
    netpoll_break(NATIVE);
    test_join(t);
    shut(pd);
    sock_close(fd[1]);
}

TEST(poll_break_before_the_poll)
{
    int fd[2];

    CHECK(sock_pair(SOCK_TCP, fd));
    PollDesc *pd = open_(fd[0]);
    for (int i = 0; i < 100; i++) {
        netpoll_break(NATIVE);
        netpoll_break(NATIVE); /* one is enough */
        for (int k = 0; k < i % 4; k++)
            CHECK(netpoll(NATIVE, 0, NULL) == NULL); /* one that does not wait leaves it to the one that does */
        CHECK(netpoll(NATIVE, -1, NULL) == NULL);
    }
    shut(pd);
    sock_close(fd[1]);
}

TEST(poll_timeout)
{
    int fd[2];
    static const int64_t times[] = {0, 1, 300 * US, 2 * MS, 20 * MS};

    CHECK(sock_pair(SOCK_TCP, fd));
    PollDesc *pd = open_(fd[0]);
    netpoll(NATIVE, 0, NULL); /* it is writable */
    for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
        int64_t until = nanotime() + times[i], left = times[i];
        int polls = 0;
        do /* it may end early, but it waits */
            CHECK(netpoll(NATIVE, left, NULL) == NULL && polls++ < 100);
        while ((left = until - nanotime()) > 0);
    }
    shut(pd);
    sock_close(fd[1]);
}

TEST(poll_no_descriptors_left)
{
    int fd[2], before;
    PollDesc *pd = NULL;

    native_start(1);
    CHECK(sock_pair(SOCK_LOCAL, fd) || sock_pair(SOCK_TCP, fd));
    before = sock_open_count();
    if (!sock_exhaust())
        SKIP("the system does not run out of descriptors");
    for (int i = 0; i < 5; i++)
        CHECK_EQ(netpoll_open(NATIVE, fd[0], &pd), EMFILE);
    sock_enough();
    CHECK(pd == NULL);
    CHECK_EQ(sock_open_count(), before);
    pd = open_(fd[0]);
    sock_close(fd[1]);
    CHECK_EQ(netpoll_wait(pd, POLL_READ), GMP_OK);
    shut(pd);
}

/* ---- races ---- */

static uint32_t idled;

static int64_t
not_idle(Sched *sched)
{
    (void)sched;
    atomic_xadd(&idled, 1u);
    return 0;
}

static Hchan baton;

static void
write_when_told(void *arg)
{
    int fd = *(int *)arg;
    uint64_t word;

    while (chanrecv(&baton, &word, -1) == GMP_OK)
        CHECK_EQ(sock_write(fd, "a", 1), 1);
    done();
}

/* A goroutine that the poller has found, and that is not queued yet, is no deadlock. */
TEST_P(poll_is_no_deadlock)
{
    int fd[2];
    char c;

    uint64_t word = 1;

    CHECK(chan_init(&baton, sizeof(word), 0) == GMP_OK && sock_pair(SOCK_TCP, fd));
    PollDesc *pd = open_(fd[0]);
    go(write_when_told, &fd[1]);
    gosleep(MS);
    native_class.idle = not_idle;
    for (long i = 0; i < (test_slow() ? 1000 : 100000); i++) {
        CHECK_EQ(chansend(&baton, &word, -1), GMP_OK);
        CHECK_EQ(get(pd, &c, 1), 1);
    }
    native_class.idle = NULL;
    CHECK_EQ(idled, 0);
    CHECK_EQ(chanclose(&baton), GMP_OK);
    wait_done(1);
    shut(pd);
    sock_close(fd[1]);
}

typedef struct Writer {
    int fd;
    long n;
    long taken; /* atomic */
} Writer;

static void
write_each(void *arg)
{
    Writer *w = arg;

    for (long i = 0; i < w->n; i++) {
        while (atomic_load(&w->taken) < i)
            cpu_relax();
        CHECK_EQ(sock_write(w->fd, "a", 1), 1);
    }
}

static void
interrupt_always(void *arg)
{
    while (!atomic_load(&stop)) {
        goready_interrupt(arg, GMP_EINTR);
        for (uint32_t i = cheaprand() % 300; i > 0; i--)
            cpu_relax();
    }
}

/* The main goroutine's waits are ended by signals as well: neither kind of wake-up may be lost, or come twice. */
TEST_P(poll_interrupts_race_with_edges)
{
    int fd[2];
    long interrupted = 0;
    char c;

    CHECK(sock_pair(SOCK_TCP, fd));
    Writer w = {fd[1], test_slow() ? 200 : 20000, 0};
    PollDesc *pd = open_(fd[0]);
    getg()->interruptible = true;
    TestThread *writer = test_thread(write_each, &w), *interrupter = test_thread(interrupt_always, getg());
    while (w.taken < w.n) {
        int n = get(pd, &c, 1);
        if (n == 1)
            atomic_store(&w.taken, w.taken + 1);
        else {
            CHECK_EQ(n, GMP_EINTR - 100);
            interrupted++;
        }
    }
    while (interrupted == 0) /* there is nothing to read any more */
        interrupted += netpoll_wait(pd, POLL_READ) == GMP_EINTR;
    atomic_store(&stop, 1u);
    test_join(writer);
    test_join(interrupter);
    getg()->interruptible = false;
    LOG("%ld interrupts\n", interrupted);
    CHECK_EQ(netpoll_waiters(NATIVE), 0);
    shut(pd);
    sock_close(fd[1]);
}

static void
deadlines_always(void *arg)
{
    PollDesc *pd = arg;
    Rng r = rng_new(test_seed(), 77);

    while (!atomic_load(&stop)) {
        PollMode mode = (PollMode)rng(&r, 2);
        int64_t when = rng(&r, 4) == 0 ? 0 : nanotime() + (int64_t)rng(&r, 200) * US - 50 * US;
        CHECK_EQ(netpoll_set_deadline(pd, mode, when), GMP_OK);
        gosleep(rng(&r, 50) * US);
    }
    done();
}

static void
write_and_rest(void *arg)
{
    Writer *w = arg;
    Rng r = rng_new(test_seed(), 78);

    for (long i = 0; i < w->n; i++) {
        CHECK_EQ(sock_write(w->fd, "a", 1), 1);
        if (rng(&r, 3) == 0)
            gosleep(rng(&r, 100) * US);
    }
    done();
}

/* Timers that fire, or are moved, while edges come. */
TEST_P(poll_deadlines_race_with_edges)
{
    int fd[2];
    char c;
    long late = 0;

    CHECK(sock_pair(SOCK_TCP, fd));
    Writer w = {fd[1], test_slow() ? 500 : 5000, 0};
    PollDesc *pd = open_(fd[0]);
    go(deadlines_always, pd);
    go(write_and_rest, &w);
    for (long got = 0; got < w.n;) {
        int n = get(pd, &c, 1);
        if (n == 1) {
            got++;
        }
        else {
            CHECK_EQ(n, GMP_ETIMEDOUT - 100);
            late++;
            gosched();
        }
    }
    while (late == 0)
        late += netpoll_wait(pd, POLL_READ) == GMP_ETIMEDOUT;
    atomic_store(&stop, 1u);
    wait_done(2);
    LOG("%ld timeouts\n", late);
    CHECK_EQ(netpoll_waiters(NATIVE), 0);
    shut(pd);
    sock_close(fd[1]);
    quiet();
}

/* ---- all of it together ---- */

enum { PLACES = 40 };

typedef struct Place {
    Rng r;
    PollDesc *pd[2];
    int fd[2];
    long ops;
    uint32_t evicted; /* atomic */
    uint8_t id;
} Place;

static void
place_end(Place *p, int side)
{
    uint8_t byte = p->id;
    Rng r = rng_new(p->r, (uint64_t)side);

    for (;;) {
        int n;
        if (rng(&r, 2) == 0)
            n = put(p->pd[side], &byte, 1);
        else {
            uint8_t in = 0;
            n = get(p->pd[side], &in, 1);
            if (n == 1)
                CHECK_EQ(in, p->id); /* never another connection's */
        }
        if (n == GMP_ETIMEDOUT - 100) {
            PollMode mode = (PollMode)rng(&r, 2);
            int code = netpoll_set_deadline(p->pd[side], mode, nanotime() + rng(&r, 3000) * US);
            CHECK(code == GMP_OK || code == GMP_ECLOSED);
            code = netpoll_set_deadline(p->pd[side], (PollMode)(1 - mode), nanotime() + rng(&r, 3000) * US);
            CHECK(code == GMP_OK || code == GMP_ECLOSED);
        }
        else if (n != 1) {
            CHECK(n == GMP_ECLOSED - 100 || n == 0 || n == SOCK_BROKEN);
            break;
        }
        if (rng(&r, 200) == 0) /* the other end gets to know */
            netpoll_evict(p->pd[side]);
        if (rng(&r, 20) == 0)
            blocking(true), sys_usleep(rng(&r, 300)), blocking(false);
    }
    shut(p->pd[side]);
}

static void
place_other_end(void *arg)
{
    Place *p = arg;

    place_end(p, 1);
    atomic_store(&p->evicted, 1u);
}

static void
place(void *arg)
{
    Place *p = arg;

    for (long i = 0; i < p->ops; i++) {
        CHECK(sock_pair(rng(&p->r, 2) ? SOCK_TCP : SOCK_LOCAL, p->fd) || sock_pair(SOCK_TCP, p->fd));
        for (int side = 0; side < 2; side++) {
            p->pd[side] = open_(p->fd[side]);
            for (int m = 0; m < 2; m++)
                CHECK_EQ(netpoll_set_deadline(p->pd[side], (PollMode)m, nanotime() + rng(&p->r, 3000) * US), GMP_OK);
        }
        p->id = (uint8_t)rng(&p->r, 256);
        atomic_store(&p->evicted, 0u);
        go(place_other_end, p);
        place_end(p, 0);
        while (!atomic_load(&p->evicted))
            gosleep(50 * US);
    }
    done();
}

TEST_P_LIMIT(poll_stress, 120)
{
    static Place p[PLACES];

    for (int i = 0; i < PLACES; i++) {
        p[i].r = rng_new(test_seed(), (uint64_t)i);
        p[i].ops = test_slow() ? 3 : 25;
        go(place, &p[i]);
    }
    wait_done(PLACES);
    CHECK_EQ(netpoll_waiters(NATIVE), 0);
    quiet();
}
