/* runner_windows.c: the processes and threads of runner.c on Windows.  Without fork a test's child is the same program with --run-one;
 * what runs a function in a child of its own (CHECK_DIES, CHECK_PRINTS) is skipped. */
#ifdef _WIN32
#include "runner.h"

#include <windows.h>

#include <process.h>

double
runner_seconds(void)
{
    return (double)GetTickCount64() / 1e3;
}

Ended
runner_run(Test *t, char *err, size_t size, double limit)
{
    char self[MAX_PATH], folder[MAX_PATH], log[MAX_PATH], line[2 * MAX_PATH];
    SECURITY_ATTRIBUTES inherit = {sizeof(inherit), NULL, TRUE};
    STARTUPINFOA start = {.cb = sizeof(start), .dwFlags = STARTF_USESTDHANDLES};
    PROCESS_INFORMATION child;
    DWORD got = 0, code = 1;
    bool timed_out;

    GetModuleFileNameA(NULL, self, sizeof(self));
    GetTempPathA(sizeof(folder), folder);
    if (GetTempFileNameA(folder, "gmp", 0, log) == 0)
        abort();
    HANDLE out = CreateFileA(log, GENERIC_READ | GENERIC_WRITE, FILE_SHARE_READ, &inherit, CREATE_ALWAYS,
                             FILE_ATTRIBUTE_TEMPORARY | FILE_FLAG_DELETE_ON_CLOSE, NULL);
    if (out == INVALID_HANDLE_VALUE)
        abort();
    start.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    start.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    start.hStdError = out;
    snprintf(line, sizeof(line), "\"%s\" %s %s", self, RUN_ONE, t->name);
    if (!CreateProcessA(self, line, NULL, NULL, TRUE, 0, NULL, NULL, &start, &child))
        abort();
    timed_out = WaitForSingleObject(child.hProcess, (DWORD)(limit * 1000)) != WAIT_OBJECT_0;
    if (timed_out) {
        TerminateProcess(child.hProcess, 1);
        WaitForSingleObject(child.hProcess, INFINITE);
    }
    GetExitCodeProcess(child.hProcess, &code);
    CloseHandle(child.hProcess);
    CloseHandle(child.hThread);
    SetFilePointer(out, 0, NULL, FILE_BEGIN);
    ReadFile(out, err, (DWORD)size - 1, &got, NULL);
    err[got] = '\0';
    CloseHandle(out);
    return (Ended){timed_out ? TIMED_OUT : EXITED, (int)code};
}

const char *
runner_signal_name(int sig)
{
    (void)sig;
    return "";
}

int
test_child(void (*fn)(void *), void *arg, char *err, size_t size)
{
    (void)fn, (void)arg, (void)err, (void)size;
    test_skip("needs fork");
}

void
test_check_dies(const char *file, int line, int sig, void (*fn)(void *), void *arg)
{
    (void)file, (void)line, (void)sig, (void)fn, (void)arg;
    test_skip("needs fork");
}

void
test_check_prints(const char *file, int line, void (*fn)(void *), void *arg, const char *text)
{
    (void)file, (void)line, (void)fn, (void)arg, (void)text;
    test_skip("needs fork");
}

bool
test_slow(void)
{
    return getenv("GMP_TEST_SLOW") != NULL;
}

size_t
test_rss(void)
{
    return 0;
}

void
test_limit_memory(size_t more)
{
    (void)more;
    test_skip("no limit for the address space");
}

struct TestThread {
    HANDLE thread;
    void (*fn)(void *);
    void *arg;
};

static unsigned __stdcall
thread_main(void *p)
{
    TestThread *t = p;

    t->fn(t->arg);
    return 0;
}

TestThread *
test_thread(void (*fn)(void *), void *arg)
{
    TestThread *t = malloc(sizeof(*t));

    CHECK(t != NULL);
    t->fn = fn;
    t->arg = arg;
    t->thread = (HANDLE)_beginthreadex(NULL, 0, thread_main, t, 0, NULL);
    CHECK(t->thread != NULL);
    return t;
}

void
test_join(TestThread *t)
{
    CHECK(WaitForSingleObject(t->thread, INFINITE) == WAIT_OBJECT_0);
    CloseHandle(t->thread);
    free(t);
}

#endif
