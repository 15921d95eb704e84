/* test_faults.c: every request for memory, maps and threads refused in turn: a scenario is run with the first one refused, then with
 * the second, and so on until one runs through without a refusal.  Each run is a process of its own.  In each, calls return
 * GMP_OK, GMP_ENOMEM or GMP_EAGAIN, what was started ends, and at the end nothing is left over.
 *
 * In a build with -DGMP_FAULTS only: make -C csrc test FAULTS=1 T=faults
 */
#include "test.h"

#include "chan.h"
#include "gmp.h"
#include "runtime.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS INT64_C(1000000)
#define SEC INT64_C(1000000000)

#ifdef GMP_FAULTS

/* 0: went through; 1: memory was refused.  Anything else is a bug. */
static int
refused(int64_t code)
{
    if (code != GMP_ENOMEM && code != GMP_EAGAIN && code < 0)
        test_fail(__FILE__, __LINE__, "unexpected code %lld: %s", (long long)code, gmp_strerror((int)code));
    return code < 0;
}

static long started, ended; /* atomic */

static void
ends(void *arg)
{
    (void)arg;
    atomic_xadd(&ended, 1);
}

static void
go(gmp_func fn, void *arg, int stack)
{
    if (!refused(gmp_go(fn, arg, stack)))
        atomic_xadd(&started, 1);
}

static void
spawns(void *arg)
{
    int stack = (int)(intptr_t)arg;

    for (int i = 0; i < 40; i++)
        go(ends, NULL, stack); /* more than LONG_QUEUE: some get no G at first */
    ends(NULL);
}

static void
spawn(void)
{
    for (int stack = 1; stack <= 3; stack++)
        go(spawns, (void *)(intptr_t)stack, stack);
}

static void
passes(void *arg)
{
    gmp_chan *ch = arg;
    int64_t x = 1;

    for (int i = 0; i < 3; i++)
        while (refused(gmp_chan_send(ch, &x, sizeof x, -1)))
            ;
    ends(NULL);
}

static void
channels(void)
{
    gmp_chan *ch[6] = {NULL};
    gmp_case cases[6];
    int64_t got[6];
    int left = 0;

    for (int i = 0; i < 6; i++) {
        if (refused(gmp_chan_new(&ch[i], sizeof(int64_t), (size_t)i % 3)))
            continue;
        long before = started;
        go(passes, ch[i], 1 + i % 3);
        left += started != before ? 3 : 0;
    }
    for (int i = 0; i < 6; i++)
        cases[i] = (gmp_case){ch[i], &got[i], sizeof got[i], 0, 0};
    while (left > 0) {
        int k = gmp_select(cases, 6, -1);
        if (!refused(k))
            left--;
    }
    for (int i = 0; i < 6; i++) {
        if (ch[i] != NULL)
            while (gmp_chan_free(ch[i]) == GMP_ESTATE)
                refused(gmp_yield());
    }
}

static void
sleeps(void *arg)
{
    (void)arg;
    refused(gmp_sleep(MS));
    ends(NULL);
}

static void
timers(void)
{
    gmp_chan *ch;
    gmp_timer *t;
    int64_t at;

    for (int i = 0; i < 70; i++) /* the heaps grow */
        go(sleeps, NULL, GMP_STACK_2K);
    if (refused(gmp_chan_new(&ch, sizeof at, 1)))
        return;
    if (!refused(gmp_timer_new(&t, ch))) {
        if (!refused(gmp_timer_start(t, MS, 0)))
            while (refused(gmp_chan_recv(ch, &at, sizeof at, -1)))
                ;
        gmp_timer_free(t);
    }
    CHECK_EQ(gmp_chan_free(ch), GMP_OK);
}

typedef struct Guarded {
    gmp_mutex *m;
    gmp_cond *c;
    int ready;
} Guarded;

static void
readies(void *arg)
{
    Guarded *g = arg;

    while (refused(gmp_mutex_lock(g->m, -1)))
        ;
    g->ready = 1;
    CHECK_EQ(gmp_cond_signal(g->c), GMP_OK);
    CHECK_EQ(gmp_mutex_unlock(g->m), GMP_OK);
    ends(NULL);
}

static void
locks(void)
{
    Guarded g = {0};
    gmp_waitgroup *wg = NULL;

    if (!refused(gmp_mutex_new(&g.m)) && !refused(gmp_cond_new(&g.c)) && !refused(gmp_waitgroup_new(&wg))) {
        if (!refused(gmp_waitgroup_go(wg, readies, &g, GMP_STACK_2K))) {
            atomic_xadd(&started, 1);
            while (refused(gmp_mutex_lock(g.m, -1)))
                ;
            while (!g.ready)
                refused(gmp_cond_wait(g.c, g.m, -1));
            CHECK_EQ(gmp_mutex_unlock(g.m), GMP_OK);
            while (refused(gmp_waitgroup_wait(wg, -1)))
                ;
        }
        CHECK_EQ(gmp_waitgroup_wait(wg, 0), GMP_OK);
    }
    if (g.m != NULL)
        CHECK_EQ(gmp_mutex_free(g.m), GMP_OK);
    if (g.c != NULL)
        CHECK_EQ(gmp_cond_free(g.c), GMP_OK);
    if (wg != NULL)
        CHECK_EQ(gmp_waitgroup_free(wg), GMP_OK);
}

static void
echoes(void *arg)
{
    gmp_fd *f = arg;
    char c;
    int64_t n;

    while ((n = gmp_fd_read(f, &c, 1, -1)) != 0)
        if (!refused(n))
            while (refused(gmp_fd_write(f, &c, 1, -1)))
                ;
    CHECK_EQ(gmp_fd_close(f), GMP_OK);
    ends(NULL);
}

static void
descriptors(void)
{
    gmp_fd *mine = NULL, *theirs = NULL;
    int fds[2];
    char c = 'x';

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    int a = refused(gmp_fd_open(&mine, fds[0])), b = refused(gmp_fd_open(&theirs, fds[1]));
    long before = started;
    if (!a && !b)
        go(echoes, theirs, GMP_STACK_64K);
    if (started != before) {
        for (int i = 0; i < 3; i++) {
            while (refused(gmp_fd_write(mine, &c, 1, -1)))
                ;
            while (refused(gmp_fd_read(mine, &c, 1, -1)))
                ;
        }
    }
    else if (!b) {
        CHECK_EQ(gmp_fd_close(theirs), GMP_OK);
    }
    if (!a)
        CHECK_EQ(gmp_fd_close(mine), GMP_OK);
    if (a)
        close(fds[0]);
    if (b)
        close(fds[1]);
}

static void
threads(void)
{
    TestThread *t[3];

    for (int i = 0; i < 3; i++)
        t[i] = test_thread(sleeps, NULL);
    for (int i = 0; i < 3; i++, started++)
        test_join(t[i]);
}

/* Every wait with a deadline: the heaps grow on the way, and what was published before the refusal is taken back. */
typedef struct Timed {
    gmp_mutex *m;
    gmp_cond *c;
    gmp_waitgroup *wg;
    gmp_chan *ch;
    gmp_fd *fd[2];
    uint32_t left; /* atomic: goroutines under way */
} Timed;

static void
waits_timed(void *arg)
{
    Timed *t = arg;
    int64_t x = 0;
    char c;
    gmp_case cases[2] = {{t->ch, &x, sizeof x, 0, 0}, {NULL, NULL, 0, 0, 0}};
    int codes[] = {
        gmp_chan_recv(t->ch, &x, sizeof x, MS),
        gmp_chan_send(t->ch, &x, sizeof x, MS),
        gmp_select(cases, 2, MS),
        gmp_mutex_lock(t->m, MS), /* the main thread has it most of the time */
        gmp_waitgroup_wait(t->wg, MS),
        gmp_park(MS),
        gmp_fd_wait_read(t->fd[0], MS),
        (int)gmp_fd_read(t->fd[0], &c, 1, MS),
    };

    if (codes[3] == GMP_OK)
        CHECK_EQ(gmp_mutex_unlock(t->m), GMP_OK);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i] != GMP_ETIMEDOUT && codes[i] != GMP_ESTATE) /* the latter: another one reads */
            refused(codes[i]);                                   /* or one that sends has met one that receives */
    atomic_xadd(&t->left, (uint32_t)-1);
    ends(NULL);
}

static void
timed(void)
{
    Timed t = {0};
    int fds[2];

    CHECK_EQ(pipe(fds), 0);
    if (refused(gmp_fd_open(&t.fd[0], fds[0])))
        close(fds[0]);
    if (t.fd[0] != NULL && !refused(gmp_mutex_new(&t.m)) && !refused(gmp_cond_new(&t.c)) &&
        !refused(gmp_waitgroup_new(&t.wg)) && !refused(gmp_chan_new(&t.ch, sizeof(int64_t), 0))) {
        CHECK_EQ(gmp_mutex_lock(t.m, 0), GMP_OK);
        CHECK_EQ(gmp_waitgroup_add(t.wg, 1), GMP_OK);
        for (int i = 0; i < 10; i++) {
            long before = started;
            go(waits_timed, &t, 1 + i % 3);
            if (started != before)
                atomic_xadd(&t.left, 1u);
        }
        int code = GMP_OK;
        while (atomic_load(&t.left) != 0) {
            code = gmp_cond_wait(t.c, t.m, MS); /* lets go of t.m for a moment */
            if (code != GMP_ETIMEDOUT)
                CHECK(refused(code));
        }
        CHECK_EQ(gmp_waitgroup_done(t.wg), GMP_OK);
        CHECK_EQ(gmp_mutex_unlock(t.m), GMP_OK);
    }
    if (t.m != NULL)
        CHECK_EQ(gmp_mutex_free(t.m), GMP_OK);
    if (t.c != NULL)
        CHECK_EQ(gmp_cond_free(t.c), GMP_OK); /* nobody waits there any more */
    if (t.wg != NULL)
        CHECK_EQ(gmp_waitgroup_free(t.wg), GMP_OK);
    if (t.ch != NULL)
        CHECK_EQ(gmp_chan_free(t.ch), GMP_OK);
    if (t.fd[0] != NULL)
        CHECK_EQ(gmp_fd_close(t.fd[0]), GMP_OK);
    close(fds[1]);
}

/* Blocking sections and threads of one goroutine: both need threads. */
static void
blocks(void *arg)
{
    CHECK_EQ(gmp_block_enter(), GMP_OK);
    sys_usleep(1000);
    CHECK_EQ(gmp_block_exit(), GMP_OK);
    if (!refused(gmp_lock_os_thread())) {
        refused(gmp_sleep(MS));
        refused(gmp_yield());
        CHECK_EQ(gmp_unlock_os_thread(), GMP_OK);
    }
    ends(arg);
}

static void
blocked(void)
{
    for (int i = 0; i < 6; i++)
        go(blocks, NULL, 1 + i % 3);
    refused(gmp_lock_os_thread());
    (void)gmp_unlock_os_thread();
}

static void
serves(void *arg)
{
    gmp_fd *listening = arg, *conn;
    char c;

    while (refused(gmp_fd_accept(listening, &conn, 20 * SEC)))
        ; /* the connection was taken and closed when only the descriptor's memory was refused: the client tries again */
    while (refused(gmp_fd_read(conn, &c, 1, 20 * SEC)))
        ;
    CHECK_EQ(gmp_fd_close(conn), GMP_OK);
    CHECK_EQ(gmp_fd_close(listening), GMP_OK);
    ends(NULL);
}

static void
accepting(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    gmp_fd *listening;
    char c;

    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0 && listen(fd, 10) == 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    if (refused(gmp_fd_open(&listening, fd))) {
        close(fd);
        return;
    }
    long before = started;
    go(serves, listening, GMP_STACK_64K);
    if (started == before) {
        CHECK_EQ(gmp_fd_close(listening), GMP_OK);
        return;
    }
    for (;;) { /* until the server has closed its end after it has read, which it answers by the end of the stream */
        int client = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(client >= 0);
        if (connect(client, (struct sockaddr *)&at, sizeof at) != 0) {
            close(client);
            break;
        }
        (void)send(client, "x", 1, MSG_NOSIGNAL);
        (void)recv(client, &c, 1, 0);
        close(client);
    }
}

static void
resizing(void)
{
    for (int i = 0; i < 20; i++)
        go(sleeps, NULL, GMP_STACK_2K);
    for (int n = 6; n > 0; n--)
        refused(gmp_gomaxprocs(n));
    refused(gmp_gomaxprocs(4));
}

/* ---- the harness ---- */

/* A count of a P's owner, who may be about to change it: the census looks until it fits. */
GMP_NOINLINE __attribute__((no_sanitize("thread"))) static uint32_t
peek(const uint32_t *n)
{
    return *(const volatile uint32_t *)n;
}

/* All that was started has ended; every G, stack and M is either in use by nobody or in a free list. */
static void
census(void)
{
    Sched *s = &scheds[SET_NATIVE];
    int64_t deadline = nanotime() + 10 * SEC;
    size_t dead = 0, in_use = 0;
    uint32_t ever = 0;

    while (refused(gmp_shutdown(10 * SEC)))
        ;
    CHECK_EQ(atomic_load(&ended), atomic_load(&started));
    CHECK_EQ(num_goroutine(s), 0);
    for (;;) { /* the last ones are still on their way into the lists */
        dead = 0;
        ever = 0;
        mutex_lock(&s->lock);
        for (int c = 0; c < SET_CLASSES; c++) {
            dead += s->gfree[c].n;
            ever += s->gfree[c].ever;
            for (uint32_t i = 0; i < s->nallp; i++)
                dead += peek(&s->allp[i]->gfree[c].n);
        }
        mutex_unlock(&s->lock);
        if (dead == ever)
            break;
        if (nanotime() > deadline)
            test_fail(__FILE__, __LINE__, "%zu dead goroutines of %u", dead, ever);
        sys_usleep(1000);
    }
    CHECK_EQ(s->runq.n, 0);
    in_use = 0;
    for (int c = 0; c < STACK_CLASSES; c++) {
        StackStats st;
        stack_stats((StackClass)c, &st);
        in_use += st.in_use;
    }
    for (M *mp = atomic_load(&allm); mp != NULL; mp = mp->alllink)
        in_use -= mp->g0stack != NULL;
    CHECK_EQ(in_use, ever);
}

typedef struct Scenario {
    void (*fn)(void);
    int64_t nth;
} Scenario;

static void
scenario_run(void *arg)
{
    Scenario *s = arg;

    atomic_store(&sys_faults, s->nth);
    if (!refused(gmp_init(2)))
        s->fn();
    bool through = atomic_load(&sys_faults) >= 0;
    atomic_store(&sys_faults, (int64_t)-1);
    census();
    if (through)
        fprintf(stderr, "no fault left\n");
}

static void
each(void (*fn)(void))
{
    static char err[16384];

    for (int64_t n = 0; n < 2000; n++) {
        Scenario s = {fn, n};
        int status = test_child(scenario_run, &s, err, sizeof err);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            test_fail(__FILE__, __LINE__, "request number %lld refused: wait status 0x%x\n%s", (long long)n, (unsigned)status, err);
        if (strstr(err, "no fault left") != NULL) {
            CHECK(n > 0);
            LOG("%lld requests\n", (long long)n);
            return;
        }
    }
    CHECK(!"the requests do not end");
}

#define FAULTS(name_)                                                                                                  \
    TEST_LIMIT(faults_##name_, 240)                                                                                    \
    {                                                                                                                  \
        each(name_);                                                                                                   \
    }
FAULTS(spawn)
FAULTS(channels)
FAULTS(timers)
FAULTS(locks)
FAULTS(descriptors)
FAULTS(timed)
FAULTS(blocked)
FAULTS(accepting)
FAULTS(threads)
FAULTS(resizing)

#endif
