/* runner.c: runs the tests, each in a child process with a time limit.
 *
 *   test [-l] [name ...]      -l lists; names select by substring.  GMP_TEST_LIMIT=s raises every limit to s seconds.
 *
 * Ends with `N passed, N failed`; skipped tests count in neither.  The exit status is 1 if any failed.
 * The runner itself never calls the core, and starts no thread: forking stays safe, and each test sees a fresh process.
 * runner_posix.c and runner_windows.c have the processes.
 */
#include "runner.h"

#include <stdarg.h>

#define KEEP_ERR 32768

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
    _Exit(1);
}

void
test_skip(const char *why)
{
    fprintf(stderr, "%s", why);
    fflush(stderr);
    _Exit(EXIT_SKIP);
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

    if (argc == 3 && strcmp(argv[1], RUN_ONE) == 0) { /* a child on systems that cannot fork */
        for (Test *t = tests; t != NULL; t = t->next)
            if (strcmp(t->name, argv[2]) == 0)
                t->fn();
        fflush(stdout);
        fflush(stderr);
        _Exit(0);
    }
    if (list)
        argc--, argv++;
    for (Test *t = tests; t != NULL; t = t->next) {
        double start = runner_seconds(), limit = t->limit > least ? t->limit : least;
        Ended end;

        if (!selected(t, argc, argv))
            continue;
        if (list) {
            printf("%s\n", t->name);
            continue;
        }
        printf("%-44s ", t->name);
        fflush(stdout);
        end = runner_run(t, err, sizeof(err), limit);
        if (end.how == EXITED && end.code == 0) {
            passed++;
            printf("ok  %.2f s\n", runner_seconds() - start);
            if (getenv("GMP_TEST_VERBOSE") != NULL)
                fputs(err, stdout);
        }
        else if (end.how == EXITED && end.code == EXIT_SKIP)
            printf("skipped (%s)\n", err);
        else {
            failed++;
            if (end.how == TIMED_OUT)
                printf("FAILED: not done after %.0f s\n", limit);
            else if (end.how == KILLED)
                printf("FAILED: signal %d (%s)\n", end.code, runner_signal_name(end.code));
            else
                printf("FAILED: exit status %d\n", end.code);
            printf("%s%s", err, *err != '\0' && err[strlen(err) - 1] != '\n' ? "\n" : "");
        }
        fflush(stdout);
    }
    if (!list)
        printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
