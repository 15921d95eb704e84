/* runner.c: runs the tests, each in a child process with a time limit.
 *
 *   test [-l] [name ...]      -l lists; names select by substring.  GMP_TEST_LIMIT=s raises every limit to s seconds.
 *
 * Ends with `N passed, N failed`; skipped tests count in neither.  The exit status is 1 if any failed.
 * The runner itself never calls the core, and starts no thread: forking stays safe, and each test sees a fresh process.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXIT_SKIP 77
#define KEEP_ERR 32768

/* Faults are part of what is tested: let them kill.  Parked stacks hide pointers from the leak checker. */
#if defined(GMP_ASAN)
__attribute__((visibility("default"))) const char *
__asan_default_options(void)
{
    return "handle_segv=0:handle_sigbus=0:handle_abort=0:handle_sigill=0:detect_leaks=0:allocator_may_return_null=1";
}
#endif
#if defined(GMP_TSAN)
__attribute__((visibility("default"))) const char *
__tsan_default_options(void)
{
    return "handle_segv=0:handle_sigbus=0:handle_abort=0:handle_sigill=0:halt_on_error=1:atexit_sleep_ms=0:die_after_fork=0:allocator_may_return_null=1";
}
#endif

static Test *tests, **tests_end = &tests;

void
test_register(Test *t)
{
    *tests_end = t;
    tests_end = &t->next;
}

void
test_fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "%s:%d: CHECK failed: ", file, line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    fflush(stderr);
    _exit(1);
}

void
test_skip(const char *why)
{
    fprintf(stderr, "%s", why);
    fflush(stderr);
    _exit(EXIT_SKIP);
}

static double
seconds(void)
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
    double deadline = seconds() + limit;
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
            if (n > 0 && (limit <= 0 || seconds() < deadline))
                continue;
        }
        ended = waitpid(pid, &status, WNOHANG) == pid;
        if (!ended && limit > 0 && seconds() > deadline) {
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

static bool
selected(const Test *t, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strstr(t->name, argv[i]) != NULL || strstr(t->file, argv[i]) != NULL)
            return true;
    }
    return argc <= 1;
}

int
main(int argc, char **argv)
{
    static char err[KEEP_ERR];
    const char *env = getenv("GMP_TEST_LIMIT");
    double least = env != NULL ? atof(env) : 0;
    int passed = 0, failed = 0;
    bool list = argc > 1 && strcmp(argv[1], "-l") == 0;

    if (list)
        argc--, argv++;
    for (Test *t = tests; t != NULL; t = t->next) {
        double start = seconds(), limit = t->limit > least ? t->limit : least;
        bool timed_out;
        int status;

        if (!selected(t, argc, argv))
            continue;
        if (list) {
            printf("%s\n", t->name);
            continue;
        }
        printf("%-44s ", t->name);
        status = run_child(call_test, t, err, sizeof(err), limit, &timed_out);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            passed++;
            printf("ok  %.2f s\n", seconds() - start);
            if (getenv("GMP_TEST_VERBOSE") != NULL)
                fputs(err, stdout);
        }
        else if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIP)
            printf("skipped (%s)\n", err);
        else {
            failed++;
            if (timed_out)
                printf("FAILED: not done after %.0f s\n", limit);
            else if (WIFSIGNALED(status))
                printf("FAILED: signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
            else
                printf("FAILED: exit status %d\n", WEXITSTATUS(status));
            printf("%s%s", err, *err != '\0' && err[strlen(err) - 1] != '\n' ? "\n" : "");
        }
        fflush(stdout);
    }
    if (!list)
        printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
