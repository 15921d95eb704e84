/* sys_posix.c: sys.h on Linux, macOS and the BSDs: clock, pages, guards, threads. */
#ifndef _WIN32
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <link.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif
#define MADV_GUARD_INSTALL_ 102 /* Linux 6.13; older headers lack it */

/* ---- clock ---- */

int64_t
nanotime(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t
walltime(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ---- requests that fail ---- */

#ifdef GMP_FAULTS
int64_t sys_faults = -1;

bool
sys_fault(void)
{
    return atomic_load(&sys_faults) >= 0 && atomic_xadd(&sys_faults, (int64_t)-1) == 0;
}
#endif

/* ---- pages ---- */

size_t
sys_page_size(void)
{
    static size_t page; /* every thread computes the same value */
    size_t n = atomic_load_relaxed(&page);

    if (GMP_UNLIKELY(n == 0)) {
        n = (size_t)sysconf(_SC_PAGESIZE);
        atomic_store_relaxed(&page, n);
    }
    return n;
}

void *
sys_reserve(size_t bytes)
{
    void *p = sys_fault()
                  ? MAP_FAILED
                  : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
#if defined(MADV_NOHUGEPAGE)
    /* A huge page would make 2 MiB resident for each goroutine's first touch.  Refused where there are none. */
    (void)madvise(p, bytes, MADV_NOHUGEPAGE);
#endif
    return p;
}

void
sys_release(void *addr, size_t bytes)
{
    /* Fails only when the hole would split a map and the map count is used up: then it stays reserved. */
    (void)munmap(addr, bytes);
}

bool
sys_protect(void *addr, size_t bytes)
{
    return mprotect(addr, bytes, PROT_NONE) == 0;
}

void
sys_discard(void *addr, size_t bytes)
{
#if defined(__linux__)
    GMP_CHECK(madvise(addr, bytes, MADV_DONTNEED) == 0);
#else
    /* Elsewhere MADV_DONTNEED does not promise zeroes: map fresh memory over the range. */
    void *p = mmap(addr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    GMP_CHECK(p == addr);
#endif
}

#if defined(__linux__)
/* Whether MADV_GUARD_INSTALL works.  The kernel itself touches the page, so a guard shows as EFAULT and no signal
 * handler is needed: qemu-user accepts the advice and ignores it, old kernels and gVisor refuse it. */
static bool
probe_madvise_guard(void)
{
    size_t page = sys_page_size();
    char *p = sys_reserve(page);
    bool works = false;

    if (p == NULL)
        return false;
    if (syscall(SYS_clock_getres, CLOCK_MONOTONIC, p) == 0 && madvise(p, page, MADV_GUARD_INSTALL_) == 0)
        works = syscall(SYS_clock_getres, CLOCK_MONOTONIC, p) == -1 && errno == EFAULT;
    sys_release(p, page);
    return works;
}

/* How many mprotect guards may exist: each costs two maps, and three quarters of the maps are ours. */
static size_t
mprotect_limit(void)
{
    unsigned long maps = 65530;
    char text[32];
    int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        ssize_t n = read(fd, text, sizeof(text) - 1);
        close(fd);
        if (n > 0) {
            text[n] = '\0';
            maps = strtoul(text, NULL, 10);
        }
    }
    return maps / 8 * 3;
}
#else
static bool
probe_madvise_guard(void)
{
    return false;
}

static size_t
mprotect_limit(void)
{
    return SIZE_MAX / 2;
}
#endif

static int guard_kind_plus1;   /* 0 unknown; several threads may find out, they find the same */
static size_t mprotect_max;    /* set before guard_kind_plus1 */
static size_t mprotect_guards; /* installed so far; guards are never taken away */

GuardKind
sys_guard_kind(void)
{
    int k = atomic_load_acquire(&guard_kind_plus1); /* pairs with the release below: mprotect_max is set */
    const char *env;

    if (GMP_LIKELY(k != 0))
        return (GuardKind)(k - 1);
    env = getenv("GMP_GUARD");
    if (env != NULL && strcmp(env, "none") == 0)
        k = GUARD_NONE;
    else if (env != NULL && strcmp(env, "mprotect") == 0)
        k = GUARD_MPROTECT;
    else
        k = probe_madvise_guard() ? GUARD_MADVISE : GUARD_MPROTECT;
    atomic_store_relaxed(&mprotect_max, mprotect_limit());
    atomic_store_release(&guard_kind_plus1, k + 1); /* pairs with the acquire above */
    return (GuardKind)k;
}

GuardKind
sys_guard_page(void *addr)
{
    GuardKind kind = sys_guard_kind();

    if (kind == GUARD_MADVISE && madvise(addr, sys_page_size(), MADV_GUARD_INSTALL_) == 0)
        return GUARD_MADVISE;
    /* Here also when the advice is refused for this mapping, as for locked memory before 6.15. */
    if (kind != GUARD_NONE) {
        if (atomic_xadd_relaxed(&mprotect_guards, 1) < atomic_load_relaxed(&mprotect_max) &&
            mprotect(addr, sys_page_size(), PROT_NONE) == 0)
            return GUARD_MPROTECT;
        atomic_xadd_relaxed(&mprotect_guards, (size_t)-1);
    }
    return GUARD_NONE;
}

/* ---- threads ---- */

#define THREAD_STACK_MIN ((size_t)1 << 20) /* musl and macOS give less by default */

typedef struct ThreadStart {
    void (*fn)(void *);
    void *arg;
    char name[16];
} ThreadStart;

static void *
thread_main(void *p)
{
    ThreadStart st = *(ThreadStart *)p;

    free(p);
#if defined(__APPLE__)
    pthread_setname_np(st.name);
#elif defined(__linux__)
    pthread_setname_np(pthread_self(), st.name);
#endif
    st.fn(st.arg);
    return NULL;
}

static void
block_signals(sigset_t *old)
{
    static const int ours[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    sigset_t all;

    sigfillset(&all);
    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
        sigdelset(&all, ours[i]);
    pthread_sigmask(SIG_SETMASK, &all, old);
}

/* The mask of the thread that started the first one: the one that loads the core. */
static sigset_t normal_mask;
static uint32_t have_normal_mask;

int
sys_thread_start(void (*fn)(void *), void *arg, const char *name, bool signals)
{
    ThreadStart *st = sys_malloc(sizeof(*st));
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t old;
    size_t stack;
    int err;

    if (st == NULL)
        return GMP_ENOMEM;
    st->fn = fn;
    st->arg = arg;
    snprintf(st->name, sizeof(st->name), "%s", name);
    if (pthread_attr_init(&attr) != 0) {
        free(st);
        return GMP_ENOMEM;
    }
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (pthread_attr_getstacksize(&attr, &stack) == 0 && stack < THREAD_STACK_MIN)
        pthread_attr_setstacksize(&attr, THREAD_STACK_MIN);
    /* The new thread inherits the mask: no signal can slip in before it could block them itself. */
    block_signals(&old);
    if (atomic_cas(&have_normal_mask, 0u, 1u))
        normal_mask = old;
    if (signals)
        pthread_sigmask(SIG_SETMASK, &normal_mask, NULL);
    err = sys_fault() ? EAGAIN : pthread_create(&thread, &attr, thread_main, st);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (err != 0) {
        free(st);
        return err == ENOMEM ? GMP_ENOMEM : GMP_EAGAIN;
    }
    return 0;
}

uint64_t
sys_thread_id(void)
{
#if defined(__linux__)
    return (uint64_t)syscall(SYS_gettid);
#elif defined(__APPLE__)
    uint64_t id = 0;
    pthread_threadid_np(NULL, &id);
    return id;
#else
    return (uint64_t)(uintptr_t)pthread_self();
#endif
}

void
sys_thread_yield(void)
{
    sched_yield();
}

void
sys_usleep(int64_t us)
{
    struct timespec ts;

    if (us <= 0)
        return;
    ts.tv_sec = (time_t)(us / 1000000);
    ts.tv_nsec = (long)(us % 1000000) * 1000;
    while (nanosleep(&ts, &ts) == -1 && errno == EINTR)
        ;
}

void
sys_exact_sleeps(void)
{
#if defined(__linux__)
    prctl(PR_SET_TIMERSLACK, 1UL);
#endif
}

int
sys_ncpu(void)
{
    long n;
#if defined(__linux__)
    cpu_set_t sets[8]; /* 8,192 CPUs: the call fails when the kernel's mask is longer */

    memset(sets, 0, sizeof(sets));
    if (sched_getaffinity(0, sizeof(sets), sets) == 0) {
        n = CPU_COUNT_S(sizeof(sets), sets);
        if (n > 0)
            return (int)n;
    }
#endif
    n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < INT_MAX ? (int)n : 1;
}

#define SIGSTACK_BYTES ((size_t)64 << 10) /* untouched pages cost nothing; AVX-512 and AMX frames need 3 to 11 KiB */

void *
sys_sigstack_install(void)
{
    stack_t now, mine;

    if (sigaltstack(NULL, &now) != 0 || !(now.ss_flags & SS_DISABLE))
        return NULL;
    memset(&mine, 0, sizeof(mine));
    mine.ss_size = SIGSTACK_BYTES;
    mine.ss_sp = sys_reserve(SIGSTACK_BYTES);
    if (mine.ss_sp == NULL)
        return NULL;
    if (sigaltstack(&mine, NULL) != 0) {
        sys_release(mine.ss_sp, SIGSTACK_BYTES);
        return NULL;
    }
    return mine.ss_sp;
}

void
sys_sigstack_free(void *sigstack)
{
    stack_t now, off;

    if (sigstack == NULL)
        return;
    if (sigaltstack(NULL, &now) == 0 && now.ss_sp == sigstack) {
        memset(&off, 0, sizeof(off));
        off.ss_flags = SS_DISABLE;
        off.ss_size = SIGSTACK_BYTES; /* macOS looks at it even so */
        sigaltstack(&off, NULL);
    }
    sys_release(sigstack, SIGSTACK_BYTES);
}

/* On the heap: other systems free a thread's TLS before, or glibc clears a second key's value before our
 * destructor runs. */
typedef struct ThreadExit {
    void (*fn)(void *);
    void *arg;
} ThreadExit;

static pthread_once_t exit_once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_key;

static void
exit_run(void *p)
{
    ThreadExit te = *(ThreadExit *)p;

    free(p);
    if (te.fn != NULL)
        te.fn(te.arg);
}

static void
exit_make_key(void)
{
    GMP_CHECK(pthread_key_create(&exit_key, exit_run) == 0);
}

int
sys_at_thread_exit(void (*fn)(void *), void *arg)
{
    ThreadExit *te;

    pthread_once(&exit_once, exit_make_key);
    te = pthread_getspecific(exit_key);
    if (te == NULL) {
        te = sys_malloc(sizeof(*te));
        if (te == NULL || pthread_setspecific(exit_key, te) != 0) {
            sys_free(te);
            return GMP_ENOMEM;
        }
    }
    te->fn = fn;
    te->arg = arg;
    return GMP_OK;
}

#if defined(__linux__)
static uint32_t frozen;

static void
freeze_here(int sig)
{
    (void)sig;
    atomic_store(&frozen, 1u);
    for (;;)
        pause();
}

bool
sys_thread_freeze(uint64_t tid)
{
    struct sigaction sa = {.sa_handler = freeze_here};
    sigfillset(&sa.sa_mask);
    atomic_store(&frozen, 0u);
    if (sigaction(SIGURG, &sa, NULL) != 0 || syscall(SYS_tgkill, getpid(), (pid_t)tid, SIGURG) != 0)
        return false;
    for (int i = 0; i < 100 && !atomic_load(&frozen); i++)
        sys_usleep(1000);
    return atomic_load(&frozen) != 0;
}
#else
bool
sys_thread_freeze(uint64_t tid)
{
    (void)tid;
    return false;
}
#endif

static void
on_interrupt(int sig)
{
    (void)sig;
}

void
sys_thread_interrupt(uint64_t tid)
{
#if defined(__linux__)
    struct sigaction sa;
    if (sigaction(SIGURG, NULL, &sa) != 0)
        return;
    if (!(sa.sa_flags & SA_SIGINFO) && (sa.sa_handler == SIG_DFL || sa.sa_handler == SIG_IGN)) {
        memset(&sa, 0, sizeof(sa));
        sa.sa_handler = on_interrupt; /* without SA_RESTART */
        sa.sa_flags = SA_ONSTACK;
        sigaction(SIGURG, &sa, NULL);
    }
    else if ((sa.sa_flags & SA_SIGINFO) || sa.sa_handler != on_interrupt) {
        return;
    }
    syscall(SYS_tgkill, getpid(), (pid_t)tid, SIGURG);
#else
    (void)tid;
#endif
}

static __thread sigset_t held_mask;
static __thread bool held;

void
sys_signals_hold(void)
{
#if defined(__linux__)
    block_signals(&held_mask);
    held = true;
#endif
}

void
sys_signals_release(void)
{
    if (held)
        pthread_sigmask(SIG_SETMASK, &held_mask, NULL);
    held = false;
}

const void *
sys_signals_mask(void)
{
    return held ? &held_mask : NULL;
}

int
sys_thread_count(void)
{
#if defined(__linux__)
    char text[4096], *p;
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC); /* not stat: qemu-user makes that up */
    ssize_t n;

    if (fd < 0)
        return -1;
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0)
        return -1;
    text[n] = '\0';
    p = strstr(text, "\nThreads:");
    return p != NULL ? (int)strtol(p + 9, NULL, 10) : -1;
#else
    return -1;
#endif
}

#if defined(__linux__)
typedef struct TlsVisit {
    bool (*fn)(void *, const void *, void *, size_t);
    void *arg;
} TlsVisit;

static int
visit_tls(struct dl_phdr_info *info, size_t size, void *arg)
{
    TlsVisit *v = arg;
    if (size < offsetof(struct dl_phdr_info, dlpi_tls_data) + sizeof info->dlpi_tls_data || info->dlpi_tls_data == NULL)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS &&
            v->fn(v->arg, info->dlpi_phdr, info->dlpi_tls_data, info->dlpi_phdr[i].p_memsz))
            return 1;
    return 0;
}
#endif

bool
sys_tls_blocks(bool (*fn)(void *arg, const void *object, void *block, size_t size), void *arg)
{
#if defined(__linux__)
    return dl_iterate_phdr(visit_tls, &(TlsVisit){fn, arg}) == 0;
#else
    (void)fn, (void)arg;
    return false;
#endif
}

#endif
