/* test_sys.c: clock, random numbers, locks, pages and guards, threads, gmp_throw. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS INT64_C(1000000)

TEST(nanotime_is_monotonic_and_in_ns)
{
    int64_t start = nanotime(), last = start;

    for (int i = 0; i < 1000; i++) {
        int64_t now = nanotime();
        CHECK(now >= last);
        last = now;
    }
    sys_usleep(20000);
    CHECK(nanotime() - start >= 20 * MS);
    CHECK(nanotime() - start < 10000 * MS);
}

TEST(cheaprand_spreads)
{
    int ones = 0, same = 0;
    uint32_t last = cheaprand();

    for (int i = 0; i < 10000; i++) {
        uint32_t x = cheaprand();
        ones += __builtin_popcount(x);
        same += x == last;
        last = x;
    }
    CHECK(ones > 150000 && ones < 170000); /* 160,000 +- 283 */
    CHECK(same <= 1);
}

static void
print_randoms(void *arg)
{
    setenv("GMP_SEED", arg, 1);
    LOG("%08x %08x %08x", cheaprand(), cheaprand(), cheaprand());
}

TEST(cheaprand_seed_fixes_the_sequence)
{
    char a[64], b[64], c[64];

    test_child(print_randoms, "42", a, sizeof(a));
    test_child(print_randoms, "42", b, sizeof(b));
    test_child(print_randoms, "43", c, sizeof(c));
    CHECK(strlen(a) == 26 && strcmp(a, b) == 0);
    CHECK(strcmp(a, c) != 0);
}

static uint32_t thread_random[2];

static void
take_random(void *arg)
{
    *(uint32_t *)arg = cheaprand();
}

TEST(cheaprand_differs_between_threads)
{
    setenv("GMP_SEED", "7", 1);
    for (int i = 0; i < 2; i++)
        test_join(test_thread(take_random, &thread_random[i]));
    CHECK(thread_random[0] != thread_random[1]);
}

/* ---- Mutex ---- */

static Mutex mu;
static long counter, rounds;

static void
count_up(void *arg)
{
    (void)arg;
    for (long i = 0; i < rounds; i++) {
        mutex_lock(&mu);
        counter++; /* not atomic: that is the test, and ThreadSanitizer's too */
        if (i % 1024 == 0)
            sys_thread_yield(); /* lets the others run into a held lock */
        mutex_unlock(&mu);
    }
}

TEST(mutex_contended_counter)
{
    TestThread *t[4];

    rounds = test_slow() ? 20000 : 200000;
    for (int i = 0; i < 4; i++)
        t[i] = test_thread(count_up, NULL);
    for (int i = 0; i < 4; i++)
        test_join(t[i]);
    CHECK_EQ(counter, 4 * rounds);
    CHECK_EQ(mu.key, 0);
}

static void
sleep_inside(void *arg)
{
    for (int i = 0; i < 20; i++) {
        mutex_lock(&mu);
        counter++;
        sys_usleep(500); /* long enough that the others really sleep in the kernel */
        mutex_unlock(&mu);
    }
    (void)arg;
}

TEST(mutex_with_sleepers_loses_no_wakeup)
{
    TestThread *t[4];

    for (int i = 0; i < 4; i++)
        t[i] = test_thread(sleep_inside, NULL);
    for (int i = 0; i < 4; i++)
        test_join(t[i]);
    CHECK_EQ(counter, 80);
    CHECK_EQ(mu.key, 0);
}

TEST(mutex_trylock)
{
    CHECK(mutex_trylock(&mu));
    CHECK(!mutex_trylock(&mu));
    mutex_unlock(&mu);
    CHECK(mutex_trylock(&mu));
}

static void
unlock_twice(void *arg)
{
    (void)arg;
    mutex_lock(&mu);
    mutex_unlock(&mu);
    mutex_unlock(&mu);
}

TEST(mutex_unlock_of_unlocked_throws)
{
    CHECK_DIES(SIGABRT, unlock_twice, NULL);
    CHECK_PRINTS(unlock_twice, NULL, "fatal error: gmp: unlock of an unlocked mutex\n");
}

/* ---- Note ---- */

static Note ping, pong;

static void
answer(void *arg)
{
    (void)arg;
    for (long i = 0; i < rounds; i++) {
        CHECK(note_sleep(&ping, -1));
        note_clear(&ping);
        note_wakeup(&pong);
    }
}

TEST(note_ping_pong)
{
    TestThread *t;

    rounds = test_slow() ? 2000 : 10000;
    t = test_thread(answer, NULL);
    for (long i = 0; i < rounds; i++) {
        note_wakeup(&ping);
        CHECK(note_sleep(&pong, 20000 * MS));
        note_clear(&pong);
    }
    test_join(t);
    note_free(&ping);
    note_free(&pong);
}

TEST(note_timeout)
{
    int64_t start = nanotime();

    CHECK(!note_sleep(&ping, 0));
    CHECK(!note_sleep(&ping, -1 + 1));
    CHECK(!note_sleep(&ping, 30 * MS));
    CHECK(nanotime() - start >= 30 * MS);
    CHECK(nanotime() - start < 5000 * MS);
    CHECK(!note_sleep(&ping, 1));
    CHECK_EQ(ping.key, 0);
    note_wakeup(&ping); /* a timed-out note is as good as new */
    CHECK(note_sleep(&ping, 0));
    CHECK(note_sleep(&ping, INT64_MAX));
    CHECK(note_sleep(&ping, -1));
}

static void
wake_soon(void *arg)
{
    sys_usleep(20000);
    note_wakeup(arg);
}

TEST(note_endless_and_longest_timeout)
{
    TestThread *t = test_thread(wake_soon, &ping);

    CHECK(note_sleep(&ping, -1));
    test_join(t);
    note_clear(&ping);
    t = test_thread(wake_soon, &ping);
    CHECK(note_sleep(&ping, INT64_MAX));
    test_join(t);
}

/* Sleeper and waker race at the deadline: whoever wins, both agree. */
TEST(note_wakeup_races_timeout)
{
    int woken = 0, n = test_slow() ? 200 : 1000;

    for (int i = 0; i < n; i++) {
        TestThread *t = NULL;
        bool ok;
        note_clear(&ping);
        t = test_thread((void (*)(void *))note_wakeup, &ping);
        ok = note_sleep(&ping, 1 + cheaprand() % 100000);
        test_join(t);
        woken += ok;
        CHECK_EQ(ping.key, 1);
    }
    LOG("%d of %d in time\n", woken, n);
}

static void
ignore_signal(int sig)
{
    (void)sig;
}

static pthread_t sleeping_thread;

static void
bother(void *arg)
{
    (void)arg;
    for (int i = 0; i < 30; i++) {
        sys_usleep(1000);
        pthread_kill(sleeping_thread, SIGUSR1);
    }
}

TEST(note_sleep_survives_signals)
{
    struct sigaction sa;
    int64_t start = nanotime();
    TestThread *t;

    memset(&sa, 0, sizeof(sa));
    sa.sa_handler = ignore_signal; /* no SA_RESTART */
    sigaction(SIGUSR1, &sa, NULL);
    sleeping_thread = pthread_self();
    t = test_thread(bother, NULL);
    CHECK(!note_sleep(&ping, 60 * MS));
    CHECK(nanotime() - start >= 60 * MS);
    sys_usleep(1000);
    test_join(t);
}

static Note watched;
static uint32_t word, looks;

static void
look(void *arg)
{
    (void)arg;
    if (++looks == 1)
        word = 1; /* as if a signal handler ran between this look and the sleep */
    else
        note_wakeup(&watched);
}

TEST(note_sleep_sees_what_a_handler_wrote_after_the_last_look)
{
#if defined(SYS_futex_waitv)
    if (syscall(SYS_futex_waitv, NULL, 0, 0, NULL, 0) == -1 && errno == ENOSYS)
        SKIP("this kernel has no futex_waitv");
    CHECK(note_sleep_intr(&watched, 20000 * MS, &word, look, NULL));
    CHECK_EQ(looks, 2);
#else
    SKIP("no futex_waitv here");
#endif
}

static volatile sig_atomic_t signals;

static void
count_signal(int sig)
{
    (void)sig;
    signals++;
}

TEST(held_signals_come_in_the_sleep)
{
#if defined(__linux__)
    struct sigaction sa = {.sa_handler = count_signal};
    struct timespec ts = {20, 0};
    sigaction(SIGUSR1, &sa, NULL);
    int before = signals;
    CHECK(sys_signals_mask() == NULL);
    sys_signals_hold();
    raise(SIGUSR1);
    CHECK_EQ(signals, before);
    CHECK(ppoll(NULL, 0, &ts, sys_signals_mask()) == -1 && errno == EINTR);
    CHECK_EQ(signals, before + 1);
    raise(SIGUSR1);
    CHECK_EQ(signals, before + 1);
    sys_signals_release();
    CHECK_EQ(signals, before + 2);
    CHECK(sys_signals_mask() == NULL);
#else
    SKIP("signals are held on Linux only");
#endif
}

static void
wake_twice(void *arg)
{
    (void)arg;
    note_wakeup(&ping);
    note_wakeup(&ping);
}

TEST(note_woken_twice_throws)
{
    CHECK_DIES(SIGABRT, wake_twice, NULL);
}

static void
sleep_for_ever(void *arg)
{
    note_sleep(arg, -1);
}

static void
forked(void *arg)
{
    (void)arg;
    lock_after_fork();
    mutex_lock(&mu);
    mutex_unlock(&mu);
    CHECK(!note_sleep(&pong, 5 * MS));
    note_wakeup(&ping); /* its sleeper did not survive the fork */
}

TEST(locks_after_fork)
{
#ifdef GMP_TSAN
    SKIP("ThreadSanitizer and fork with threads");
#endif
    test_thread(sleep_for_ever, &ping);
    while (atomic_load(&ping.key) != 2)
        sys_usleep(100);
    sys_usleep(5000);
    CHECK_EQ(test_child(forked, NULL, NULL, 0), 0);
}

/* ---- pages and guards ---- */

TEST(reserve_discard_release)
{
    size_t bytes = (size_t)1 << 30, page = sys_page_size(), before = test_rss();
    char *p = sys_reserve(bytes);

    CHECK(p != NULL);
    CHECK((page & (page - 1)) == 0 && page >= 4096);
    for (size_t i = 0; i < 1024; i++) {
        CHECK_EQ(p[i * page], 0);
        p[i * page] = 1;
    }
    if (before != 0 && !test_slow()) /* no huge pages */
        CHECK(test_rss() - before < 1024 * page + (1 << 20));
    sys_discard(p, 512 * page);
    CHECK_EQ(p[0], 0);
    CHECK_EQ(p[511 * page], 0);
    CHECK_EQ(p[512 * page], 1);
    sys_release(p, bytes);
    CHECK(sys_reserve((size_t)1 << 60) == NULL);
}

static void
touch(void *p)
{
    *(volatile char *)p = 1;
}

static void
read_it(void *p)
{
    (void)*(volatile char *)p;
}

TEST(guard_page_faults)
{
    size_t page = sys_page_size();
    char *p = sys_reserve(3 * page);

    CHECK(p != NULL);
    LOG("kind %d\n", (int)sys_guard_kind());
    if (sys_guard_page(p + page) == GUARD_NONE)
        SKIP("no guards here");
    CHECK_DIES(SIGSEGV, touch, p + page);
    CHECK_DIES(SIGSEGV, read_it, p + 2 * page - 1);
    CHECK_EQ(test_child(touch, p + page - 1, NULL, 0), 0);
    CHECK_EQ(test_child(touch, p + 2 * page, NULL, 0), 0);
    p[0] = p[2 * page] = 1;
    sys_discard(p + 2 * page, page); /* its neighbours are ordinary pages */
    CHECK_DIES(SIGSEGV, touch, p + page);
}

static void
forced_guard(void *arg)
{
    size_t page = sys_page_size();
    char *p = sys_reserve(page);
    GuardKind kind;

    setenv("GMP_GUARD", arg, 1);
    kind = sys_guard_page(p);
    if (strcmp(arg, "none") == 0) {
        CHECK_EQ(sys_guard_kind(), GUARD_NONE);
        CHECK_EQ(kind, GUARD_NONE);
    }
    else if (strcmp(arg, "mprotect") == 0) {
        CHECK_EQ(sys_guard_kind(), GUARD_MPROTECT);
        CHECK_EQ(kind, GUARD_MPROTECT);
    }
    else /* madvise is used only where it works */
        CHECK(kind == sys_guard_kind() && kind != GUARD_NONE);
    if (kind == GUARD_NONE)
        touch(p);
    else
        CHECK_DIES(SIGSEGV, touch, p);
}

TEST(guard_kind_can_be_forced)
{
    CHECK_EQ(test_child(forced_guard, "none", NULL, 0), 0);
    CHECK_EQ(test_child(forced_guard, "mprotect", NULL, 0), 0);
    CHECK_EQ(test_child(forced_guard, "madvise", NULL, 0), 0);
}

/* ---- threads ---- */

static struct {
    Note done;
    sigset_t blocked;
    uint64_t id;
    char name[16];
    int threads, cleaned;
} seen;

static void
look_around(void *arg)
{
    pthread_sigmask(SIG_BLOCK, NULL, &seen.blocked);
    seen.id = sys_thread_id();
#if defined(__linux__)
    pthread_getname_np(pthread_self(), seen.name, sizeof(seen.name));
#endif
    seen.threads = sys_thread_count();
    note_wakeup(arg);
}

TEST(thread_start)
{
    sigset_t mine;

    CHECK_EQ(sys_thread_start(look_around, &seen.done, "gmp-a-very-long-name", false), 0);
    CHECK(note_sleep(&seen.done, 20000 * MS));
    CHECK(sigismember(&seen.blocked, SIGINT) && sigismember(&seen.blocked, SIGTERM));
    CHECK(!sigismember(&seen.blocked, SIGSEGV) && !sigismember(&seen.blocked, SIGFPE));
    pthread_sigmask(SIG_BLOCK, NULL, &mine);
    CHECK(!sigismember(&mine, SIGINT));
    CHECK(seen.id != 0 && seen.id != sys_thread_id());
#if defined(__linux__)
    CHECK(strcmp(seen.name, "gmp-a-very-long") == 0);
    CHECK(seen.threads >= 2);
    CHECK_EQ(sys_thread_id(), getpid());
#endif
}

static void
note_exit(void *arg)
{
    CHECK(arg == &seen);
    seen.cleaned++;
    note_wakeup(&seen.done);
}

static void
never(void *arg)
{
    (void)arg;
    CHECK(!"called though replaced");
}

static void
register_exit(void *arg)
{
    (void)arg;
    sys_at_thread_exit(never, NULL);
    sys_at_thread_exit(note_exit, &seen);
}

static void
unregister_exit(void *arg)
{
    (void)arg;
    sys_at_thread_exit(never, NULL);
    sys_at_thread_exit(NULL, NULL);
}

TEST(at_thread_exit)
{
    test_join(test_thread(register_exit, NULL));
    CHECK_EQ(seen.cleaned, 1);
    test_join(test_thread(unregister_exit, NULL));
    note_clear(&seen.done);
    CHECK_EQ(sys_thread_start(register_exit, NULL, "gmp-exit", false), 0);
    CHECK(note_sleep(&seen.done, 20000 * MS));
    CHECK_EQ(seen.cleaned, 2);
}

static volatile uintptr_t handler_frame;

static void
on_segv(int sig)
{
    char here;

    (void)sig;
    handler_frame = (uintptr_t)&here;
}

static void
use_sigstack(void *arg)
{
    struct sigaction sa;
    stack_t now;
    char *s;

    (void)arg;
    memset(&now, 0, sizeof(now));
    now.ss_flags = SS_DISABLE;
    sigaltstack(&now, NULL); /* the sanitizers give each thread one */
    s = sys_sigstack_install();
    CHECK(s != NULL);
    CHECK(sys_sigstack_install() == NULL);
    memset(&sa, 0, sizeof(sa));
    sa.sa_handler = on_segv;
    sa.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR1, &sa, NULL);
    pthread_kill(pthread_self(), SIGUSR1);
    sigaltstack(NULL, &now);
#if !defined(GMP_TSAN) && !defined(GMP_ASAN) /* handlers may be delayed, locals may lie elsewhere */
    CHECK(handler_frame > (uintptr_t)s && handler_frame < (uintptr_t)s + now.ss_size);
#endif
    sys_sigstack_free(s);
    sigaltstack(NULL, &now);
    CHECK(now.ss_flags & SS_DISABLE);
    sys_sigstack_free(NULL);
}

TEST(sigstack)
{
    test_join(test_thread(use_sigstack, NULL));
}

TEST(ncpu_counts_the_affinity_mask)
{
    CHECK(sys_ncpu() >= 1);
#if defined(__linux__)
    cpu_set_t one;
    sched_getaffinity(0, sizeof(one), &one);
    for (int i = 0, kept = 0; i < CPU_SETSIZE; i++) {
        if (CPU_ISSET(i, &one) && kept++ > 0)
            CPU_CLR(i, &one);
    }
    if (sched_setaffinity(0, sizeof(one), &one) == 0)
        CHECK_EQ(sys_ncpu(), 1);
#endif
}

/* ---- base.c ---- */

static void
throw_it(void *arg)
{
    gmp_throw("%s has %d %s", "G", 7, (char *)arg);
}

static void
throw_much(void *arg)
{
    gmp_throw("%5000s", (char *)arg);
}

TEST(throw_prints_and_aborts)
{
    CHECK_DIES(SIGABRT, throw_it, "sins");
    CHECK_PRINTS(throw_it, "sins", "fatal error: gmp: G has 7 sins\n");
    CHECK_DIES(SIGABRT, throw_much, "x");
}

TEST(strerror_knows_every_code)
{
    for (int code = GMP_ESTATE; code <= 0; code++)
        CHECK(strcmp(gmp_strerror(code), "unknown error") != 0);
    CHECK(strcmp(gmp_strerror(-1000), "unknown error") == 0);
}

/* ---- CPU quota ---- */

static void
put(const char *root, const char *path, const char *text)
{
    char name[512];

    snprintf(name, sizeof(name), "%s%s", root, path);
    for (char *p = name + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        (void)mkdir(name, 0700);
        *p = '/';
    }
    FILE *f = fopen(name, "w");
    CHECK(f != NULL);
    fputs(text, f);
    fclose(f);
}

static void
check_quota(const char *cgroup, const char *mountinfo, const char *file, const char *text, const char *file2, const char *text2,
            double want)
{
    char root[] = "/tmp/gmp-test-XXXXXX", command[64];

    CHECK(mkdtemp(root) != NULL);
    if (cgroup != NULL)
        put(root, "/proc/self/cgroup", cgroup);
    if (mountinfo != NULL)
        put(root, "/proc/self/mountinfo", mountinfo);
    if (file != NULL)
        put(root, file, text);
    if (file2 != NULL)
        put(root, file2, text2);
    double got = sys_cpu_quota(root);
    if (got != want)
        test_fail(__FILE__, __LINE__, "quota %g, expected %g, for %s", got, want, cgroup != NULL ? cgroup : "nothing");
    snprintf(command, sizeof(command), "rm -rf %s", root);
    CHECK_EQ(system(command), 0);
}

TEST(sys_cpu_quota_of_cgroups)
{
    static const char v2[] = "23 1 0:1 / / rw - ext4 /dev/x rw\n31 23 0:2 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw\n";
    static const char v1[] = "31 23 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                             "32 23 0:3 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
    static const char part[] = "32 23 0:3 /a/b /sys/fs/cgroup/cpu\\040x rw - cgroup cgroup rw,cpu\n";

#if !defined(__linux__)
    SKIP("no cgroups here");
#endif
    check_quota(NULL, NULL, NULL, NULL, NULL, NULL, 0);
    check_quota("0::/\n", v2, NULL, NULL, NULL, NULL, 0); /* the root group has no cpu.max */
    check_quota("0::/\n", v2, "/sys/fs/cgroup/cpu.max", "150000 100000\n", NULL, NULL, 1.5);
    check_quota("0::/app/x\n", v2, "/sys/fs/cgroup/app/x/cpu.max", "800000 100000\n", NULL, NULL, 8);
    check_quota("0::/app/x\n", v2, "/sys/fs/cgroup/app/x/cpu.max", "max 100000\n", NULL, NULL, 0);
    check_quota("0::/app/x\n", v2, "/sys/fs/cgroup/app/x/cpu.max", "rubbish", NULL, NULL, 0);
    check_quota("0::/app/x\n", v2, "/sys/fs/cgroup/app/x/cpu.max", "", NULL, NULL, 0);
    check_quota("rubbish\n\n::\n", v2, "/sys/fs/cgroup/cpu.max", "150000 100000\n", NULL, NULL, 1.5);
    check_quota("0::/\n", "short line\n - \n", NULL, NULL, NULL, NULL, 0);
    check_quota("5:memory:/m\n4:cpuacct,cpu:/c\n0::/u\n", v1, "/sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us", "250000\n",
                "/sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us", "100000\n", 2.5);
    check_quota("4:cpu:/c\n", v1, "/sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us", "-1\n",
                "/sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us", "100000\n", 0);
    check_quota("4:cpu:/a/b/c\n", part, "/sys/fs/cgroup/cpu x/c/cpu.cfs_quota_us", "300000\n",
                "/sys/fs/cgroup/cpu x/c/cpu.cfs_period_us", "100000\n", 3);
    check_quota("4:cpu:/a/bb\n", part, "/sys/fs/cgroup/cpu x/cpu.cfs_quota_us", "300000\n", "/sys/fs/cgroup/cpu x/cpu.cfs_period_us",
                "100000\n", 0); /* another part of the tree is mounted */
    CHECK_EQ(sys_procs_within(8, 0), 8);
    CHECK_EQ(sys_procs_within(8, 0.5), 2);
    CHECK_EQ(sys_procs_within(8, 2.0), 2);
    CHECK_EQ(sys_procs_within(8, 2.1), 3);
    CHECK_EQ(sys_procs_within(8, 100), 8);
    CHECK_EQ(sys_procs_within(1, 0.5), 1);
    CHECK(sys_procs() >= 1 && sys_procs() <= sys_ncpu());
}
