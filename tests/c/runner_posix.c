/* runner_posix.c: the processes and threads of runner.c where there is fork. */
#ifndef _WIN32
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "runner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Faults are part of what is tested: let them kill.  Parked stacks hide pointers from the leak checker. */
#if defined(GMP_ASAN)
__attribute__((visibility("default"))) const char *
__asan_default_options(void)
{
    return "handle_segv=0:handle_sigbus=0:handle_abort=0:handle_sigill=0:detect_leaks=0:allocator_may_return_null=1";
}
#endif
#if defined(GMP_UBSAN)
__attribute__((visibility("default"))) const char *
__ubsan_default_options(void)
{
    return "handle_segv=0:handle_sigbus=0:handle_abort=0:handle_sigill=0:print_stacktrace=1:halt_on_error=1";
}
#endif
#if defined(GMP_TSAN)
__attribute__((visibility("default"))) const char *
__tsan_default_options(void)
{
    return "handle_segv=0:handle_sigbus=0:handle_abort=0:handle_sigill=0:halt_on_error=1:atexit_sleep_ms=0:die_after_fork=0:allocator_may_return_null=1";
}
#endif

double
runner_seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
call_test(void *t)
{
    ((Test *)t)->fn();
}

/* Forks, runs fn(arg), collects stderr until the pipe is closed and the child has ended, or limit seconds (0: none)
 * have passed.  A child is its own process group, so that what it forked goes with it.  *timed_out may be NULL. */
static int
run_child(void (*fn)(void *), void *arg, char *err, size_t size, double limit, bool *timed_out)
{
    double deadline = runner_seconds() + limit;
    size_t got = 0;
    int fds[2], status = 0;
    bool open_pipe = true, ended = false;
    pid_t pid;

    fflush(stdout);
    fflush(stderr);
    if (pipe(fds) != 0)
        abort();
    pid = fork();
    if (pid < 0)
        abort();
    if (pid == 0) {
        if (limit > 0)
            setpgid(0, 0);
        close(fds[0]);
        dup2(fds[1], STDERR_FILENO);
        close(fds[1]);
        fn(arg);
        fflush(stdout);
        fflush(stderr);
        _exit(0);
    }
    close(fds[1]);
    if (timed_out != NULL)
        *timed_out = false;
    while (!ended) {
        struct pollfd pfd = {fds[0], POLLIN, 0};
        char chunk[4096];
        if (poll(&pfd, open_pipe ? 1 : 0, open_pipe ? 50 : 2) > 0) {
            ssize_t n = read(fds[0], chunk, sizeof(chunk));
            if (n <= 0)
                open_pipe = false;
            for (ssize_t i = 0; i < n && got + 1 < size; i++)
                err[got++] = chunk[i];
            if (n > 0 && (limit <= 0 || runner_seconds() < deadline))
                continue;
        }
        ended = waitpid(pid, &status, WNOHANG) == pid;
        if (!ended && limit > 0 && runner_seconds() > deadline) {
            if (kill(-pid, SIGKILL) != 0)
                kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            ended = true;
            *timed_out = true;
        }
    }
    if (open_pipe) { /* what was still on its way */
        ssize_t n;
        fcntl(fds[0], F_SETFL, O_NONBLOCK);
        while (got + 1 < size && (n = read(fds[0], err + got, size - 1 - got)) > 0)
            got += (size_t)n;
    }
    close(fds[0]);
    if (limit > 0)
        kill(-pid, SIGKILL); /* grandchildren */
    if (size > 0)
        err[got] = '\0';
    return status;
}

Ended
runner_run(Test *t, char *err, size_t size, double limit)
{
    bool timed_out;
    int status = run_child(call_test, t, err, size, limit, &timed_out);

    if (timed_out)
        return (Ended){TIMED_OUT, 0};
    if (WIFSIGNALED(status))
        return (Ended){KILLED, WTERMSIG(status)};
    return (Ended){EXITED, WEXITSTATUS(status)};
}

const char *
runner_signal_name(int sig)
{
    return strsignal(sig);
}

int
test_child(void (*fn)(void *), void *arg, char *err, size_t size)
{
    return run_child(fn, arg, err, err != NULL ? size : 0, 0, NULL);
}

void
test_check_dies(const char *file, int line, int sig, void (*fn)(void *), void *arg)
{
    char err[4096];
    int status = test_child(fn, arg, err, sizeof(err));

    if (!WIFSIGNALED(status) || WTERMSIG(status) != sig)
        test_fail(file, line, "should die of signal %d, wait status is 0x%x\n%s", sig, (unsigned)status, err);
}

void
test_check_prints(const char *file, int line, void (*fn)(void *), void *arg, const char *text)
{
    char err[16384];
    int status = test_child(fn, arg, err, sizeof(err));

    if (strstr(err, text) == NULL)
        test_fail(file, line, "should print \"%s\", wait status is 0x%x, printed:\n%s", text, (unsigned)status, err);
}

bool
test_slow(void)
{
#if defined(GMP_ASAN) || defined(GMP_TSAN)
    return true;
#else
    return getenv("GMP_TEST_SLOW") != NULL; /* set by the Makefile when RUN is an emulator */
#endif
}

size_t
test_rss(void)
{
    unsigned long total, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f == NULL)
        return 0;
    if (fscanf(f, "%lu %lu", &total, &resident) != 2)
        resident = 0;
    fclose(f);
    return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
}

void
test_limit_memory(size_t more)
{
    struct rlimit rl;
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    if (f == NULL || fscanf(f, "%lu", &pages) != 1)
        test_skip("no /proc/self/statm");
    fclose(f);
    getrlimit(RLIMIT_AS, &rl);
    rl.rlim_cur = more != 0 ? pages * (size_t)sysconf(_SC_PAGESIZE) + more : RLIM_INFINITY;
    CHECK_EQ(setrlimit(RLIMIT_AS, &rl), 0);
}

struct TestThread {
    pthread_t thread;
    void (*fn)(void *);
    void *arg;
};

static void *
thread_main(void *p)
{
    TestThread *t = p;

    t->fn(t->arg);
    return NULL;
}

TestThread *
test_thread(void (*fn)(void *), void *arg)
{
    TestThread *t = malloc(sizeof(*t));

    CHECK(t != NULL);
    t->fn = fn;
    t->arg = arg;
    CHECK_EQ(pthread_create(&t->thread, NULL, thread_main, t), 0);
    return t;
}

void
test_join(TestThread *t)
{
    CHECK_EQ(pthread_join(t->thread, NULL), 0);
    free(t);
}

#endif
